r"""The gauge of balanced scales, in which the incoming and outgoing weights of every neuron have equal norms.

The function of a ReLU network is unchanged when a neuron is multiplied by c > 0 and the weights that read it are divided by c.
Before matching, each network is scaled to minimise :math:`\sum_p \|T_p\|^2`. The problem is convex in :math:`\log c`, so that
copies that differ by scales become equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

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
    r"""Compute the scales :math:`c_u` of the units of every scalable group that minimise :math:`\sum_p \kappa_p \|T_p\|^2`.

    The factors :math:`\kappa_p` of the energy make the result the same for a network and its wider copies. The method is
    coordinate descent: with the other groups fixed, :math:`\min_c c^{2e} N_+ + c^{-2e} N_-` has a closed form if all exponents
    are :math:`\pm e`; for other exponents, and for groups on two axes of a tensor, a damped Newton step is taken.

    Parameters
    ----------
    features : list of Feature
    arrays : list of Tensor
    sizes : mapping of str to int, optional
        Sizes of the target's groups; those of the arrays by default.
    keep : collection of str
        Groups that are not scaled.

    Returns
    -------
    dict of str to Tensor
        For each group, scales of shape (size,) in double precision.
    """
    norms_of_group: dict[str, list[_Norms]] = {}
    logs: dict[str, np.ndarray] = {}
    eps = 0.0
    for feature, array in zip(features, arrays, strict=True):
        scale = [bool(e) and g not in keep for g, e in zip(feature.groups, feature.exponents, strict=True)]
        if any(scale):
            target = array.shape if sizes is None else [sizes[g] for g in feature.groups]
            squares = torch.linalg.vector_norm(array, dim=-1).square_().mul_(kappa(feature, target, array.shape))
            fixed = [axis for axis, is_scaled in enumerate(scale) if not is_scaled]
            axes = [axis for axis, is_scaled in enumerate(scale) if is_scaled]
            norms = _norms(feature, squares.sum(fixed) if fixed else squares, axes)
            eps = max(eps, torch.finfo(array.dtype).eps)
            for axis, group in enumerate(norms.groups):
                norms_of_group.setdefault(group, [])
                norms_of_group[group] += [] if norms in norms_of_group[group] else [norms]
                logs[group] = np.zeros(norms.squares.shape[axis])
    sides_of_group = {group: _sides(group, norms) for group, norms in norms_of_group.items()}
    previous, factors = float("inf"), dict[_Key, np.ndarray]()
    for _ in range(max_iter):
        largest = 0.0
        for group, sides in sides_of_group.items():
            step = _step(sides, logs, factors)
            logs[group] = logs[group] + step
            for side in sides:
                factors.pop(side.key, None)
            largest = max(largest, float(np.abs(step).max()))
        if largest < 8 * eps or previous <= largest < 1e4 * eps:  # the limit of sums in this precision
            break
        previous = largest
    return {group: torch.as_tensor(np.exp(log), device=arrays[0].device) for group, log in logs.items()}


@dataclass(frozen=True, eq=False)
class _Norms:
    """Squared norms of a tensor along the axes that scale, on the host, with the groups and exponents of these axes."""

    squares: np.ndarray
    groups: tuple[str, ...]
    exponents: tuple[float, ...]


def _norms(feature: Feature, squares: Tensor, axes: Sequence[int]) -> _Norms:
    groups = tuple(feature.groups[a] for a in axes)
    if squares.dim() == 2 and groups[0] == groups[1]:
        squares = squares.clone().fill_diagonal_(0)  # scales do not change the diagonal of a group with itself
    return _Norms(squares.cpu().numpy(), groups, tuple(feature.exponents[a] for a in axes))


@dataclass(frozen=True, eq=False)
class _Side:
    """The norms of a tensor with the axis of one group first, and the keys of the scales that multiply the axes."""

    squares: np.ndarray
    key: _Key
    other_keys: tuple[_Key, ...]
    has_group_once: bool


def _sides(group: str, norms_of_tensors: Sequence[_Norms]) -> list[_Side]:
    sides = []
    for norms in norms_of_tensors:
        keys = list(zip(norms.groups, norms.exponents, strict=True))
        for axis, key in enumerate(keys):
            if key[0] == group:
                once = norms.groups.count(group) == 1
                sides.append(_Side(np.moveaxis(norms.squares, axis, 0), key, (*keys[:axis], *keys[axis + 1 :]), once))
    return sides


def _step(sides: Sequence[_Side], logs: Mapping[str, np.ndarray], factors: dict[_Key, np.ndarray]) -> np.ndarray:
    """Return the change of the logarithms of a group's scales; `factors` caches the powers of all scales."""
    size = len(logs[sides[0].key[0]])
    up, down, curvature = np.zeros(size), np.zeros(size), np.zeros(size)
    for side in sides:
        total = side.squares
        for key in reversed((side.key, *side.other_keys)):
            if key not in factors:
                factors[key] = np.exp(2 * key[1] * logs[key[0]])
            total = factors[key] * total if key is side.key else total @ factors[key].astype(total.dtype)
        exponent = side.key[1]
        up, down = (up + exponent * total, down) if exponent > 0 else (up, down - exponent * total)
        curvature = curvature + exponent**2 * total
    step = np.zeros(size)
    has_both = (up > 0) & (down > 0)  # the scale of a dead neuron does not matter
    exponents = {abs(side.key[1]) for side in sides}
    if not np.any(has_both):
        return step
    if len(exponents) == 1 and all(side.has_group_once for side in sides):
        step[has_both] = np.log(down[has_both] / up[has_both]) / (4 * exponents.pop())
    else:
        step[has_both] = ((down - up)[has_both] / (4 * curvature[has_both])).clip(-1, 1)
    return step


def apply_scales(features: Sequence[Feature], arrays: Sequence[Tensor], scales: Mapping[str, Tensor]) -> list[Tensor]:
    """Multiply every unit by its scale, to the power of the axis' exponent."""
    result = []
    for feature, original in zip(features, arrays, strict=True):
        array = original
        for axis, (group, exponent) in enumerate(zip(feature.groups, feature.exponents, strict=True)):
            if exponent and group in scales:
                factor = along(scales[group].pow(exponent).to(array.dtype), axis, array.dim())
                array = array * factor if array is original else array.mul_(factor)
        result.append(array)
    return result
