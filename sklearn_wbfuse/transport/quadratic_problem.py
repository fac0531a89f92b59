r"""Quadratic optimal transport between uniform measures: the Gromov-Wasserstein step of a group that stands twice in a tensor.

.. math:: \min_{\Pi^+ + \Pi^- \in \Gamma(1/n, 1/m)} f(\Pi) = \langle C, M \rangle - \langle S, \Sigma \rangle
    - \sum_p w_p \sum_k \langle T_{pk}, X_p\, H_{pk}\, Y_p^\top \rangle, \qquad M = \Pi^+ + \Pi^-,\ \Sigma = \Pi^+ - \Pi^-,

where :math:`X_p` and :math:`Y_p` are :math:`\Sigma` on axes that change sign with their neurons and M on others. The squared
terms of eq. (10) are constant for uniform marginals, so this is fused Gromov-Wasserstein with asymmetric matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..network.couplings import Coupling, Permutation, Plan
from .assignment import centred
from .linear_problem import exact, solve
from .sinkhorn import Potentials

__all__ = ["Quadratic", "Term", "solve_quadratic"]


@dataclass(frozen=True, eq=False)
class Term:
    """The products of one tensor in which a group stands on two axes.

    Attributes
    ----------
    target : Tensor of shape (n, n, k)
    source : Tensor of shape (m, m, k)
    odd : (bool, bool)
        Whether each axis changes sign with its neurons.
    weight : float
    """

    target: Tensor
    source: Tensor
    odd: tuple[bool, bool]
    weight: float


class Iterate:
    """A coupling as the pair of its mass M and its signed plan, float64 on the host, with what the objective needs of it."""

    def __init__(self, coupling: Coupling, problem: Quadratic):
        self.coupling = coupling
        self.pair: tuple[np.ndarray, ...] = (coupling.mass, coupling.plan) if problem.signable else (coupling.mass,)
        self.slope = problem.products(coupling)

    def mixed(self, other: Iterate, step: float) -> Iterate:
        """A point on the way to another; everything is linear, so nothing is computed anew."""
        twin = object.__new__(Iterate)
        twin.pair = tuple((1 - step) * a + step * b for a, b in zip(self.pair, other.pair, strict=True))
        twin.slope = tuple((1 - step) * a + step * b for a, b in zip(self.slope, other.slope, strict=True))
        twin.coupling = Plan(twin.pair[-1], twin.pair[0])
        return twin


class Quadratic:
    """The objective; see the module's formula.

    Parameters
    ----------
    cost : ndarray of shape (n, m)
    terms : sequence of Term
    signed : ndarray of shape (n, m) or None
        None where no sign may change.
    potentials : Potentials, optional
        Of the last vertex with an entropy.
    """

    def __init__(
        self,
        cost: np.ndarray,
        terms: Sequence[Term],
        signed: np.ndarray | None = None,
        potentials: Potentials | None = None,
    ):
        self.terms = terms
        self.signable = signed is not None
        self.linear = (cost, -signed) if signed is not None else (cost,)
        self.potentials = potentials or Potentials()

    def products(self, coupling: Coupling, axes: Sequence[int] = (0, 1)) -> tuple[np.ndarray, ...]:
        r"""Gradient of the subtracted sum with respect to M and the signed plan: one part for each of the two axes."""
        total = [np.zeros(coupling.shape) for _ in self.linear]
        for term in self.terms:
            n, m = coupling.shape
            for axis in axes:
                kept, other = int(term.odd[axis]), term.odd[1 - axis]
                carried = coupling.apply(term.source.movedim(1 - axis, 0), 0, "mass", other)  # (n, m, k)
                left = term.target.movedim(axis, 0).reshape(n, -1)
                right = carried.permute(0, 2, 1).reshape(-1, m)
                total[kept if self.signable else 0] += term.weight * (left @ right).cpu().numpy()
        return tuple(total)

    def gradient(self, point: Iterate) -> tuple[np.ndarray, ...]:
        """Of the objective with respect to M and the signed plan."""
        return tuple(c - q for c, q in zip(self.linear, point.slope, strict=True))

    def value(self, point: Iterate) -> float:
        """The objective; the subtracted sum is half of the product with its own gradient."""
        return _inner(self.linear, point.pair) - _inner(point.slope, point.pair) / 2

    def propagated(self, steps: int = 10) -> tuple[np.ndarray, ...]:
        r"""Costs of single neurons that count in where they stand in the network of the group's own weights.

        A similarity X of neurons makes neurons similar that read similar ones, with similar weights: :math:`T X H^\top`. The
        limit of :math:`X \leftarrow L / \|L\| + T X H^\top / \|T X H^\top\|`, L what the linear costs say, compares the
        responses to the inputs over many steps; it is the IsoRank iteration for weighted directed graphs.
        """
        linear = _unit([-centred(c) for c in self.linear])
        similar = linear
        for _ in range(steps):
            mass = similar[0] if self.signable else similar[-1]
            passed = _unit(self.products(Plan(similar[-1], mass), axes=(0,)))
            similar = _unit([a + b for a, b in zip(linear, passed, strict=True)])
        return tuple(-s for s in similar)

    def assigned(self, costs: Sequence[np.ndarray], epsilon: float = 0.0) -> Coupling:
        """The coupling of least linear cost, given as for M and the signed plan: on the better of the two signs."""
        return solve(costs[0], signed=-costs[1] if self.signable else None, epsilon=epsilon, start=self.potentials)

    def vertex(self, gradient: Sequence[np.ndarray], epsilon: float = 0.0) -> Iterate:
        """The linear oracle: one assignment (or transport problem)."""
        return Iterate(self.assigned(gradient, epsilon), self)


def _unit(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    norm = float(np.sqrt(sum((a * a).sum() for a in arrays)))
    return [a / norm if norm else a for a in arrays]


def _inner(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def solve_quadratic(
    problem: Quadratic,
    start: Coupling,
    epsilon: float = 0.0,
    *,
    permutation: bool = False,
    max_iter: int = 200,
    tol: float = 1e-9,
) -> Coupling:
    r"""A coupling at which the objective is locally least, by Frank-Wolfe with exact line search.

    The objective is quadratic along a segment and its gradient is linear, so that an iteration needs the products with one
    vertex alone. At equal sizes and `epsilon` 0 the result is rounded to a permutation and polished by exchanges, and kept if
    that lowers the objective. With `epsilon` > 0 the entropy :math:`\varepsilon \sum \Pi \log \Pi` is added: vertices become
    Sinkhorn plans (generalised conditional gradient) and the line search counts it in.

    Parameters
    ----------
    problem : Quadratic
    start : Coupling
    epsilon : float
    permutation : bool
        Keep the rounded result in any case.
    max_iter : int
    tol : float
        Stop when the objective can fall by less than this fraction.
    """

    def objective(at: Iterate) -> float:
        return problem.value(at) - (epsilon * _entropy(at.pair) if epsilon else 0.0)

    point = Iterate(start, problem)
    value = objective(point)
    for _ in range(max_iter):
        gradient = problem.gradient(point)
        vertex = problem.vertex(gradient, epsilon)
        away = [v - p for v, p in zip(vertex.pair, point.pair, strict=True)]
        slope = _inner(gradient, away)
        curvature = -_inner([v - p for v, p in zip(vertex.slope, point.slope, strict=True)], away)
        step = _line_search(slope, curvature, point, vertex, epsilon)
        if step <= 0:
            break
        point = vertex if step >= 1 else point.mixed(vertex, step)
        before, value = value, objective(point)
        if before - value <= tol * abs(before):
            break
    if epsilon > 0 or start.shape[0] != start.shape[1]:
        return point.coupling
    polished = _polished(problem, _rounded(problem, point, max_iter), max_iter)
    return polished.coupling if permutation or problem.value(polished) <= value else point.coupling


def _line_search(slope: float, curvature: float, point: Iterate, vertex: Iterate, epsilon: float) -> float:
    """The step in [0, 1] at which slope t + curvature t^2 / 2, and the entropy if there is one, is least."""
    if epsilon > 0:

        def objective(t: float) -> float:
            pair = [(1 - t) * a + t * b for a, b in zip(point.pair, vertex.pair, strict=True)]
            return slope * t + curvature * t * t / 2 - epsilon * _entropy(pair)

        found = minimize_scalar(objective, bounds=(0, 1), method="bounded", options={"xatol": 1e-4})
        return float(found.x) if found.fun < objective(0.0) else 0.0
    if slope >= 0:
        return 0.0
    if curvature > 0:
        return min(1.0, -slope / curvature)
    return 1.0


def _entropy(pair: Sequence[np.ndarray]) -> float:
    """Of the plans of both signs."""
    plans = [(pair[0] + pair[1]) / 2, (pair[0] - pair[1]) / 2] if len(pair) == 2 else pair
    return -float(sum((p * np.log(np.maximum(p, 1e-300))).sum() for p in plans))


def _rounded(problem: Quadratic, point: Iterate, max_iter: int) -> Iterate:
    """A permutation near a point: the assignment of most mass, then full steps as long as they help."""
    if not point.coupling.is_permutation:
        nearest = exact(-point.pair[0])
        assert isinstance(nearest, Permutation)
        signs = np.where(point.pair[-1][np.arange(len(nearest.index)), nearest.index] < 0, -1.0, 1.0)
        point = Iterate(Permutation(nearest.index, signs if problem.signable else None), problem)
    value = problem.value(point)
    for _ in range(max_iter):
        trial = problem.vertex(problem.gradient(point))
        lower = problem.value(trial)
        if lower >= value - 1e-12 * abs(value):
            break
        point, value = trial, lower
    return point


def _polished(problem: Quadratic, point: Iterate, max_iter: int) -> Iterate:
    """Exchange the sources of two targets as long as that lowers the objective, many disjoint pairs at a time."""
    value = problem.value(point)
    for _ in range(max_iter):
        pairs = _disjoint(exchanges(problem, point), -1e-9 * abs(value))
        while pairs:
            order = np.arange(point.coupling.shape[0])
            for u, v in pairs:
                order[[u, v]] = order[[v, u]]
            trial = Iterate(Permutation(order).compose(point.coupling), problem)
            lower = problem.value(trial)
            if lower < value - 1e-12 * abs(value):
                point, value = trial, lower
                break
            pairs = pairs[: len(pairs) // 2]
        if not pairs:
            return point
    return point


def exchanges(problem: Quadratic, point: Iterate) -> np.ndarray:
    """Change of the objective, for every pair of targets, when they exchange their sources, signs included."""
    coupling, n = point.coupling, point.coupling.shape[0]
    assert isinstance(coupling, Permutation)
    signs = coupling.sign
    gradient = [g[:, coupling.index] for g in problem.gradient(point)]
    moved = gradient[0] + (gradient[1] * signs if problem.signable else 0)
    change = _differences(moved) / n
    for term in problem.terms:
        rows = coupling.apply(term.source, 0, "mass", term.odd[0])
        h = coupling.apply(rows, 1, "mass", term.odd[1])
        t, scale = term.target, term.weight
        diagonal_t, diagonal_h = t.diagonal().T, h.diagonal().T  # (n, k)
        outer, crossed = diagonal_t @ diagonal_h.T, (t * h.transpose(0, 1)).sum(2)
        own, straight = (diagonal_t * diagonal_h).sum(1), (t * h).sum(2)
        exact_block = outer + outer.T + crossed + crossed.T - own[:, None] - own[None] - straight - straight.T
        # the same block as the products of whole rows and columns count it
        down, across = torch.einsum("uk,vuk->uv", diagonal_t, h), torch.einsum("uvk,vk->uv", t, diagonal_h)
        right, up = torch.einsum("uk,uvk->uv", diagonal_t, h), torch.einsum("vuk,vk->uv", t, diagonal_h)
        mixed = down + across + right + up
        counted = mixed + mixed.T - 2 * (own[:, None] + own[None] + straight + straight.T)
        change -= (scale * (exact_block - counted)).double().cpu().numpy()
    return change


def _differences(matrix: np.ndarray) -> np.ndarray:
    diagonal = np.diag(matrix)
    return matrix + matrix.T - diagonal[:, None] - diagonal[None, :]


def _disjoint(change: np.ndarray, below: float) -> list[tuple[int, int]]:
    """Pairs of most negative change, no neuron twice."""
    rows, columns = np.nonzero(np.triu(change < below, 1))
    order = np.argsort(change[rows, columns], kind="stable")
    used: set[int] = set()
    pairs = []
    for u, v in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if u not in used and v not in used:
            pairs.append((u, v))
            used |= {u, v}
    return pairs
