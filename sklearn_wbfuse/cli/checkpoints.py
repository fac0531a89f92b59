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

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..exceptions import DiscoveryError, FusionError
from ..graph import Architecture, plain_copy, sizes_in, unwrap
from ..graph.parametrized import without_pruning
from ..persistence import FILES, completed, fill, read_folder, read_tensors, restored_network

__all__ = ["Checkpoint", "Template", "network_of", "read"]

_NESTS = ("state_dict", "model_state_dict", "model", "state", "net", "network", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel and AveragedModel, of torch.compile, of Lightning
_COUNTER = "n_averaged"  # of AveragedModel, beside the network


@dataclass
class Checkpoint:
    """What a file holds: a state dict, or a whole network if the user trusts pickles; and what was done to get at it."""

    path: Path
    state: Mapping[str, Tensor]
    sha256: str
    network: nn.Module | None = None
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


def read(path: Path, trust: bool) -> Checkpoint:
    """The state dict in a file, or in the folder of a saved fusion.

    Raises
    ------
    FusionError
        Naming the file, what is wrong with it and what to do.
    """
    if path.is_dir():
        content, state, _ = read_folder(path)
        return Checkpoint(path, state, content["sha256"][FILES[0]], notes=["a saved fusion"])
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        return Checkpoint(path, read_tensors(path, data), hashlib.sha256(data).hexdigest())
    found = _torch_load(path, trust)
    checkpoint = Checkpoint(path, {}, _sha256(path))
    if isinstance(found, nn.Module):
        plain = unwrap(found)
        checkpoint.network = unwrap(plain.module if isinstance(plain, AveragedModel) else plain).eval()
        checkpoint.notes.append("a pickled network")
    else:
        checkpoint.state = _unnested(found, checkpoint)
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
        own = template.network.state_dict()
        given = _own_names(checkpoint, template.network)
        state = without_pruning(given, own)
        if state.keys() != given.keys():
            checkpoint.notes.append("with the masks of its pruning applied")
        return _filled(state, template)
    except DiscoveryError:  # of the template alone
        raise
    except FusionError as error:
        raise type(error)(f"{checkpoint.path} does not fit to --model: {error}") from error


def _filled(state: Mapping[str, Tensor], template: Template) -> nn.Module:
    own = template.network.state_dict()
    _check_values(state, own)
    resizable = all(n in own and t.dim() == own[n].dim() for n, t in state.items())
    if resizable and any(t.shape != own[n].shape for n, t in state.items()):
        full = completed(state, template.network)
        if set(full) == set(own):
            architecture = template.architecture
            plain = without_pruning(full, architecture.graph.tensors)
            if plain.keys() >= architecture.graph.tensors.keys():
                sizes = sizes_in({n: t.shape for n, t in plain.items()}, architecture.graph)
                return restored_network(template.network, architecture.resized(sizes), full, (), None)
    network = plain_copy(template.network, plain=False)
    fill(network, state)
    return network


def _check_values(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise a FusionError if a tensor can't be the weight that the network has under its name."""
    for name, tensor in state.items():
        if tensor.layout != torch.strided:
            raise FusionError(f"{name!r} is stored as {tensor.layout}; save it as a dense tensor: .to_dense().")
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            raise FusionError(f"{name!r} holds {tensor.dtype}, the network {own[name].dtype}; save it as such: .float().")


def _own_names(checkpoint: Checkpoint, network: nn.Module) -> dict[str, Tensor]:
    """The state dict without the prefixes of wrappers, unless the network itself has them."""
    state, own = dict(checkpoint.state), set(network.state_dict())
    while True:
        rest = {n: t for n, t in state.items() if n != _COUNTER or n in own}
        prefix = next((p for p in _PREFIXES if rest and all(n.startswith(p) for n in rest)), None)
        short = {} if prefix is None else {n.removeprefix(prefix): t for n, t in rest.items()}
        if prefix is None or len(own & set(short)) < len(own & set(state)):
            return state
        state = short
        checkpoint.notes.append(f"without the prefix {prefix!r}")


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
    if foreign and not trust:
        return FusionError(
            f"{path} is a pickle of more than tensors ({foreign[1]}), which can run code when it is read; nothing was run. "
            "Save the state dict alone, torch.save(model.state_dict(), path), or add --trust-pickle if you made the file."
        )
    lines = text.partition("WeightsUnpickler error:")[2].strip().splitlines() or text.strip().splitlines()
    why = lines[0].strip() if lines else type(error).__name__
    return FusionError(f"{path} is no readable PyTorch file ({why}): it is cut off, damaged or of another kind.")


def _unnested(found: Any, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint, at the top or under a name."""
    if _is_state(found):
        return found
    nests = {k: v for k, v in found.items() if _is_state(v)} if isinstance(found, Mapping) else {}
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


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and bool(value) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
