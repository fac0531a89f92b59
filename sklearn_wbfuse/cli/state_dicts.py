"""Stored state dicts with the names and dtypes of a network, which wrappers and older versions of PyTorch may have changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..exceptions import FusionError
from ..network.types import State

__all__ = ["convert_tensors", "match_names"]

# Names under which wrappers hold a module: DataParallel and AveragedModel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_COUNTER = "num_batches_tracked"  # of batch norms since version 2 of their state dicts


def match_names(stored: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Map stored names to those of a network, without the names of wrappers and without a common prefix.

    The prefix and the wrappers are chosen such that most names match. Names outside of the prefix are omitted; wrappers and
    prefixes remain if more names match with them.

    Raises
    ------
    FusionError
        If the names contain several networks that match equally well.
    """
    names, tree = set(expected), _tree(expected)
    candidates = [(path, _without_wrappers(node, tree, "", names)) for path, node in _nodes(_tree(stored), "")]
    most = max(_n_matching(mapping.values(), names) for _, mapping in candidates)
    best = [(path, mapping) for path, mapping in candidates if _n_matching(mapping.values(), names) == most]
    prefix, chosen = best[0]
    others = [path for path, mapping in best if not mapping.keys() & chosen.keys()]
    if others and prefix and 2 * most > len(names):
        raise FusionError(
            f"it contains several matching networks, under {', '.join(map(repr, [prefix, *others]))}. Save only one of them: "
            f"torch.save({{n.removeprefix({prefix!r}): t for n, t in state_dict.items() if n.startswith({prefix!r})}}, path)."
        )
    return chosen


def _tree(names: Iterable[str]) -> dict[Any, Any]:
    """Return names as a tree of their parts; the key None of a node holds its full name."""
    root: dict[Any, Any] = {}
    for name in names:
        node = root
        for part in name.split("."):
            node = node.setdefault(part, {})
        node[None] = name
    return root


def _nodes(tree: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield all nodes with their prefixes, outer ones first."""
    level = [(path, tree)]
    while level:
        yield from level
        level = [(f"{path}{part}.", child) for path, node in level for part, child in node.items() if part is not None]


def _without_wrappers(stored: Mapping[Any, Any], expected: Mapping[Any, Any], path: str, names: set[str]) -> dict[str, str]:
    """Map the names of a stored subtree to a path of the network; remove wrappers if more names match without them."""
    mapping: dict[str, str] = {}
    for part, child in stored.items():
        if part is None:
            mapping[child] = path
        else:
            mapping |= _without_wrappers(child, expected.get(part, {}), f"{path}.{part}" if path else part, names)
    wrapped = stored[next(iter(stored))] if len(stored) == 1 and next(iter(stored)) in _WRAPPERS else None
    if wrapped is None:
        return mapping
    unwrapped = _without_wrappers(wrapped, expected, path, names)
    return unwrapped if _n_matching(unwrapped.values(), names) > _n_matching(mapping.values(), names) else mapping


def _n_matching(candidates: Iterable[str], names: set[str]) -> int:
    """Return the number of candidates among the names of a network, after removing the suffixes of pruned tensors."""
    return len({re.sub("_(orig|mask)$", "", n) if n not in names else n for n in candidates} & names)


def convert_tensors(state: State, network: nn.Module, versions: Mapping[str, int | None]) -> dict[str, Tensor]:
    """Convert a state dict as ``load_state_dict`` does.

    Numbers of shape (1,) become scalars, whole numbers that are stored as floats become integers, and batch norms that were
    saved before version 2 receive counters.

    Parameters
    ----------
    state : dict of str to Tensor
    network : Module
    versions : dict of str to int or None
        Versions of the saved modules, None if unknown.

    Raises
    ------
    FusionError
        If a tensor cannot be converted to the one that the network has under its name.
    """
    converted, expected = dict(state), network.state_dict()
    for path, module in network.named_modules():
        name = f"{path}.{_COUNTER}".lstrip(".")
        if isinstance(module, _NormBase) and name in expected and (versions.get(path) or 1) < 2:
            converted.setdefault(name, expected[name])
    for name, tensor in state.items():
        if tensor.layout != torch.strided:
            raise FusionError(f"{name!r} must be a dense tensor. Got {tensor.layout}. Save it after .to_dense().")
        if name in expected:
            converted[name] = _convert(name, tensor, expected[name])
    return converted


def _convert(name: str, tensor: Tensor, expected: Tensor) -> Tensor:
    """Return a tensor with the kind of dtype, and for single numbers the shape, that the network has."""
    if expected.dim() == 0 and tensor.shape == (1,):
        tensor = tensor[0]
    if expected.is_floating_point() or expected.is_complex():
        if not tensor.is_floating_point() and not tensor.is_complex():
            raise FusionError(
                f"{name!r} must be floating-point, as in the network ({expected.dtype}). Got {tensor.dtype}. Save it "
                "after .float()."
            )
        return tensor
    whole = tensor.to(expected.dtype)
    if not name.endswith(_COUNTER) and not torch.equal(whole.to(tensor.dtype), tensor):
        raise FusionError(
            f"{name!r} must contain {expected.dtype}, as in the network. Got {tensor.dtype} with values that {expected.dtype} "
            f"cannot represent. Save it as {expected.dtype}."
        )
    return whole
