"""From the names and kinds of stored tensors to those of a network, where wrappers and older versions of PyTorch changed them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..exceptions import FusionError

__all__ = ["as_held", "own_names"]

# Modules that hold one other: of DataParallel and AveragedModel, of torch.compile, of FSDP, of activation checkpoints.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_COUNTER = "num_batches_tracked"  # of batch norms, since their version 2


def own_names(stored: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Stored names -> those of the network that they fit best, without wrappers and without what comes before the network.

    Names that stand beside the network are left out. Nothing is taken away that does not make more names fit.

    Raises
    ------
    FusionError
        If several networks are stored that fit alike.
    """
    names, tree = set(own), _tree(own)
    found = [(path, _renamed(node, tree, "", names)) for path, node in _nodes(_tree(stored), "")]
    best = max(_fitting(f.values(), names) for _, f in found)
    prefix, chosen = next((path, f) for path, f in found if _fitting(f.values(), names) == best)
    others = [path for path, f in found if _fitting(f.values(), names) == best and not f.keys() & chosen.keys()]
    if others and prefix and 2 * best > len(names):
        raise FusionError(
            f"it holds several networks that fit, under {', '.join(map(repr, [prefix, *others]))}; save one of them alone: "
            f"torch.save({{n.removeprefix({prefix!r}): t for n, t in state_dict.items() if n.startswith({prefix!r})}}, path)."
        )
    return chosen


def _tree(names: Iterable[str]) -> dict[Any, Any]:
    """Names by their parts; a full name stands under None."""
    root: dict[Any, Any] = {}
    for name in names:
        node = root
        for part in name.split("."):
            node = node.setdefault(part, {})
        node[None] = name
    return root


def _nodes(tree: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All nodes with their prefixes, outer ones first."""
    level = [(path, tree)]
    while level:
        yield from level
        level = [(f"{path}{part}.", child) for path, node in level for part, child in node.items() if part is not None]


def _renamed(stored: Mapping[Any, Any], own: Mapping[Any, Any], path: str, names: set[str]) -> dict[str, str]:
    """Names of a stored subtree, put at a path of the network; wrappers are taken off where more names fit then."""
    found: dict[str, str] = {}
    for part, child in stored.items():
        if part is None:
            found[child] = path
        else:
            found |= _renamed(child, own.get(part, {}), f"{path}.{part}" if path else part, names)
    wrapped = stored[next(iter(stored))] if len(stored) == 1 and next(iter(stored)) in _WRAPPERS else None
    if wrapped is None:
        return found
    bare = _renamed(wrapped, own, path, names)
    return bare if _fitting(bare.values(), names) > _fitting(found.values(), names) else found


def _fitting(found: Iterable[str], names: set[str]) -> int:
    """How many names a network has; those of pruned tensors count as theirs."""
    return len({re.sub("_(orig|mask)$", "", n) if n not in names else n for n in found} & names)


def as_held(state: Mapping[str, Tensor], network: nn.Module, versions: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict as ``load_state_dict`` reads it: numbers of shape (1,), whole numbers that are stored as floats, and batch
    norms without counters from before their version 2.

    Parameters
    ----------
    state : dict of str to Tensor
    network : Module
    versions : dict of str to int
        Of the modules that were saved, where that is known.

    Raises
    ------
    FusionError
        If a tensor can't be the one that the network has under its name.
    """
    found, own = dict(state), network.state_dict()
    for path, module in network.named_modules():
        name = f"{path}.{_COUNTER}".lstrip(".")
        if isinstance(module, _NormBase) and name in own and (versions.get(path) or 1) < 2:
            found.setdefault(name, own[name])
    for name, tensor in state.items():
        if tensor.layout != torch.strided:
            raise FusionError(f"{name!r} is stored as {tensor.layout}; save it as a dense tensor: .to_dense().")
        if name in own:
            found[name] = _converted(name, tensor, own[name])
    return found


def _converted(name: str, tensor: Tensor, own: Tensor) -> Tensor:
    if own.dim() == 0 and tensor.shape == (1,):
        tensor = tensor[0]
    if own.is_floating_point() or own.is_complex():
        if not tensor.is_floating_point() and not tensor.is_complex():
            raise FusionError(f"{name!r} holds {tensor.dtype}, the network {own.dtype}; save it as such: .float().")
        return tensor
    whole = tensor.to(own.dtype)
    if not name.endswith(_COUNTER) and not torch.equal(whole.to(tensor.dtype), tensor):
        raise FusionError(f"{name!r} holds {tensor.dtype} that can't be {own.dtype}, as the network has it; save it as such.")
    return whole
