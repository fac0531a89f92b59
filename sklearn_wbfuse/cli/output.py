"""A check of the output folder before any computation."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..exceptions import FusionError
from ..persistence import CARD_HEAD, FILES, check_writable

__all__ = ["check_output"]

NETWORK, _, DESCRIPTION = FILES


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise a FusionError unless a result can be written to a folder without losing anything but an earlier result."""
    try:
        check_writable(folder)
        _check_content(folder, overwrite)
        _try_to_write(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, FusionError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise FusionError(f"--output {str(folder)!r} cannot be written: {reason}. Give another folder.") from error


def _check_content(folder: Path, overwrite: bool) -> None:
    if (folder / DESCRIPTION).exists():
        if not overwrite:
            raise FusionError(f"{folder} contains an earlier result. Add --overwrite to replace it, or give another folder.")
    elif (folder / NETWORK).exists():
        raise FusionError(
            f"{folder} contains a {NETWORK} but no {DESCRIPTION}, so it is not a result of wbfuse. Give another folder."
        )
    card = folder / "README.md"
    if card.exists() and not card.read_bytes().startswith(CARD_HEAD.encode()):
        raise FusionError(f"{card} was not written by wbfuse and would be lost. Move it or give another folder.")


def _try_to_write(folder: Path) -> None:
    """Create and remove a temporary folder in the output folder, or in its closest parent that exists."""
    if "\0" in str(folder):
        raise ValueError("its name contains a NUL character")
    for existing in (folder.absolute(), *folder.absolute().parents):
        if existing.exists():
            break
        if existing.is_symlink():
            raise ValueError(f"{existing} is a broken symbolic link")
    os.rmdir(tempfile.mkdtemp(prefix=".saving-", dir=existing))
