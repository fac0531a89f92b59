"""The folder of a result, tested before anything is computed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..exceptions import FusionError
from ..persistence import CARD_HEAD, FILES, check_writable

__all__ = ["check_output"]

NETWORK, _, DESCRIPTION = FILES


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise a FusionError unless a result can be written to a folder, over nothing that is not meant to be lost."""
    try:
        check_writable(folder)
        _check_content(folder, overwrite)
        _probe(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, FusionError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise FusionError(f"--output {str(folder)!r} can't be written: {why}.") from error


def _check_content(folder: Path, overwrite: bool) -> None:
    if (folder / DESCRIPTION).exists():
        if not overwrite:
            raise FusionError(f"{folder} holds an earlier result; add --overwrite to write over it, or give another folder.")
    elif (folder / NETWORK).exists():
        raise FusionError(f"{folder} holds a {NETWORK} but no {DESCRIPTION}, so no result of wbfuse; give another folder.")
    card = folder / "README.md"
    if card.exists() and not card.read_bytes().startswith(CARD_HEAD.encode()):
        raise FusionError(f"{card} was not written by wbfuse and would be lost; move it away or give another folder.")


def _probe(folder: Path) -> None:
    """Make and remove a folder where the result is to be."""
    if "\0" in str(folder):
        raise ValueError("its name has a NUL")
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.exists():
            break
        if place.is_symlink():
            raise ValueError(f"{place} is a link to nothing")
    os.rmdir(tempfile.mkdtemp(prefix=".saving-", dir=place))
