"""One step of every schedule: the best coupling of a group of one model, or of groups in blocks, all else fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..network.couplings import Coupling, Permutation, Plan
from ..transport import (
    BlockCoupledTerm,
    Potentials,
    Prices,
    Quadratic,
    assemble,
    exact,
    largest,
    solve,
    solve_nested,
    solve_quadratic,
)
from .energy import carried, products, quadratic_term
from .energy import cost as cost_matrices
from .features import Feature

__all__ = ["assigned", "couple", "couple_blocks", "fit"]

TensorTriple = tuple[Feature, Tensor, Tensor]
"""A feature, its array in the target and in the model."""

_PERTURBED = 0.3
"""Share of a random permutation in a perturbed start; from 0.8 on the result is worse."""

_ROUNDED_TOL = 1e-4
"""Where Frank-Wolfe stops before a permutation is made of its result: 1e-9 takes 20 times as long for the same permutations."""


_LINEARISED = 20
"""Largest number of steps along the gradient."""


def couple(
    group: str,
    features: Sequence[Feature],
    targets: Sequence[Tensor],
    source: Sequence[Tensor],
    plans: Mapping[str, Coupling],
    reg: float = 0.0,
    *,
    start: str = "linear",
    random_state: np.random.RandomState | None = None,
    potentials: Potentials | None = None,
) -> Coupling:
    r"""Coupling of one group that minimises its share of the energy, the target and the other couplings fixed.

    A group that stands once in every tensor is a transport problem (eq. 7). One that stands twice in a tensor (W_hh) is a
    Gromov-Wasserstein problem (eq. 10), solved by Frank-Wolfe from the group's current coupling if it has one in `plans`, else
    from `start`. A group that stands more often is stepped along its gradient.

    Parameters
    ----------
    group : str
    described : list of Feature
        Those in which the group stands.
    targets, source : list of Tensor
    plans : mapping
        Of the other groups, and the current one of this group.
    reg : float
    start : {"linear", "propagated", "uniform", "perturbed"}
        The plan of the tensors in which the group stands once; the same with what they say propagated through the others (see
        `Quadratic.propagated`); the product of the marginals; or a random permutation mixed into the second.
    random_state : RandomState, optional
    potentials : Potentials, optional
        Of the last time that this group was coupled with `reg` > 0.
    """
    parts = [part for part in zip(features, targets, source, strict=True) if part[0].alpha or part[0].groups.count(group) == 1]
    if max(f.groups.count(group) for f, _, _ in parts) != 2:
        if reg == 0 and _is_square(group, parts[0]):
            return assigned(*products(group, *_columns(parts), plans))
        cost, signed = _costs(group, parts, plans)
        return solve(cost, reg, signed, start=potentials)
    linear, signed = _costs(group, [part for part in parts if part[0].groups.count(group) == 1], plans)
    terms = [quadratic_term(group, *part, plans) for part in parts if part[0].groups.count(group) == 2]
    if signed is None and any(any(t.odd) for t in terms):
        signed = np.zeros_like(linear)
    problem = Quadratic(linear, terms, signed, potentials)
    current = plans.get(group)
    if current is None:
        current = _start(start, problem, random_state)
    epsilon = 0.0
    if reg > 0:
        epsilon = reg * largest(*_costs(group, parts, {**plans, group: current}))
    rounded = epsilon == 0 and linear.shape[0] == linear.shape[1]
    return solve_quadratic(problem, current, epsilon, permutation=True, tol=_ROUNDED_TOL if rounded else 1e-6)


def _start(kind: str, problem: Quadratic, random_state: np.random.RandomState | None) -> Coupling:
    if kind == "uniform":
        plan = np.full(problem.linear[0].shape, 1 / problem.linear[0].size)
        return Plan(np.zeros_like(plan) if problem.signable else plan, plan)
    found = problem.assigned(problem.linear if kind == "linear" else problem.propagated())
    if kind != "perturbed":
        return found
    rng = random_state or np.random.RandomState(0)
    shuffled = solve(rng.random_sample(found.shape))
    signs = rng.choice([-1.0, 1.0], found.shape[1]) if problem.signable else 1.0
    kept = 1 - _PERTURBED
    return Plan(kept * found.plan + _PERTURBED * shuffled.plan * signs, kept * found.mass + _PERTURBED * shuffled.mass)


def assigned(even: Tensor | None, odd: Tensor | None, prices: Prices | None = None) -> Permutation:
    """The permutation of largest products, each of the better sign where signs may change; for `prices` see `assignment`."""
    if odd is None:
        assert even is not None
        return _permutation(exact((-even).cpu().numpy(), prices))
    best = odd.abs() if even is None else even + odd.abs()
    index = _permutation(exact((-best).cpu().numpy(), prices)).index
    signs = odd[torch.arange(len(index)), torch.as_tensor(index)]
    return Permutation(index, np.where(_numpy(signs) < 0, -1.0, 1.0))


def _permutation(coupling: Coupling) -> Permutation:
    assert isinstance(coupling, Permutation)
    return coupling


def couple_blocks(
    blocks: str,
    members: Sequence[str],
    parts: Sequence[TensorTriple],
    plans: Mapping[str, Coupling],
    shape: tuple[int, int],
    reg: float = 0.0,
    fixed: Coupling | None = None,
) -> dict[str, Coupling]:
    """Couplings of blocks and of groups that lie in them, the target and all other couplings fixed; see `solve_nested`.

    Where a tensor holds two of these groups, or one twice, the energy is not linear in their couplings. Two groups take turns
    in every pair of blocks (see `BlockCoupledTerm`); other cases are stepped along the gradient
    as long as the energy falls.

    Parameters
    ----------
    blocks : str
    members : list of str
    parts : list of (Feature, Tensor, Tensor)
        Those in which the groups stand.
    plans : mapping
        Of the other groups, and the current ones of these.
    shape : (n, m)
        Numbers of blocks of target and model.
    reg : float
    fixed : Coupling, optional
        Of the blocks, if they are not to move.
    """
    names = {blocks, *members}
    parts = [part for part in parts if part[0].alpha]
    linear = [part for part in parts if sum(g in names for g in part[0].groups) == 1]

    def proposal(
        parts: Sequence[TensorTriple], plans: Mapping[str, Coupling], ties: Sequence[BlockCoupledTerm] = ()
    ) -> dict[str, Coupling]:
        costs = [_costs(g, [part for part in parts if g in part[0].groups], plans) for g in members]
        if fixed is not None:
            return {g: assemble(c, fixed, reg) for g, c in zip(members, costs, strict=True)}
        alone = [part for part in parts if blocks in part[0].groups]
        own = _costs(blocks, alone, plans)[0] if alone else None
        found, inner = solve_nested(costs, shape, own, reg, blocks, ties)
        return {blocks: found, **dict(zip(members, inner, strict=True))}

    known = all(g in plans for g in members)
    if known and fixed is not None and len(members) == 1 and all(p[0].groups.count(members[0]) == 1 for p in parts):
        return proposal(parts, plans)  # the others that share a tensor with it are fixed
    if len(linear) == len(parts):
        return proposal(linear, plans)
    ties = [part for part in parts if _is_tie(part, members)] if fixed is None and reg == 0 and shape[0] == shape[1] else []
    best = {g: plans[g] for g in names if g in plans} if known else proposal(linear, plans)
    value = fit(parts, {**plans, **best})
    for turn in range(_LINEARISED):
        if turn == 0 and ties:
            found = proposal(linear, plans, [_tie(part, members, plans, shape[0]) for part in ties])
        elif len(linear) + len(ties) < len(parts):
            found = {**best, **proposal(parts, {**plans, **best})}
        else:
            break
        higher = fit(parts, {**plans, **found})
        if higher > value + 1e-9 * abs(value):
            best, value = found, higher
        elif turn or not ties:
            break
    return best


def _is_tie(part: TensorTriple, members: Sequence[str]) -> bool:
    """Whether two of the groups stand on one axis each, and have as many neurons in the target."""
    axes = [a for a, g in enumerate(part[0].groups) if g in members]
    return (
        len(axes) == 2
        and part[0].groups[axes[0]] != part[0].groups[axes[1]]
        and all(part[1].shape[a] == part[2].shape[a] for a in axes)
    )


def _tie(part: TensorTriple, members: Sequence[str], plans: Mapping[str, Coupling], blocks: int) -> BlockCoupledTerm:
    feature, target, source = part
    axes = [a for a, g in enumerate(feature.groups) if g in members]
    source = carried(feature, source, plans, skip=axes)
    each = torch.arange(blocks)
    arrays = []
    for array in (target, source):
        cut = array.movedim(axes, (0, 1)).flatten(2).unflatten(1, (blocks, -1)).unflatten(0, (blocks, -1))[each, :, each]
        arrays.append(_numpy(cut))
    groups = (members.index(feature.groups[axes[0]]), members.index(feature.groups[axes[1]]))
    return BlockCoupledTerm(groups, arrays[0], arrays[1], (feature.odd[axes[0]], feature.odd[axes[1]]), 2 * feature.alpha)


def fit(parts: Sequence[TensorTriple], plans: Mapping[str, Coupling]) -> float:
    r""":math:`\sum_p \alpha_p \langle T_p, A_p \rangle`: the larger, the lower the energy of the target and the model."""
    return sum(f.alpha * float((t * carried(f, a, plans)).sum(dtype=torch.float64)) for f, t, a in parts)


def _is_square(group: str, part: TensorTriple) -> bool:
    axis = part[0].groups.index(group)
    return part[1].shape[axis] == part[2].shape[axis]


def _columns(parts: Sequence[TensorTriple]) -> tuple[list[Feature], list[Tensor], list[Tensor]]:
    return [f for f, _, _ in parts], [t for _, t, _ in parts], [a for _, _, a in parts]


def _costs(group: str, parts: Sequence[TensorTriple], plans: Mapping[str, Coupling]) -> tuple[np.ndarray, np.ndarray | None]:
    """Cost matrices on the host; see `alignment.energy.cost`."""
    total, signed = cost_matrices(group, *_columns(parts), plans)
    return _numpy(total), None if signed is None else _numpy(signed)


def _numpy(matrix: Tensor) -> np.ndarray:
    return matrix.detach().to("cpu", torch.float64).numpy()
