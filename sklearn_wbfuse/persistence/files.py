"""The files of a save: written all or not at all, and read with a check of what they hold."""

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

__all__ = ["CARD_HEAD", "FILES", "check_writable", "read_folder", "read_tensors", "write_folder"]

NETWORK, REST, DESCRIPTION, CARD = "model.safetensors", "couplings.safetensors", "fusion.json", "README.md"
FILES = (NETWORK, REST, DESCRIPTION)
"""What a save consists of."""

FORMAT, VERSION = "sklearn_wbfuse fusion", 1
CARD_HEAD = "# A fused network"
"""How a card begins that tells of a save."""

_PARTIAL = ".saving-"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_WIDTH = 110  # of a list or object that stands on one line


def check_writable(folder: Path) -> None:
    """Raise a PersistenceError unless a folder is free, or holds a save and nothing else but its README.md."""
    if folder.exists() and not folder.is_dir():
        raise PersistenceError(f"{folder} is a file; save writes a folder. Give the name of a new one.")
    others = sorted(p.name for p in folder.iterdir() if p.name not in (*FILES, CARD)) if folder.is_dir() else []
    if others:
        raise PersistenceError(f"{folder} holds other things than a saved fusion: {others[:5]}. Give a new or an empty folder.")


def write_folder(
    folder: Path, content: Mapping[str, Any], network: Mapping[str, Tensor], ties: Mapping[str, str], rest: Mapping[str, Tensor]
) -> None:
    """Write a save, all of it or nothing; a README.md stays unless it is the card of an earlier save.

    Parameters
    ----------
    folder : Path
    content : dict
        For ``fusion.json``.
    network : dict of str to Tensor
        The state dict, each tensor once.
    ties : dict of str to str
        Further names of tensors.
    rest : dict of str to Tensor
        For ``couplings.safetensors``.
    """
    check_writable(folder)
    # One entry: safetensors writes several in a random order, and equal saves are to be equal files.
    metadata = {"tied": json.dumps(ties, sort_keys=True)} if ties else None
    data = {NETWORK: safetensors.torch.save(dict(network), metadata), REST: safetensors.torch.save(dict(rest))}
    checksums = {name: hashlib.sha256(d).hexdigest() for name, d in data.items()}
    version = sys.modules[__name__.partition(".")[0]].__version__
    head = {"format": FORMAT, "format_version": VERSION, "library_version": version, "sha256": checksums}
    data[DESCRIPTION] = (_text(sealed({**head, **content})) + "\n").encode()
    card = folder / CARD
    if card.is_file() and not card.read_bytes().startswith(CARD_HEAD.encode()):
        data[CARD] = card.read_bytes()
    try:
        _write(folder, data)
    except OSError as error:
        raise PersistenceError(f"{folder} can't be written: {error.strerror or error}. Give another folder.") from error


def _write(folder: Path, data: Mapping[str, bytes]) -> None:
    """Put a folder of files in the place of another, or of none; the old one comes back if that fails."""
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
    ready, old = partial / "ready", partial / "old"
    try:
        ready.mkdir()  # mkdtemp lets nobody else in, mkdir those that the user wants to
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
    """The description, the state dict and the other tensors of a save.

    Raises
    ------
    PersistenceError
        Naming the file, what is wrong with it and what to do.
    """
    _check_folder(folder)
    content = _description(folder / DESCRIPTION)
    tensors = []
    for name in (NETWORK, REST):
        data = (folder / name).read_bytes()
        known = content.get("sha256")
        if not isinstance(known, dict) or hashlib.sha256(data).hexdigest() != known.get(name):
            raise PersistenceError(
                f"{folder / name} is not what was saved with {DESCRIPTION} (another checksum): it is cut off, damaged or of "
                "another save. Copy the folder again, as a whole."
            )
        tensors.append(read_tensors(folder / name, data))
    return content, tensors[0], tensors[1]


def read_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file; a PersistenceError if these are damaged."""
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise PersistenceError(
            f"{path} is no readable safetensors file ({error}): it is cut off or damaged. Copy it again."
        ) from error


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise PersistenceError(f"There is no folder {folder}; load reads what save(folder) wrote.")
    if not folder.is_dir():
        what = "load reads the folder that save(folder) wrote, not one file"
        if folder.suffix == ".safetensors":
            what += "; a network alone is read by safetensors.torch.load_model(model, path)"
        elif folder.suffix in _PICKLES:
            what = "it looks like a pickle, which can run code and is not read here. Give the folder that save(folder) wrote"
        raise PersistenceError(f"{folder} is a file: {what}.")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise PersistenceError(f"{folder} holds no complete save: {missing} missing of {list(FILES)}.")


def _description(path: Path) -> dict[str, Any]:
    """The description, which must be as it was written."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise PersistenceError(f"{path} is damaged: {error}. Copy the folder again, or save anew.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PersistenceError(f"{path} was not written by sklearn_wbfuse; load reads what save(folder) wrote.")
    if content.get("format_version") != VERSION:
        raise PersistenceError(
            f"{path} has format version {content.get('format_version')}, written by sklearn_wbfuse "
            f"{content.get('library_version')}; this one reads {VERSION}. Update sklearn_wbfuse."
        )
    if content != sealed({k: v for k, v in content.items() if k != "checksum"}):
        raise PersistenceError(
            f"{path} was changed after it was saved (another checksum). Load the original and change parameters by set_params."
        )
    return content


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A description with its own checksum."""
    canonical = json.dumps(content, sort_keys=True, allow_nan=False)
    return {**content, "checksum": hashlib.sha256(canonical.encode()).hexdigest()}


def _text(value: Any, indent: int = 0) -> str:
    """Indented JSON, in which short lists and objects stand on one line."""
    line = json.dumps(value, allow_nan=False)
    if len(line) + indent <= _WIDTH or not isinstance(value, (list, dict)):
        return line
    if isinstance(value, dict):
        parts, ends = [f"{json.dumps(k)}: {_text(v, indent + 1)}" for k, v in value.items()], "{}"
    else:
        parts, ends = [_text(v, indent + 1) for v in value], "[]"
    inner = ",".join(f"\n{' ' * (indent + 1)}{part}" for part in parts)
    return f"{ends[0]}{inner}\n{' ' * indent}{ends[1]}"
