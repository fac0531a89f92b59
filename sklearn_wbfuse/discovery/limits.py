"""Which symmetries parametrized tensors can't follow: an orthogonal matrix stays none when its rows are multiplied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..network.groups import LabelledTensor, relabel
from ..network.spec import NetworkSpec
from .modules import plain_copy
from .parametrized import HELD, distance, held_value, parametrized_names, pruned_names
from .restricted import drop_symmetry, without_groups

__all__ = ["within_limits"]


def within_limits(model: nn.Module, spec: NetworkSpec) -> NetworkSpec:
    """A graph less what the parametrizations of a network can't hold of it.

    Their present values are tried with neurons moved, multiplied and turned. Groups that can't be moved stay in place.

    Parameters
    ----------
    model : Module
        With its parametrizations.
    graph : Graph
    """
    names = sorted((parametrized_names(model) - pruned_names(model)).intersection(spec.tensors))
    if not names:
        return spec
    twin = plain_copy(model, plain=False).to("cpu")
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in twin.parameters()):
        twin = twin.float()
    stays: dict[str, str] = {}
    fixed: dict[str, set[str]] = {"scales": set(), "signs": set()}
    for name in names:
        holds, labels = _Trial(twin, name, spec.tensors[name]), spec.tensors[name]
        standing = {s.group: s for spans in labels.spans for s in spans}
        for family in spec.permutation_units:
            orders = [{g: order[g] for g in family} for order in (spec.orders(_rolled), spec.orders(_swapped))]
            if any(g in standing for g in family) and not all(holds(order, {}) for order in orders):
                stays |= dict.fromkeys(family, name)
        for group, span in standing.items():
            each = np.arange(spec.groups[group].size)
            if span.exponent and not holds({}, {group: 100 ** np.cos(each)}):
                fixed["scales"].add(group)
            if span.odd and not holds({}, {group: np.where(each % 2, 1.0, -1.0)}):
                fixed["signs"].add(group)
    for kind, groups in fixed.items():
        spec = drop_symmetry(spec, kind, groups)
    why = "its parametrization can't hold it with neurons moved:"
    frozen = [(name, f"{why} {_quoted(stays, name)}") for name in set(stays.values())]
    return dataclasses.replace(without_groups(spec, stays), frozen=(*spec.frozen, *sorted(frozen)))


def _quoted(stays: Mapping[str, str], name: str) -> str:
    return ", ".join(f"group {group!r}" for group, tensor in stays.items() if tensor == name)


class _Trial:
    """A parametrized tensor and its value, which is tried with neurons moved and multiplied."""

    def __init__(self, model: nn.Module, name: str, labels: LabelledTensor):
        owner, _, self.leaf = name.rpartition(".")
        self.module, self.name, self.labels = model.get_submodule(owner), name, labels
        self.value = self._held(getattr(self.module, self.leaf).detach().clone())

    def _held(self, value: Tensor) -> Tensor | None:
        try:
            return held_value(self.module, self.leaf, value, self.name).clone()
        except Exception:  # no right_inverse, say: fusion says so once it writes
            return None

    def __call__(self, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> bool:
        if self.value is None:
            return True
        wanted = relabel(self.value, self.labels, order, factor)
        held = self._held(wanted)
        return held is not None and distance(held, wanted) < HELD


def _rolled(size: int) -> np.ndarray:
    return np.roll(np.arange(size), 1)


def _swapped(size: int) -> np.ndarray:
    """With `_rolled`, it generates all permutations."""
    order = np.arange(size)
    order[:2] = order[:2][::-1]
    return order
