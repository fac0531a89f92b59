"""The files of data sets: in a folder of the user, or downloaded to a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

__all__ = ["DatasetError", "cache_folder", "download", "local_file"]


class DatasetError(OSError):
    """The files of a data set are missing, or could not be downloaded."""


def local_file(*names: str) -> Path | None:
    """Return the first of some files that exists in the folder ``$WBFUSE_DATA``, or None if that variable is not set.

    Raises
    ------
    DatasetError
        If the variable is set, but the folder contains none of the files.
    """
    folder = os.environ.get("WBFUSE_DATA")
    if not folder:
        return None
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise DatasetError(
        f"WBFUSE_DATA must name a folder that contains {' or '.join(names)}. Got {folder!r}. Unset it to download the data."
    )


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/sklearn_wbfuse``, by default ``~/.cache/sklearn_wbfuse``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sklearn_wbfuse"


def download(url: str, sha256: str, name: str | None = None) -> Path:
    """Return a file in the cache; download it on first use, and add it only if it is complete and has the expected hash.

    Parameters
    ----------
    url, sha256 : str
    name : str, optional
        Name of the file in the cache; by default the last part of the address.

    Raises
    ------
    DatasetError
        If the download fails; the message says where to put the file manually.
    """
    path = cache_folder() / (name or url.rsplit("/", 1)[-1])
    if path.is_file():
        return path
    partial = None
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file,
            urllib.request.urlopen(url, timeout=60) as response,
        ):
            partial = Path(file.name)
            while chunk := response.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise OSError(f"the file must have the SHA-256 {sha256}, got {digest.hexdigest()}")
        partial.replace(path)
    except OSError as error:
        raise DatasetError(
            f"{url} could not be downloaded ({error}). Save the file as {path} by hand, or set WBFUSE_DATA to a folder that "
            "contains the data set."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return path
