"""Where the files of a data set lie: in a folder of the user's, or downloaded into a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

__all__ = ["DatasetError", "cache_folder", "downloaded", "local_file"]


class DatasetError(OSError):
    """The files of a data set are not where they should be, or could not be downloaded."""


def local_file(*names: str) -> Path | None:
    """The first of some files that is in the folder ``$WBFUSE_DATA``, or None if that variable is not set.

    Raises
    ------
    DatasetError
        If the variable is set but the folder has none of the files.
    """
    folder = os.environ.get("WBFUSE_DATA")
    if not folder:
        return None
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise DatasetError(f"WBFUSE_DATA names {folder!r}, which has no {' or '.join(names)}; unset it to download the data.")


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/sklearn_wbfuse``, by default ``~/.cache/sklearn_wbfuse``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sklearn_wbfuse"


def downloaded(url: str, sha256: str, name: str | None = None) -> Path:
    """A file in the cache, downloaded on first use; it appears there only when it is complete and has the right hash.

    Parameters
    ----------
    url, sha256 : str
    name : str, optional
        That of the file in the cache; by default the last part of the address.

    Raises
    ------
    DatasetError
        Saying where to put the file by hand.
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
            while piece := response.read(1 << 20):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != sha256:
            raise OSError(f"the file has the SHA-256 {digest.hexdigest()}, expected {sha256}")
        partial.replace(path)
    except OSError as error:
        raise DatasetError(
            f"{url} could not be downloaded ({error}). Put the file at {path} by hand, "
            "or let WBFUSE_DATA name a folder that has the data set."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return path
