"""From files and the names of factories to networks. No pickle is read unless the user trusts it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import did_you_mean
from ..exceptions import DiscoveryError, FusionError
from ..graph import Architecture, plain_copy, sizes_in, unwrap
from ..persistence import FILES, completed, fill, read_folder, read_tensors, restored_network

__all__ = ["Checkpoint", "Template", "build", "network_of", "read"]

_NESTS = ("state_dict", "model_state_dict", "model", "state", "net", "network", "weights")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


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
        state = read_folder(path)[1]
        return Checkpoint(path, state, _sha256(path / FILES[0]), notes=["a saved fusion"])
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        found: Any = read_tensors(path, data)
    else:
        found = _torch_load(path, trust)
    checkpoint = Checkpoint(path, {}, _sha256(path))
    if isinstance(found, nn.Module):
        checkpoint.network = unwrap(found).eval()
        checkpoint.notes.append("a pickled network")
    else:
        checkpoint.state = _without_prefix(_unnested(found, checkpoint), checkpoint)
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
        return _filled(completed(checkpoint.state, template.network), template)
    except DiscoveryError:  # of the template alone
        raise
    except FusionError as error:
        raise type(error)(f"{checkpoint.path} does not fit to --model: {error}") from error


def _filled(state: Mapping[str, Tensor], template: Template) -> nn.Module:
    shapes = {name: t.shape for name, t in template.network.state_dict().items()}
    resizable = set(state) == set(shapes) and all(t.dim() == len(shapes[n]) for n, t in state.items())
    if not resizable or all(shapes[n] == t.shape for n, t in state.items()):
        network = plain_copy(template.network, plain=False)
        fill(network, state)
        return network
    own = template.architecture
    sizes = sizes_in({n: t.shape for n, t in state.items()}, own.graph)
    return restored_network(template.network, own.resized(sizes), state, (), None)


def build(name: str) -> nn.Module:
    """The network that ``module:name`` or ``file.py:name`` makes, in eval mode.

    Raises
    ------
    FusionError
        Saying which part of the name is wrong, or what the factory raised.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise FusionError(f"--model must be package.module:Net or path/to/file.py:Net. Got {name!r}.")
    module = _imported(where)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise FusionError(f"--model {name}: {where} has no {attribute!r}.{hint}")
    factory = getattr(module, attribute)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise FusionError(f"--model {name} is a {type(factory).__name__}; name a class or a function that makes a network.")
    try:
        network = factory()
    except Exception as error:  # the user's code
        raise FusionError(
            f"--model {name}, called without arguments, raised {type(error).__name__}: {error}. Name a function that takes none."
        ) from error
    if not isinstance(network, nn.Module):
        raise FusionError(f"--model {name} made a {type(network).__name__}; it must make a torch.nn.Module.")
    return plain_copy(network, plain=False)


def _imported(where: str) -> Any:
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise FusionError(f"--model names the file {path}, which does not exist.")
    folder = str(path.absolute().parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _of_file(path) if is_file else importlib.import_module(where)
    except Exception as error:  # the user's code
        if isinstance(error, ModuleNotFoundError) and error.name and f"{where}.".startswith(f"{error.name}."):
            raise FusionError(f"--model names the module {where!r}, which is neither installed nor in {os.getcwd()}.") from error
        raise FusionError(f"--model: importing {where} raised {type(error).__name__}: {error}") from error


def _of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def _torch_load(path: Path, trust: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # pickles raise anything
        text = str(error)
        foreign = re.search(r"(?:GLOBAL|global) ([\w.]+\.[\w.]+)", text) if isinstance(error, pickle.UnpicklingError) else None
        if isinstance(error, (AttributeError, ImportError)):
            raise FusionError(
                f"{path} needs the code that it was pickled with: {text}. Where that runs, save the state dict instead: "
                "torch.save(model.state_dict(), path)."
            ) from error
        if foreign and not trust:
            raise FusionError(
                f"{path} is a pickle of more than tensors ({foreign[1]}), which can run code when it is read; nothing was run. "
                "Save the state dict alone, torch.save(model.state_dict(), path), or add --trust-pickle if you made the file."
            ) from error
        lines = text.partition("WeightsUnpickler error:")[2].strip().splitlines() or text.strip().splitlines()
        why = lines[0].strip() if lines else type(error).__name__
        raise FusionError(f"{path} is no readable PyTorch file ({why}): it is cut off, damaged or of another kind.") from error


def _unnested(found: Any, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint, at the top or under a name."""
    if _is_state(found):
        return found
    nests = {k: v for k, v in found.items() if _is_state(v)} if isinstance(found, Mapping) else {}
    name = next((n for n in _NESTS if n in nests), next(iter(nests), None) if len(nests) == 1 else None)
    if name is None:
        what = f"a dict with {[str(k) for k in found][:6]}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise FusionError(f"{checkpoint.path} holds no state dict but {what}; save one: torch.save(model.state_dict(), path).")
    checkpoint.notes.append(f"the state dict in {name!r}")
    return nests[name]


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(t, Tensor) for t in value.values())


def _without_prefix(state: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    state = dict(state)
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in state)), None):
        state = {n.removeprefix(prefix): t for n, t in state.items()}
        checkpoint.notes.append(f"without the prefix {prefix!r}")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
