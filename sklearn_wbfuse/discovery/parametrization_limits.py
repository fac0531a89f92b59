"""Symmetries that parametrized tensors cannot represent: multiplying rows of an orthogonal matrix makes it nonorthogonal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..network.groups import LabelledTensor, relabel
from ..network.spec import NetworkSpec
from .modules import plain_copy
from .parametrized import TOLERANCE, distance, parametrized_names, pruned_names, representable_value
from .spec_changes import drop_groups, drop_symmetry

__all__ = ["drop_unrepresentable"]


def drop_unrepresentable(model: nn.Module, spec: NetworkSpec) -> NetworkSpec:
    """Return a spec without the groups and symmetries that the parametrizations of a network cannot represent.

    Present values are tested with neurons permuted, scaled and with other signs. Groups that cannot be permuted stay in place.

    Parameters
    ----------
    model : Module
        With its parametrizations.
    spec : NetworkSpec
    """
    names = sorted((parametrized_names(model) - pruned_names(model)).intersection(spec.tensors))
    if not names:
        return spec
    copied = plain_copy(model, plain=False).to("cpu")
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in copied.parameters()):
        copied = copied.float()
    frozen_by: dict[str, str] = {}
    refuted: dict[str, set[str]] = {"scales": set(), "signs": set()}
    for name in names:
        can_hold = _Trial(copied, name, spec.tensors[name])
        spans_of = {s.group: s for spans in spec.tensors[name].spans for s in spans}
        for unit in spec.permutation_units:
            orders = [{g: order[g] for g in unit} for order in (spec.orders(_rolled), spec.orders(_swapped))]
            if any(g in spans_of for g in unit) and not all(can_hold(order, {}) for order in orders):
                frozen_by |= dict.fromkeys(unit, name)
        for group, span in spans_of.items():
            neurons = np.arange(spec.groups[group].size)
            if span.exponent and not can_hold({}, {group: 100 ** np.cos(neurons)}):
                refuted["scales"].add(group)
            if span.odd and not can_hold({}, {group: np.where(neurons % 2, 1.0, -1.0)}):
                refuted["signs"].add(group)
    for kind, groups in refuted.items():
        spec = drop_symmetry(spec, kind, groups)
    why = "its parametrization can't hold it with neurons moved:"
    frozen = [(name, f"{why} {_quoted(frozen_by, name)}") for name in set(frozen_by.values())]
    return dataclasses.replace(drop_groups(spec, frozen_by), frozen=(*spec.frozen, *sorted(frozen)))


def _quoted(frozen_by: Mapping[str, str], name: str) -> str:
    """Return the groups that a tensor freezes, for messages."""
    return ", ".join(f"group {group!r}" for group, tensor in frozen_by.items() if tensor == name)


class _Trial:
    """A test whether a parametrization can represent its tensor with neurons permuted and multiplied."""

    def __init__(self, model: nn.Module, name: str, labels: LabelledTensor):
        owner, _, self.leaf = name.rpartition(".")
        self.module, self.name, self.labels = model.get_submodule(owner), name, labels
        self.value = self._representable(getattr(self.module, self.leaf).detach().clone())

    def _representable(self, value: Tensor) -> Tensor | None:
        try:
            return representable_value(self.module, self.leaf, value, self.name).clone()
        except Exception:  # no right_inverse, for instance: fusion reports it when it writes the tensor
            return None

    def __call__(self, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> bool:
        if self.value is None:
            return True
        relabelled = relabel(self.value, self.labels, order, factor)
        result = self._representable(relabelled)
        return result is not None and distance(result, relabelled) < TOLERANCE


def _rolled(size: int) -> np.ndarray:
    """Return a cyclic shift."""
    return np.roll(np.arange(size), 1)


def _swapped(size: int) -> np.ndarray:
    """Return a transposition, which together with `_rolled` generates all permutations."""
    order = np.arange(size)
    order[:2] = order[:2][::-1]
    return order
