"""From files to networks. No pickle is read unless the user trusts it."""

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
from ..persistence import FILES, complete_ties, fill, read_folder, read_tensors, restored_network
from .names import as_held, own_names

__all__ = ["Checkpoint", "Template", "network_of", "read"]

_NESTS = ("state_dict", "model_state_dict", "model", "state", "net", "network", "weights")
_AVERAGED = "n_averaged"  # the counter of AveragedModel, beside the network
_NUMPY = (np.ndarray, np.generic)
_ARRAYS = (Tensor, *_NUMPY)
_SHOWN = 10  # names of extra entries in a message


@dataclass
class Checkpoint:
    """What a file holds: a state dict, or a whole network if the user trusts pickles; and what was done to get at it."""

    path: Path
    state: Mapping[str, Any]
    sha256: str
    network: nn.Module | None = None
    ignore_extra: bool = False  # whether entries that the network does not have are left out
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.path} ({', '.join(self.notes)})" if self.notes else str(self.path)


class Template:
    """The network that a factory makes, and its architecture once that is needed."""

    def __init__(self, network: nn.Module, inputs: Any = None):
        self.network, self.inputs = network, inputs

    @functools.cached_property
    def architecture(self) -> Architecture:
        """Its neuron groups, in its own widths."""
        return Architecture.of(self.network, self.inputs, warn=False)


def read(path: Path, trust: bool, ignore_extra: bool = False) -> Checkpoint:
    """The state dict in a file, or in the folder of a saved fusion.

    Parameters
    ----------
    path : Path
    trust : bool
        Whether pickles are read, which can run code.
    ignore_extra : bool
        Whether what the network does not have is left out.

    Raises
    ------
    FusionError
        Naming the file, what is wrong with it and what to do.
    """
    if path.is_dir():
        content, state, _ = read_folder(path)
        return Checkpoint(path, state, content["sha256"][FILES[0]], None, ignore_extra, ["a saved fusion"])
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        return Checkpoint(path, read_tensors(path, data), hashlib.sha256(data).hexdigest(), None, ignore_extra)
    found = _torch_load(path, trust)
    checkpoint = Checkpoint(path, {}, _sha256(path), None, ignore_extra)
    if isinstance(found, nn.Module):
        plain = unwrap(found)
        checkpoint.network = unwrap(plain.module if isinstance(plain, AveragedModel) else plain).eval()
        checkpoint.notes.append("a pickled network")
    else:
        checkpoint.state = _as_tensors(_unnested(found, checkpoint))
    return checkpoint


def network_of(checkpoint: Checkpoint, template: Template | None) -> nn.Module:
    """The network of a checkpoint: that of the template, in the widths of the state dict.

    Raises
    ------
    FusionError
        There is no template, or tensors differ in more than widths: the message names file, tensor and shapes.
    """
    if checkpoint.network is not None:
        return checkpoint.network
    if template is None:
        raise FusionError(
            f"{checkpoint.path} holds tensors but not the network that they belong to; name its class or a function that makes "
            "it: --model package.module:Net, or --model file.py:Net."
        )
    try:
        return _filled(_fitted(checkpoint, template.network), template)
    except DiscoveryError:  # of the template alone
        raise
    except FusionError as error:
        raise type(error)(f"{checkpoint.path} does not fit to --model: {error}") from error


def _fitted(checkpoint: Checkpoint, network: nn.Module) -> dict[str, Tensor]:
    """The state dict in the names and kinds of a network's own; notes say what was done to it."""
    stored, own = checkpoint.state, network.state_dict()
    names = own_names([n for n, t in stored.items() if isinstance(t, Tensor)], own)
    stems = {old.removesuffix(new) for old, new in names.items()}
    prefix = stems.pop() if len(stems) == 1 and all(old.endswith(new) for old, new in names.items()) else None
    changed = next((f"{old!r} as {new!r}" for old, new in names.items() if old != new), None)
    if changed is not None:
        checkpoint.notes.append(f"names such as {changed}" if prefix is None else f"without the prefix {prefix!r}")
    given = {new: stored[old] for old, new in names.items()}
    state = apply_pruning_masks(given, own)
    if state.keys() != given.keys():
        checkpoint.notes.append("with the masks of its pruning applied")
    versions = {names[n].rpartition(".")[0]: _version(stored, n.rpartition(".")[0]) for n in names}
    full = as_held(state, network, versions)
    beside = [n for n in stored if n not in names and n != _AVERAGED]
    within = [n for n in full if n not in own]
    if not beside and not within:
        return full
    if not complete_ties(full, network).keys() >= own.keys():
        return full | {n: stored[n] for n in beside}  # for `fill` to say what differs
    former = {new: old for old, new in names.items()}
    extra = [*beside, *(former.get(n, n) for n in within)]
    shown = ", ".join(map(repr, extra[:_SHOWN])) + (f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else "")
    if not checkpoint.ignore_extra:
        raise FusionError(
            f"it holds all tensors of the {type(network).__name__}, and more: {shown}. If these are no part of the network, as "
            "the weights of a loss, leave them out by --ignore-extra; else name the network that has them."
        )
    checkpoint.notes.append(f"without {shown}")
    return {n: t for n, t in full.items() if n in own}


def _version(state: Mapping[str, Any], path: str) -> int | None:
    """The version of a module, which state dicts keep beside their tensors; None if it is not known."""
    return getattr(state, "_metadata", {}).get(path, {}).get("version")


def _filled(state: Mapping[str, Tensor], template: Template) -> nn.Module:
    own = template.network.state_dict()
    resizable = all(n in own and t.dim() == own[n].dim() for n, t in state.items())
    if resizable and any(t.shape != own[n].shape for n, t in state.items()):
        full = complete_ties(state, template.network)
        if set(full) == set(own):
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
        found = torch.load(path, map_location="cpu", weights_only=not trust)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # pickles raise anything
        raise _unreadable(path, trust, error) from error
    if isinstance(found, torch.jit.ScriptModule):
        raise _scripted(path)
    return found


def _scripted(path: Path) -> FusionError:
    return FusionError(
        f"{path} is a TorchScript archive, whose code can't be fused; save its state dict: "
        "torch.save(torch.jit.load(path).state_dict(), other_path)."
    )


def _unreadable(path: Path, trust: bool, error: Exception) -> FusionError:
    """What to say of a file that PyTorch does not read."""
    text = str(error)
    if "TorchScript" in text:
        return _scripted(path)
    if trust and "magic number" in text:
        return FusionError(f"{path} was not written by torch.save, perhaps by pickle.dump; write it by torch.save(model, path).")
    foreign = re.search(r"(?:GLOBAL|global) ([\w.]+\.[\w.]+)", text) if isinstance(error, pickle.UnpicklingError) else None
    if isinstance(error, (AttributeError, ImportError)):
        return FusionError(
            f"{path} needs the code that it was pickled with: {text}. Where that runs, save the state dict instead: "
            "torch.save(model.state_dict(), path)."
        )
    if foreign and not trust and foreign[1].startswith("numpy"):
        return FusionError(
            f"{path} holds NumPy arrays ({foreign[1]}), for which code would run when it is read; nothing was run. Save tensors, "
            "torch.save({n: torch.as_tensor(a) for n, a in state.items()}, path), or add --trust-pickle if you made the file."
        )
    if foreign and not trust:
        return FusionError(
            f"{path} is a pickle of more than tensors ({foreign[1]}), which can run code when it is read; nothing was run. "
            "Save the state dict alone, torch.save(model.state_dict(), path), or add --trust-pickle if you made the file."
        )
    lines = text.partition("WeightsUnpickler error:")[2].strip().splitlines() or text.strip().splitlines()
    why = lines[0].strip() if lines else type(error).__name__
    return FusionError(f"{path} is no readable PyTorch file ({why}): it is cut off, damaged or of another kind.")


def _unnested(found: Any, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The state dict in a checkpoint, at the top or under a name; one of nothing but tensors, if there is one."""
    if _is_state(found):
        return found
    states = {k: v for k, v in found.items() if _is_state(v, mixed=True)} if isinstance(found, Mapping) else {}
    if not states and _is_state(found, mixed=True):
        return found
    pure = {k: v for k, v in states.items() if _is_state(v)}
    nests = pure if pure and not any(n in states for n in _NESTS) else states
    name = next((n for n in _NESTS if n in nests), next(iter(nests), None) if len(nests) == 1 else None)
    if name is None and len(nests) > 1:
        raise FusionError(
            f"{checkpoint.path} holds several state dicts, under {', '.join(map(repr, nests))}; save one of them alone: "
            f"torch.save(checkpoint[{next(iter(nests))!r}], path)."
        )
    if name is None:
        what = f"a dict with {[*found][:6]}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise FusionError(f"{checkpoint.path} holds no state dict but {what}; save one: torch.save(model.state_dict(), path).")
    checkpoint.notes.append(f"the state dict in {name!r}")
    return nests[name]


def _is_state(value: Any, mixed: bool = False) -> bool:
    """Whether a value is a state dict, one with other values than tensors too if `mixed`."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(n, str) for n in value):
        return False
    return (any if mixed else all)(isinstance(t, _ARRAYS) for t in value.values())


def _as_tensors(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict with tensors in place of NumPy's arrays of numbers."""
    arrays = {n: np.array(v) for n, v in state.items() if isinstance(v, _NUMPY) and v.dtype.kind in "biuf"}
    return state if not arrays else {**state, **{n: torch.from_numpy(native(a)) for n, a in arrays.items()}}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
