"""One step of every schedule: the best coupling of one group of one model, all else fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..couplings import Coupling
from ..transport import Quadratic, largest, solve, solve_quadratic
from .energy import cost as cost_matrices
from .energy import quadratic_term
from .view import Feature

__all__ = ["couple"]

_PERTURBED = 0.3
"""Share of a random permutation in a perturbed start; from 0.8 on the result is worse."""

_ROUNDED_TOL = 1e-4
"""Where Frank-Wolfe stops before a permutation is made of its result: 1e-9 takes 20 times as long for the same permutations."""


def couple(
    group: str,
    described: Sequence[Feature],
    targets: Sequence[Tensor],
    source: Sequence[Tensor],
    plans: Mapping[str, Coupling],
    reg: float = 0.0,
    *,
    start: str = "linear",
    random_state: np.random.RandomState | None = None,
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
    """
    parts = [part for part in zip(described, targets, source, strict=True) if part[0].alpha or part[0].groups.count(group) == 1]
    if max(f.groups.count(group) for f, _, _ in parts) != 2:
        cost, signed = _costs(group, parts, plans)
        return solve(cost, reg, signed)
    linear, signed = _costs(group, [part for part in parts if part[0].groups.count(group) == 1], plans)
    terms = [quadratic_term(group, *part, plans) for part in parts if part[0].groups.count(group) == 2]
    if signed is None and any(any(t.odd) for t in terms):
        signed = np.zeros_like(linear)
    problem = Quadratic(linear, terms, signed)
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
        return Coupling(np.zeros_like(plan) if problem.signable else plan, plan)
    found = problem.assigned(problem.linear if kind == "linear" else problem.propagated())
    if kind != "perturbed":
        return found
    rng = random_state or np.random.RandomState(0)
    shuffled = solve(rng.random_sample(found.shape))
    signs = rng.choice([-1.0, 1.0], found.shape[1]) if problem.signable else 1.0
    kept = 1 - _PERTURBED
    return Coupling(kept * found.plan + _PERTURBED * shuffled.plan * signs, kept * found.mass + _PERTURBED * shuffled.mass)


def _costs(
    group: str, parts: Sequence[tuple[Feature, Tensor, Tensor]], plans: Mapping[str, Coupling]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cost matrices on the host; see `barycenter.energy.cost`."""
    described, targets, source = ([part[k] for part in parts] for k in range(3))
    total, signed = cost_matrices(group, described, targets, source, plans)  # type: ignore[arg-type]
    return _numpy(total), None if signed is None else _numpy(signed)


def _numpy(matrix: Tensor) -> np.ndarray:
    return matrix.detach().to("cpu", torch.float64).numpy()
