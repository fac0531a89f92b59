"""The files of a save: written completely or not at all, and verified when they are read."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..exceptions import PersistenceError
from ..network.types import State

__all__ = ["CARD_HEAD", "FILES", "check_writable", "read_folder", "read_tensors", "with_checksum", "write_folder"]

NETWORK, COUPLINGS, DESCRIPTION, CARD = "model.safetensors", "couplings.safetensors", "fusion.json", "README.md"
FILES = (NETWORK, COUPLINGS, DESCRIPTION)
"""The files of a save."""

FORMAT, VERSION = "sklearn_wbfuse fusion", 1
CARD_HEAD = "# A fused network"
"""The first line of a card that describes a save."""

_PARTIAL = ".saving-"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_WIDTH = 110  # characters of a list or object on one line


def check_writable(folder: Path) -> None:
    """Check that a folder does not exist, is empty, or contains only a save and its README.md."""
    if folder.exists() and not folder.is_dir():
        raise PersistenceError(f"save writes a folder. Got {folder}, which is a file. Give the name of a new folder.")
    others = sorted(p.name for p in folder.iterdir() if p.name not in (*FILES, CARD)) if folder.is_dir() else []
    if others:
        raise PersistenceError(
            f"{folder} contains other files than those of a saved fusion: {others[:5]}. Give a new or an empty folder."
        )


def write_folder(folder: Path, content: Mapping[str, Any], network: State, ties: Mapping[str, str], tensors: State) -> None:
    """Write a save completely or not at all; a README.md remains unless it is the card of an earlier save.

    Parameters
    ----------
    folder : Path
    content : dict
        The content of ``fusion.json``.
    network : dict of str to Tensor
        The state dict, with each tensor once.
    ties : dict of str to str
        For each further name of a tensor, its name in `network`.
    tensors : dict of str to Tensor
        The content of ``couplings.safetensors``.
    """
    check_writable(folder)
    # A single entry, since safetensors writes several in random order and equal saves must produce equal files.
    metadata = {"tied": json.dumps(ties, sort_keys=True)} if ties else None
    data = {NETWORK: safetensors.torch.save(dict(network), metadata), COUPLINGS: safetensors.torch.save(dict(tensors))}
    checksums = {name: hashlib.sha256(d).hexdigest() for name, d in data.items()}
    version = sys.modules[__name__.partition(".")[0]].__version__
    head = {"format": FORMAT, "format_version": VERSION, "library_version": version, "sha256": checksums}
    data[DESCRIPTION] = (_indented_json(with_checksum({**head, **content})) + "\n").encode()
    card = folder / CARD
    if card.is_file() and not card.read_bytes().startswith(CARD_HEAD.encode()):
        data[CARD] = card.read_bytes()
    try:
        _write(folder, data)
    except OSError as error:
        raise PersistenceError(f"{folder} cannot be written: {error.strerror or error}. Give another folder.") from error


def _write(folder: Path, data: Mapping[str, bytes]) -> None:
    """Create a folder of files or replace an existing one, which is restored if that fails."""
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
    ready, old = partial / "ready", partial / "old"
    try:
        ready.mkdir()  # with the user's default permissions; mkdtemp denies access to everybody else
        for name, content in data.items():
            (ready / name).write_bytes(content)
        try:
            if folder.exists():
                folder.rename(old)
            ready.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return the description, the state dict and the other tensors of a save.

    Raises
    ------
    PersistenceError
        If a file is missing or damaged; the message names it and says what to do.
    """
    _check_folder(folder)
    content = _read_description(folder / DESCRIPTION)
    tensors = []
    for name in (NETWORK, COUPLINGS):
        data = (folder / name).read_bytes()
        checksums = content.get("sha256")
        if not isinstance(checksums, dict) or hashlib.sha256(data).hexdigest() != checksums.get(name):
            raise PersistenceError(
                f"{folder / name} must have the checksum that {DESCRIPTION} records. Got another checksum: the file is "
                "truncated, damaged or from another save. Copy the whole folder again."
            )
        tensors.append(read_tensors(folder / name, data))
    return content, tensors[0], tensors[1]


def read_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file, or raise a PersistenceError if these are damaged."""
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise PersistenceError(
            f"{path} is not a readable safetensors file ({error}). It is truncated or damaged; copy it again."
        ) from error


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise PersistenceError(f"There is no folder {folder}. Give a folder that save(folder) wrote.")
    if not folder.is_dir():
        kind, hint = "a file", ""
        if folder.suffix == ".safetensors":
            hint = " To read only a network, use safetensors.torch.load_model(model, path)."
        elif folder.suffix in _PICKLES:
            kind = "a file that looks like a pickle; these can run code and are not read"
        raise PersistenceError(f"load needs the folder that save(folder) wrote. Got {folder}, {kind}.{hint}")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise PersistenceError(
            f"{folder} is not a complete save: {missing} missing of {list(FILES)}. Give a folder that save(folder) wrote."
        )


def _read_description(path: Path) -> dict[str, Any]:
    """Return the description, after a check that it is unchanged since it was saved."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PersistenceError(f"{path} is damaged: {error}. Copy the folder again, or save the estimator again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PersistenceError(f"{path} was not written by sklearn_wbfuse. Give a folder that save(folder) wrote.")
    if content.get("format_version") != VERSION:
        raise PersistenceError(
            f"{path} must have format version {VERSION}. Got version {content.get('format_version')}, written by sklearn_wbfuse "
            f"{content.get('library_version')}. Update sklearn_wbfuse."
        )
    if content != with_checksum({k: v for k, v in content.items() if k != "checksum"}):
        raise PersistenceError(
            f"{path} was changed after it was saved: its checksum differs. Load the original and change its "
            "parameters with set_params."
        )
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Add the checksum of a description to it."""
    canonical = json.dumps(content, sort_keys=True, allow_nan=False)
    return {**content, "checksum": hashlib.sha256(canonical.encode()).hexdigest()}


def _indented_json(value: Any, indent: int = 0) -> str:
    """Format a value as indented JSON, with short lists and objects on one line."""
    line = json.dumps(value, allow_nan=False)
    if len(line) + indent <= _WIDTH or not isinstance(value, (list, dict)):
        return line
    if isinstance(value, dict):
        parts, ends = [f"{json.dumps(k)}: {_indented_json(v, indent + 1)}" for k, v in value.items()], "{}"
    else:
        parts, ends = [_indented_json(v, indent + 1) for v in value], "[]"
    inner = ",".join(f"\n{' ' * (indent + 1)}{part}" for part in parts)
    return f"{ends[0]}{inner}\n{' ' * indent}{ends[1]}"
