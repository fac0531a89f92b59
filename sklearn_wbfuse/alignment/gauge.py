r"""Scales: the gauge in which every neuron's incoming and outgoing weights balance.

ReLU networks keep their function when a neuron is multiplied by c > 0 and its readers are divided by c. Before matching,
each network takes the scales that minimise :math:`\sum_p \|T_p\|^2`; the problem is convex in :math:`\log c`, so copies that
differ by scales become equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..network.couplings import along
from .energy import kappa
from .features import Feature

__all__ = ["apply_scales", "balance_scales"]

_Key = tuple[str, float]
"""A group and the exponent with which its scales multiply an axis."""


def balance_scales(
    features: Sequence[Feature],
    arrays: Sequence[Tensor],
    sizes: Mapping[str, int] | None = None,
    keep: Collection[str] = (),
    *,
    max_iter: int = 1000,
) -> dict[str, Tensor]:
    r"""Scales :math:`c_u` per unit of every scalable group, float64, that minimise :math:`\sum_p \kappa_p \|T_p\|^2`.

    The factors :math:`\kappa_p` of the energy make the result the same for a network and its wider copies. Coordinate descent:
    with the other groups fixed, :math:`\min_c c^{2e} N_+ + c^{-2e} N_-` has a closed form where the exponents are
    :math:`\pm e`; other exponents, and groups that stand twice in a tensor, take a damped Newton step.

    Parameters
    ----------
    described : list of Feature
    arrays : list of Tensor
    sizes : mapping of str to int, optional
        Sizes of the target's groups; the arrays' own by default.
    keep : collection of str
        Groups that are left as they are.
    """
    places: dict[str, list[_Place]] = {}
    logs: dict[str, np.ndarray] = {}
    precise = 0.0
    for feature, array in zip(features, arrays, strict=True):
        scale = [bool(e) and g not in keep for g, e in zip(feature.groups, feature.exponents, strict=True)]
        if any(scale):
            target = array.shape if sizes is None else [sizes[g] for g in feature.groups]
            norm = torch.linalg.vector_norm(array, dim=-1).square_().mul_(kappa(feature, target, array.shape))
            fixed = [axis for axis, free in enumerate(scale) if not free]
            place = _place(feature, norm.sum(fixed) if fixed else norm, [axis for axis, free in enumerate(scale) if free])
            precise = max(precise, torch.finfo(array.dtype).eps)
            for axis, group in enumerate(place.groups):
                where = places.setdefault(group, [])
                where += [] if place in where else [place]
                logs[group] = np.zeros(place.norms.shape[axis])
    sides = {group: _sides(group, where) for group, where in places.items()}
    before, factors = float("inf"), dict[_Key, np.ndarray]()
    for _ in range(max_iter):
        largest = 0.0
        for group, own in sides.items():
            step = _step(own, logs, factors)
            logs[group] = logs[group] + step
            for side in own:
                factors.pop(side.key, None)
            largest = max(largest, float(np.abs(step).max()))
        if largest < 8 * precise or before <= largest < 1e4 * precise:  # as close as sums in this precision come
            break
        before = largest
    return {group: torch.as_tensor(np.exp(log), device=arrays[0].device) for group, log in logs.items()}


@dataclass(frozen=True, eq=False)
class _Place:
    """Squared norms of a tensor along the axes that scale, on the host, and their groups and exponents."""

    norms: np.ndarray
    groups: tuple[str, ...]
    exponents: tuple[float, ...]


def _place(feature: Feature, norms: Tensor, axes: Sequence[int]) -> _Place:
    groups = tuple(feature.groups[a] for a in axes)
    if norms.dim() == 2 and groups[0] == groups[1]:
        norms = norms.clone().fill_diagonal_(0)  # the diagonal of a group on both sides does not change
    return _Place(norms.cpu().numpy(), groups, tuple(feature.exponents[a] for a in axes))


@dataclass(frozen=True, eq=False)
class _Side:
    """A tensor as one of its groups sees it: the norms with the group's axis first, and what multiplies the other axes."""

    norms: np.ndarray
    key: _Key
    others: tuple[_Key, ...]
    is_alone: bool


def _sides(group: str, where: Sequence[_Place]) -> list[_Side]:
    found = []
    for place in where:
        keys = list(zip(place.groups, place.exponents, strict=True))
        for axis, key in enumerate(keys):
            if key[0] == group:
                alone = place.groups.count(group) == 1
                found.append(_Side(np.moveaxis(place.norms, axis, 0), key, (*keys[:axis], *keys[axis + 1 :]), alone))
    return found


def _step(sides: Sequence[_Side], logs: Mapping[str, np.ndarray], factors: dict[_Key, np.ndarray]) -> np.ndarray:
    """The change of the logarithms of a group's scales; `factors` keeps the powers of all scales."""
    up: Any = 0.0
    down: Any = 0.0
    curvature: Any = 0.0
    for side in sides:
        total = side.norms
        for key in reversed((side.key, *side.others)):
            if key not in factors:
                factors[key] = np.exp(2 * key[1] * logs[key[0]])
            total = factors[key] * total if key is side.key else total @ factors[key].astype(total.dtype)
        exponent = side.key[1]
        up, down = (up + exponent * total, down) if exponent > 0 else (up, down - exponent * total)
        curvature = curvature + exponent**2 * total
    step = np.zeros(len(logs[sides[0].key[0]]))
    alive = (up > 0) & (down > 0)
    exponents = {abs(side.key[1]) for side in sides}
    if not np.any(alive):
        return step
    if len(exponents) == 1 and all(side.is_alone for side in sides):
        step[alive] = np.log(down[alive] / up[alive]) / (4 * exponents.pop())
    else:
        step[alive] = ((down - up)[alive] / (4 * curvature[alive])).clip(-1, 1)
    return step


def apply_scales(features: Sequence[Feature], arrays: Sequence[Tensor], scales: Mapping[str, Tensor]) -> list[Tensor]:
    """The arrays after multiplying every unit by its scale to the axis' exponent."""
    result = []
    for feature, array in zip(features, arrays, strict=True):
        own = array
        for axis, (group, exponent) in enumerate(zip(feature.groups, feature.exponents, strict=True)):
            if exponent and group in scales:
                factor = along(scales[group].pow(exponent).to(array.dtype), axis, array.dim())
                array = array * factor if array is own else array.mul_(factor)
        result.append(array)
    return result
