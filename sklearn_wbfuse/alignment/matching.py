"""The best coupling of one group of one model, or of groups in the same blocks, with everything else fixed."""

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
"""A feature, and its arrays in the target and in the model."""

_PERTURBED = 0.3
"""Share of a random permutation in a perturbed start; from 0.8 on results are worse."""

_ROUNDED_TOL = 1e-4
"""Tolerance of Frank-Wolfe before its result is rounded: 1e-9 takes 20 times as long and gives the same permutations."""

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
    r"""Compute the coupling of one group that minimises its part of the energy, with the target and other couplings fixed.

    If the group is on at most one axis of every tensor, this is a transport problem (eq. 7). If it is on two axes of a tensor
    (W_hh), it is a Gromov-Wasserstein problem (eq. 10), solved by Frank-Wolfe from the group's current coupling in `plans`, or
    else from `start`. For a group on more axes of a tensor, one step along the gradient is taken.

    Parameters
    ----------
    group : str
    features : list of Feature
        Those of the group.
    targets, source : list of Tensor
        Arrays of the target and of the model.
    plans : mapping of str to Coupling
        Couplings of the other groups, and the current one of this group if there is one.
    reg : float
    start : {"linear", "propagated", "uniform", "perturbed"}
        The plan of the tensors with the group on one axis; the plan after propagating their costs through the other tensors
        (see `Quadratic.propagated`); the product of the marginals; or the second with a random permutation mixed in.
    random_state : RandomState, optional
    potentials : Potentials, optional
        Potentials of the last problem of this group with `reg` > 0.
    """
    triples = [triple for triple in zip(features, targets, source, strict=True) if triple[0].alpha or _count(group, triple) == 1]
    if max(_count(group, triple) for triple in triples) != 2:
        if reg == 0 and _is_square(group, triples[0]):
            return assigned(*products(group, *_columns(triples), plans))
        cost, signed = _costs(group, triples, plans)
        return solve(cost, reg, signed, start=potentials)
    linear, signed = _costs(group, [triple for triple in triples if _count(group, triple) == 1], plans)
    terms = [quadratic_term(group, *triple, plans) for triple in triples if _count(group, triple) == 2]
    if signed is None and any(any(term.odd) for term in terms):
        signed = np.zeros_like(linear)
    problem = Quadratic(linear, terms, signed, potentials)
    current = plans.get(group)
    if current is None:
        current = _start(start, problem, random_state)
    epsilon = 0.0
    if reg > 0:
        epsilon = reg * largest(*_costs(group, triples, {**plans, group: current}))
    rounded = epsilon == 0 and linear.shape[0] == linear.shape[1]
    return solve_quadratic(problem, current, epsilon, permutation=True, tol=_ROUNDED_TOL if rounded else 1e-6)


def _count(group: str, triple: TensorTriple) -> int:
    """Return the number of axes of a tensor that a group is on."""
    return triple[0].groups.count(group)


def _start(kind: str, problem: Quadratic, random_state: np.random.RandomState | None) -> Coupling:
    if kind == "uniform":
        plan = np.full(problem.linear[0].shape, 1 / problem.linear[0].size)
        return Plan(np.zeros_like(plan) if problem.signable else plan, plan)
    coupling = problem.assigned(problem.linear if kind == "linear" else problem.propagated())
    if kind != "perturbed":
        return coupling
    rng = random_state or np.random.RandomState(0)
    shuffled = solve(rng.random_sample(coupling.shape))
    signs = rng.choice([-1.0, 1.0], coupling.shape[1]) if problem.signable else 1.0
    share = 1 - _PERTURBED
    return Plan(share * coupling.plan + _PERTURBED * shuffled.plan * signs, share * coupling.mass + _PERTURBED * shuffled.mass)


def assigned(even: Tensor | None, odd: Tensor | None, prices: Prices | None = None) -> Permutation:
    """Return the permutation of largest products, with the better sign of each if signs may change; see `assignment`."""
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
    triples: Sequence[TensorTriple],
    plans: Mapping[str, Coupling],
    shape: tuple[int, int],
    reg: float = 0.0,
    fixed: Coupling | None = None,
) -> dict[str, Coupling]:
    """Couple blocks and the groups within them, with the target and all other couplings fixed; see `solve_nested`.

    If a tensor holds two of these groups, or one of them on two axes, the energy is not linear in their couplings. Two groups
    then take turns in every pair of blocks (see `BlockCoupledTerm`); in other cases steps along the gradient are taken as long
    as the energy falls.

    Parameters
    ----------
    blocks : str
    members : list of str
        The groups within these blocks that are coupled.
    triples : list of (Feature, Tensor, Tensor)
        The tensors of the blocks and groups.
    plans : mapping of str to Coupling
        Couplings of the other groups, and the current ones of these if there are any.
    shape : (n, m)
        Numbers of blocks of target and model.
    reg : float
    fixed : Coupling, optional
        The coupling of the blocks, if it must not change.
    """
    names = {blocks, *members}
    triples = [triple for triple in triples if triple[0].alpha]
    linear = [triple for triple in triples if sum(g in names for g in triple[0].groups) == 1]

    def proposal(
        triples: Sequence[TensorTriple], plans: Mapping[str, Coupling], terms: Sequence[BlockCoupledTerm] = ()
    ) -> dict[str, Coupling]:
        costs = [_costs(g, [triple for triple in triples if g in triple[0].groups], plans) for g in members]
        if fixed is not None:
            return {g: assemble(c, fixed, reg) for g, c in zip(members, costs, strict=True)}
        of_blocks = [triple for triple in triples if blocks in triple[0].groups]
        block_cost = _costs(blocks, of_blocks, plans)[0] if of_blocks else None
        block_coupling, inner = solve_nested(costs, shape, block_cost, reg, blocks, terms)
        return {blocks: block_coupling, **dict(zip(members, inner, strict=True))}

    has_plans = all(g in plans for g in members)
    if has_plans and fixed is not None and len(members) == 1 and all(_count(members[0], triple) == 1 for triple in triples):
        return proposal(triples, plans)  # the other groups of its tensors are fixed
    if len(linear) == len(triples):
        return proposal(linear, plans)
    is_exact = fixed is None and reg == 0 and shape[0] == shape[1]
    coupled = [triple for triple in triples if _couples_blocks(triple, members)] if is_exact else []
    best = {g: plans[g] for g in names if g in plans} if has_plans else proposal(linear, plans)
    value = fit(triples, {**plans, **best})
    for turn in range(_LINEARISED):
        if turn == 0 and coupled:
            trial = proposal(linear, plans, [_coupled_term(triple, members, plans, shape[0]) for triple in coupled])
        elif len(linear) + len(coupled) < len(triples):
            trial = {**best, **proposal(triples, {**plans, **best})}
        else:
            break
        trial_value = fit(triples, {**plans, **trial})
        if trial_value > value + 1e-9 * abs(value):
            best, value = trial, trial_value
        elif turn or not coupled:
            break
    return best


def _couples_blocks(triple: TensorTriple, members: Sequence[str]) -> bool:
    """Return whether two different groups within blocks are on one axis each, with as many neurons as in the target."""
    feature, target, source = triple
    axes = [a for a, g in enumerate(feature.groups) if g in members]
    if len(axes) != 2 or feature.groups[axes[0]] == feature.groups[axes[1]]:
        return False
    return all(target.shape[a] == source.shape[a] for a in axes)


def _coupled_term(triple: TensorTriple, members: Sequence[str], plans: Mapping[str, Coupling], blocks: int) -> BlockCoupledTerm:
    feature, target, source = triple
    axes = [a for a, g in enumerate(feature.groups) if g in members]
    source = carried(feature, source, plans, skip=axes)
    diagonal = torch.arange(blocks)
    arrays = []
    for array in (target, source):
        pairs = array.movedim(axes, (0, 1)).flatten(2).unflatten(1, (blocks, -1)).unflatten(0, (blocks, -1))
        arrays.append(_numpy(pairs[diagonal, :, diagonal]))
    groups = (members.index(feature.groups[axes[0]]), members.index(feature.groups[axes[1]]))
    return BlockCoupledTerm(groups, arrays[0], arrays[1], (feature.odd[axes[0]], feature.odd[axes[1]]), 2 * feature.alpha)


def fit(triples: Sequence[TensorTriple], plans: Mapping[str, Coupling]) -> float:
    r"""Return :math:`\sum_p \alpha_p \langle T_p, A_p \rangle`: the larger it is, the lower is the energy of target and model."""
    return sum(f.alpha * float((t * carried(f, a, plans)).sum(dtype=torch.float64)) for f, t, a in triples)


def _is_square(group: str, triple: TensorTriple) -> bool:
    axis = triple[0].groups.index(group)
    return triple[1].shape[axis] == triple[2].shape[axis]


def _columns(triples: Sequence[TensorTriple]) -> tuple[list[Feature], list[Tensor], list[Tensor]]:
    return [f for f, _, _ in triples], [t for _, t, _ in triples], [a for _, _, a in triples]


def _costs(group: str, triples: Sequence[TensorTriple], plans: Mapping[str, Coupling]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return cost matrices on the host; see `alignment.energy.cost`."""
    total, signed = cost_matrices(group, *_columns(triples), plans)
    return _numpy(total), None if signed is None else _numpy(signed)


def _numpy(matrix: Tensor) -> np.ndarray:
    return matrix.detach().to("cpu", torch.float64).numpy()
