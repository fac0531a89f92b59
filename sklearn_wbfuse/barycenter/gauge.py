r"""Scales: the gauge in which every neuron's incoming and outgoing weights balance.

ReLU networks keep their function when a neuron is multiplied by c > 0 and its readers are divided by c. Before matching,
each network takes the scales that minimise :math:`\sum_p \|T_p\|^2`; the problem is convex in :math:`\log c`, so copies that
differ by scales become equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..groups import along
from .energy import kappa
from .view import Feature

__all__ = ["balance", "scaled"]


def balance(
    described: Sequence[Feature],
    arrays: Sequence[Tensor],
    sizes: Mapping[str, int] | None = None,
    keep: Collection[str] = (),
    *,
    max_iter: int = 1000,
    tol: float = 1e-13,
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
    norms = []
    for feature, array in zip(described, arrays, strict=True):
        target = array.shape if sizes is None else [sizes[g] for g in feature.groups]
        norms.append(kappa(feature, target, array.shape) * array.to(torch.float64).pow(2).sum(-1))
    logs: dict[str, Tensor] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for p, feature in enumerate(described):
        for axis, (group, exponent) in enumerate(zip(feature.groups, feature.exponents, strict=True)):
            if exponent and group not in keep:
                places.setdefault(group, []).append((p, axis))
                logs[group] = torch.zeros(norms[p].shape[axis], dtype=torch.float64, device=norms[p].device)
    for _ in range(max_iter):
        largest = 0.0
        for group, where in places.items():
            step = _step(group, where, described, norms, logs)
            logs[group] = logs[group] + step
            largest = max(largest, float(step.abs().max()))
        if largest < tol:
            break
    return {group: log.exp() for group, log in logs.items()}


def _step(
    group: str,
    where: Sequence[tuple[int, int]],
    described: Sequence[Feature],
    norms: Sequence[Tensor],
    logs: Mapping[str, Tensor],
) -> Tensor:
    size = logs[group].shape
    up, down, curvature = (torch.zeros(size, dtype=torch.float64, device=logs[group].device) for _ in range(3))
    exponents = set()
    for p, axis in where:
        feature = described[p]
        weighted = norms[p]
        for a, (name, exponent) in enumerate(zip(feature.groups, feature.exponents, strict=True)):
            if exponent and name in logs:
                weighted = weighted * along((2 * exponent * logs[name]).exp(), a, weighted.dim())
        if feature.groups.count(group) > 1:  # the diagonal of a group on both sides does not change
            weighted = weighted - torch.diag_embed(torch.diagonal(weighted, dim1=0, dim2=1)) if weighted.dim() == 2 else weighted
        total = weighted.sum([a for a in range(weighted.dim()) if a != axis]) if weighted.dim() > 1 else weighted
        exponent = feature.exponents[axis]
        exponents.add(abs(exponent))
        (up if exponent > 0 else down).add_(abs(exponent) * total)
        curvature += exponent**2 * total
    alive = (up > 0) & (down > 0)
    if len(exponents) == 1 and all(described[p].groups.count(group) == 1 for p, _ in where):
        step = (down / up).log() / (4 * exponents.pop())
    else:
        step = ((down - up) / (4 * curvature)).clamp(-1, 1)
    return torch.where(alive, step, torch.zeros_like(step))


def scaled(described: Sequence[Feature], arrays: Sequence[Tensor], scales: Mapping[str, Tensor]) -> list[Tensor]:
    """The arrays after multiplying every unit by its scale to the axis' exponent."""
    result = []
    for feature, array in zip(described, arrays, strict=True):
        for axis, (group, exponent) in enumerate(zip(feature.groups, feature.exponents, strict=True)):
            if exponent and group in scales:
                array = array * along(scales[group].pow(exponent).to(array.dtype), axis, array.dim())
        result.append(array)
    return result
