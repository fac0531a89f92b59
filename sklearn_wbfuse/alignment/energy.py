r"""The energy, its closed-form target and its cost matrices.

With :math:`A^i_p` the tensor p of model i carried to the target (output axes average, input axes split), the energy reads

.. math:: E = \sum_i \lambda_i \sum_p \alpha_p \left( \|T_p\|^2 - 2 \langle T_p, A^i_p \rangle + \kappa^i_p \|T^i_p\|^2 \right),
    \qquad \kappa^i_p = \prod_{out} \frac{n}{n^i} \prod_{in} \frac{n^i}{n},

because uniform marginals make the quadratic terms independent of the plans; the 4-way tensor of eq. (7) is never built.
It is minimal at :math:`T_p = \sum_i \lambda_i A^i_p` (eqs. 9, 45, 46), and linear in each plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..network.couplings import Coupling
from ..network.mixture import Mixture
from ..transport import Term
from .features import Feature

__all__ = [
    "add_product",
    "carried",
    "cost",
    "difference",
    "energy",
    "kappa",
    "mean_target",
    "products",
    "quadratic_term",
]


def carried(feature: Feature, array: Tensor, couplings: Mapping[str, Coupling], skip: Collection[int] = ()) -> Tensor:
    """Return :math:`A^i_p`: carry every axis but those of `skip` to the target's neurons."""
    for axis, (group, role, odd) in enumerate(zip(feature.groups, feature.roles, feature.odd, strict=True)):
        if axis not in skip:
            array = couplings[group].apply(array, axis, role, odd)
    return array


def mean_target(carried_models: Sequence[Sequence[Tensor]], mixture: Mixture) -> list[Tensor]:
    r"""Return the closed-form target :math:`T_p = \sum_i \lambda_i A^i_p` (eq. 9 with input axes split)."""
    return [mixture.mean(arrays) for arrays in zip(*carried_models, strict=True)]


def kappa(feature: Feature, target: Sequence[int], source: Sequence[int], skip: int | None = None) -> float:
    r"""Return :math:`\kappa^i_p` from the sizes of an array's axes in the target and in the source, without the axis `skip`."""
    factor = 1.0
    for axis, role in enumerate(feature.roles):
        if axis != skip:
            ratio = target[axis] / source[axis]
            factor *= ratio if role == "out" else 1 / ratio
    return factor


def energy(
    features: Sequence[Feature],
    targets: Sequence[Tensor],
    source_arrays: Sequence[Sequence[Tensor]],
    carried_models: Sequence[Sequence[Tensor]],
    mixture: Mixture,
) -> float:
    r"""Compute the energy E of a target and the couplings of all models.

    Parameters
    ----------
    features : list of Feature
    targets : list of Tensor
        :math:`T_p`.
    source_arrays : list of list of Tensor
        :math:`T^i_p`, the arrays of each model in its own neurons.
    carried_models : list of list of Tensor
        :math:`A^i_p`.
    mixture : Mixture
        :math:`\lambda_i`.
    """
    total = 0.0
    for weight, arrays, moved in zip(mixture.weights, source_arrays, carried_models, strict=True):
        for feature, t, source, a in zip(features, targets, arrays, moved, strict=True):
            if source.shape == t.shape:
                value = _squares(t - a) + _squares(source) - _squares(a)
            else:
                value = (
                    _squares(t)
                    - 2 * float((t * a).sum(dtype=torch.float64))
                    + kappa(feature, t.shape, source.shape) * _squares(source)
                )
            total += weight * feature.alpha * value
    return total


def difference(features: Sequence[Feature], one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    r"""Return :math:`\sum_p \alpha_p \|A^1_p - A^2_p\|^2`: the energy of two permuted models is this times both weights."""
    return sum(f.alpha * _squares(a - b) for f, a, b in zip(features, one, other, strict=True))


def _squares(array: Tensor) -> float:
    """Sum squares; norms of rows are fast in single precision, and their squares are added in double."""
    return float(torch.linalg.vector_norm(array.flatten(1), dim=1).double().square().sum())


def cost(
    group: str,
    features: Sequence[Feature],
    targets: Sequence[Tensor],
    source: Sequence[Tensor],
    couplings: Mapping[str, Coupling],
) -> tuple[Tensor, Tensor | None]:
    r"""Compute the cost matrices of one group of one model, the other couplings fixed (eq. 7).

    :math:`\langle C, \Pi^+ + \Pi^- \rangle - \langle S, \Pi^+ - \Pi^- \rangle` is the part of E that belongs to the tensors of
    the group: coupling two neurons costs :math:`C - S` with equal and :math:`C + S` with opposite signs. If the group is on two
    axes of a tensor, both parts of the gradient are summed.

    Parameters
    ----------
    group : str
    features : list of Feature
        Those of the group.
    targets, source : list of Tensor
        Arrays of the target and of the model.
    couplings : mapping
        Couplings of the other groups.

    Returns
    -------
    C : Tensor of shape (n, n^i)
    S : Tensor of shape (n, n^i) or None
        None if no axis changes sign with the group.
    """
    even, odd = products(group, features, targets, source, couplings)
    rows: Any = 0.0  # the quadratic terms
    columns: Any = 0.0
    for feature, t, array in zip(features, targets, source, strict=True):
        for axis, name in enumerate(feature.groups):
            if name == group:
                n, n_source = t.shape[axis], array.shape[axis]
                others = [a for a in range(t.dim()) if a != axis]
                factor = kappa(feature, t.shape, array.shape, skip=axis)
                # on input axes n^i kappa = n^i (n^i / n) times the ratios of the other axes
                factor *= n if feature.roles[axis] == "out" else n_source * (n_source / n)
                rows = rows + feature.alpha * n * t.pow(2).sum(others)
                columns = columns + feature.alpha * factor * array.pow(2).sum(others)
    total = rows[:, None] + columns[None, :]
    return total if even is None else total - even, odd


def products(
    group: str,
    features: Sequence[Feature],
    targets: Sequence[Tensor],
    source: Sequence[Tensor],
    couplings: Mapping[str, Coupling],
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the products that costs subtract from their quadratic terms, without and with a change of sign.

    Between permutations the quadratic terms are offsets of rows and columns, so that only these products matter.

    Returns
    -------
    even, odd : Tensor of shape (n, n^i) or None
        Products along the axes of the group that keep their sign with its neurons, and along those that change it.
    """
    total: list[Tensor | None] = [None, None]
    for feature, t, array in zip(features, targets, source, strict=True):
        for axis, name in enumerate(feature.groups):
            if name == group:
                moved = carried(feature, array, couplings, skip=[axis])
                cross = 2 * feature.alpha * (t if feature.roles[axis] == "out" else array).shape[axis]
                add_product(total, feature, axis, t, moved, cross)
    if total[0] is None and total[1] is None:
        raise LookupError(group)
    return total[0], total[1]


def add_product(total: list[Tensor | None], feature: Feature, axis: int, target: Tensor, source: Tensor, factor: float) -> None:
    """Add the products of all neurons of an axis to the even or to the odd matrix; see `products`."""
    left, right = (a.movedim(axis, 0).reshape(a.shape[axis], -1) for a in (target, source))
    odd = int(feature.odd[axis])
    matrix = total[odd]
    if matrix is None:
        total[odd] = (left @ right.T).mul_(factor)
    else:
        matrix.addmm_(left, right.T, alpha=factor)


def quadratic_term(
    group: str,
    feature: Feature,
    target: Tensor,
    source: Tensor,
    couplings: Mapping[str, Coupling],
) -> Term:
    r"""Return the products of a tensor with a group on two axes, as a function of the group's coupling (eq. 10)."""
    axes = [a for a, name in enumerate(feature.groups) if name == group]
    source = carried(feature, source, couplings, skip=axes)
    factor = 2 * feature.alpha
    for axis in axes:
        factor *= target.shape[axis] if feature.roles[axis] == "out" else source.shape[axis]
    arrays = [t.movedim(axes, (0, 1)).reshape(t.shape[axes[0]], t.shape[axes[0]], -1) for t in (target, source)]
    return Term(arrays[0], arrays[1], (feature.odd[axes[0]], feature.odd[axes[1]]), factor)
