"""Networks from files. Pickles are only read if the user trusts them."""

from __future__ import annotations

import functools
import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..data.fusion_input import native
from ..discovery import Architecture, plain_copy, sizes_in, unwrap
from ..discovery.parametrized import apply_pruning_masks
from ..exceptions import DiscoveryError, FusionError
from ..network.types import Inputs, State
from ..persistence import FILES, complete_ties, fill, read_folder, read_tensors, restored_network
from .state_dicts import convert_tensors, match_names

__all__ = ["Checkpoint", "Template", "network_of", "read_checkpoint"]

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "state", "net", "network", "weights")
_AVERAGED = "n_averaged"  # the counter that AveragedModel stores besides the network
_NUMPY = (np.ndarray, np.generic)
_ARRAYS = (Tensor, *_NUMPY)
_SHOWN = 10  # names of extra entries in a message


@dataclass
class Checkpoint:
    """The content of a file, a state dict or a pickled network that the user trusts; notes tell how it was extracted."""

    path: Path
    state: Mapping[str, Any]
    sha256: str
    network: nn.Module | None = None
    ignore_extra: bool = False  # whether to leave out entries that the network does not have
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.path} ({', '.join(self.notes)})" if self.notes else str(self.path)


class Template:
    """The network that a factory builds, and its architecture, which is discovered on first access."""

    def __init__(self, network: nn.Module, inputs: Inputs | None = None):
        self.network, self.inputs = network, inputs

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The architecture of the network, with its own widths."""
        return Architecture.of(self.network, self.inputs, warn=False)


def read_checkpoint(path: Path, trust: bool, ignore_extra: bool = False) -> Checkpoint:
    """Read the state dict in a file or in the folder of a saved fusion.

    Parameters
    ----------
    path : Path
    trust : bool
        Whether to read pickles, which can run code.
    ignore_extra : bool
        Whether to leave out entries that the network does not have.

    Raises
    ------
    FusionError
        If the file cannot be read; the message names it and says what to do.
    """
    if path.is_dir():
        description, state, _ = read_folder(path)
        return Checkpoint(path, state, description["sha256"][FILES[0]], None, ignore_extra, ["a saved fusion"])
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        return Checkpoint(path, read_tensors(path, data), hashlib.sha256(data).hexdigest(), None, ignore_extra)
    content = _torch_load(path, trust)
    checkpoint = Checkpoint(path, {}, _sha256(path), None, ignore_extra)
    if isinstance(content, nn.Module):
        plain = unwrap(content)
        checkpoint.network = unwrap(plain.module if isinstance(plain, AveragedModel) else plain).eval()
        checkpoint.notes.append("a pickled network")
    else:
        checkpoint.state = _as_tensors(_extract_state(content, checkpoint))
    return checkpoint


def network_of(checkpoint: Checkpoint, template: Template | None) -> nn.Module:
    """Return the network of a checkpoint: a copy of the template with the values and widths of the state dict.

    Raises
    ------
    FusionError
        If there is no template, or tensors differ in more than widths; the message names file, tensor and shapes.
    """
    if checkpoint.network is not None:
        return checkpoint.network
    if template is None:
        raise FusionError(
            f"{checkpoint.path} contains tensors, but not the code of their network. Name its class or a function that builds "
            "it: --model package.module:Net, or --model file.py:Net."
        )
    try:
        return _build_network(_adapt_state(checkpoint, template.network), template)
    except DiscoveryError:  # concerns only the template
        raise
    except FusionError as error:
        raise type(error)(f"{checkpoint.path} does not match --model: {error}") from error


def _adapt_state(checkpoint: Checkpoint, network: nn.Module) -> dict[str, Tensor]:
    """Convert the state dict of a checkpoint to the names and dtypes of a network; add notes about the changes."""
    stored, expected = checkpoint.state, network.state_dict()
    names = match_names([n for n, t in stored.items() if isinstance(t, Tensor)], expected)
    stems = {old.removesuffix(new) for old, new in names.items()}
    prefix = stems.pop() if len(stems) == 1 and all(old.endswith(new) for old, new in names.items()) else None
    change = next((f"{old!r} as {new!r}" for old, new in names.items() if old != new), None)
    if change is not None:
        checkpoint.notes.append(f"names such as {change}" if prefix is None else f"without the prefix {prefix!r}")
    renamed = {new: stored[old] for old, new in names.items()}
    state = apply_pruning_masks(renamed, expected)
    if state.keys() != renamed.keys():
        checkpoint.notes.append("with its pruning masks applied")
    versions = {names[n].rpartition(".")[0]: _version(stored, n.rpartition(".")[0]) for n in names}
    full = convert_tensors(state, network, versions)
    unmatched = [n for n in stored if n not in names and n != _AVERAGED]
    surplus = [n for n in full if n not in expected]
    if not unmatched and not surplus:
        return full
    if not complete_ties(full, network).keys() >= expected.keys():
        return full | {n: stored[n] for n in unmatched}  # `fill` then raises and names the differences
    stored_names = {new: old for old, new in names.items()}
    extra = [*unmatched, *(stored_names.get(n, n) for n in surplus)]
    shown = ", ".join(map(repr, extra[:_SHOWN])) + (f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else "")
    if not checkpoint.ignore_extra:
        raise FusionError(
            f"it contains all tensors of the {type(network).__name__}, and further entries: {shown}. If these are not part "
            "of the network, such as the weights of a loss, leave them out with --ignore-extra. Otherwise name the network that "
            "has them."
        )
    checkpoint.notes.append(f"without {shown}")
    return {n: t for n, t in full.items() if n in expected}


def _version(state: Mapping[str, Any], path: str) -> int | None:
    """Return the version of a module, which state dicts store in their metadata; None if it is unknown."""
    return getattr(state, "_metadata", {}).get(path, {}).get("version")


def _build_network(state: State, template: Template) -> nn.Module:
    """Return a copy of the template with the values of a state dict, resized if widths differ."""
    expected = template.network.state_dict()
    resizable = all(n in expected and t.dim() == expected[n].dim() for n, t in state.items())
    if resizable and any(t.shape != expected[n].shape for n, t in state.items()):
        full = complete_ties(state, template.network)
        if set(full) == set(expected):
            architecture = template.architecture
            plain = apply_pruning_masks(full, architecture.spec.tensors)
            if plain.keys() >= architecture.spec.tensors.keys():
                sizes = sizes_in({n: t.shape for n, t in plain.items()}, architecture.spec)
                return restored_network(template.network, architecture.resized(sizes), full, (), None)
    network = plain_copy(template.network, plain=False)
    fill(network, state)
    return network


def _torch_load(path: Path, trust: bool) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # pickles raise errors of any class
        raise _read_error(path, trust, error) from error
    if isinstance(content, torch.jit.ScriptModule):
        raise _script_error(path)
    return content


def _script_error(path: Path) -> FusionError:
    return FusionError(
        f"{path} is a TorchScript archive, which cannot be fused. Save its state dict: "
        "torch.save(torch.jit.load(path).state_dict(), other_path)."
    )


def _read_error(path: Path, trust: bool, error: Exception) -> FusionError:
    """Return the error for a file that PyTorch does not read."""
    text = str(error)
    if "TorchScript" in text:
        return _script_error(path)
    if trust and "magic number" in text:
        return FusionError(
            f"{path} must be written by torch.save. Got another format, such as that of pickle.dump. Use torch.save(model, path)."
        )
    foreign = re.search(r"(?:GLOBAL|global) ([\w.]+\.[\w.]+)", text) if isinstance(error, pickle.UnpicklingError) else None
    if isinstance(error, (AttributeError, ImportError)):
        return FusionError(
            f"{path} needs the code with which it was pickled: {text}. Where this code is available, save the state dict "
            "instead: torch.save(model.state_dict(), path)."
        )
    if foreign and not trust and foreign[1].startswith("numpy"):
        return FusionError(
            f"{path} contains NumPy arrays ({foreign[1]}); reading them can run code, so nothing was run. Save tensors, "
            "torch.save({n: torch.as_tensor(a) for n, a in state.items()}, path), or add --trust-pickle if you created the file."
        )
    if foreign and not trust:
        return FusionError(
            f"{path} is a pickle of more than tensors ({foreign[1]}); reading it can run code, so nothing was run. Save only the "
            "state dict, torch.save(model.state_dict(), path), or add --trust-pickle if you created the file."
        )
    lines = text.partition("WeightsUnpickler error:")[2].strip().splitlines() or text.strip().splitlines()
    reason = lines[0].strip() if lines else type(error).__name__
    return FusionError(
        f"{path} is not a readable PyTorch file ({reason}). It is truncated, damaged or of another format; save it again by "
        "torch.save(model.state_dict(), path)."
    )


def _extract_state(content: Any, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the state dict in the content of a file, at the top level or under a key; preferably one of tensors only."""
    if _is_state(content):
        return content
    mixed = {k: v for k, v in content.items() if _is_state(v, mixed=True)} if isinstance(content, Mapping) else {}
    if not mixed and _is_state(content, mixed=True):
        return content
    pure = {k: v for k, v in mixed.items() if _is_state(v)}
    states = pure if pure and not any(key in mixed for key in _STATE_KEYS) else mixed
    key = next((k for k in _STATE_KEYS if k in states), next(iter(states), None) if len(states) == 1 else None)
    if key is None and len(states) > 1:
        raise FusionError(
            f"{checkpoint.path} must contain one state dict. Got several, under {', '.join(map(repr, states))}. Save only one of "
            f"them: torch.save(checkpoint[{next(iter(states))!r}], path)."
        )
    if key is None:
        kind = f"a dict with {[*content][:6]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise FusionError(
            f"{checkpoint.path} must contain a state dict. Got {kind}. Save one: torch.save(model.state_dict(), path)."
        )
    checkpoint.notes.append(f"the state dict in {key!r}")
    return states[key]


def _is_state(value: Any, mixed: bool = False) -> bool:
    """Return whether a value is a state dict; if `mixed`, also one in which only some values are tensors."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(n, str) for n in value):
        return False
    return (any if mixed else all)(isinstance(t, _ARRAYS) for t in value.values())


def _as_tensors(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert the NumPy arrays of numbers in a state dict to tensors."""
    arrays = {n: np.array(v) for n, v in state.items() if isinstance(v, _NUMPY) and v.dtype.kind in "biuf"}
    return state if not arrays else {**state, **{n: torch.from_numpy(native(a)) for n, a in arrays.items()}}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
