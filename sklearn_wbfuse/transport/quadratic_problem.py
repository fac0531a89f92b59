r"""Quadratic optimal transport between uniform measures: Gromov-Wasserstein problems of groups on two axes of a tensor.

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
    """The products of one tensor with a group on two axes.

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
    """A coupling, its mass M and signed plan in double precision on the host, and its products in the objective."""

    def __init__(self, coupling: Coupling, problem: Quadratic):
        self.coupling = coupling
        self.pair: tuple[np.ndarray, ...] = (coupling.mass, coupling.plan) if problem.signable else (coupling.mass,)
        self.slope = problem.products(coupling)

    def mixed(self, other: Iterate, step: float) -> Iterate:
        """Return the point at a step on the segment to another; all is linear, so that no product is computed again."""
        result = object.__new__(Iterate)
        result.pair = tuple((1 - step) * a + step * b for a, b in zip(self.pair, other.pair, strict=True))
        result.slope = tuple((1 - step) * a + step * b for a, b in zip(self.slope, other.slope, strict=True))
        result.coupling = Plan(result.pair[-1], result.pair[0])
        return result


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
        r"""Compute the gradient of the subtracted sum with respect to M and the signed plan, one part for each axis."""
        total = [np.zeros(coupling.shape) for _ in self.linear]
        for term in self.terms:
            n, m = coupling.shape
            for axis in axes:
                sign, other = int(term.odd[axis]), term.odd[1 - axis]
                carried = coupling.apply(term.source.movedim(1 - axis, 0), 0, "mass", other)  # (n, m, k)
                left = term.target.movedim(axis, 0).reshape(n, -1)
                right = carried.permute(0, 2, 1).reshape(-1, m)
                total[sign if self.signable else 0] += term.weight * (left @ right).cpu().numpy()
        return tuple(total)

    def gradient(self, point: Iterate) -> tuple[np.ndarray, ...]:
        """Compute the gradient of the objective with respect to M and the signed plan."""
        return tuple(c - q for c, q in zip(self.linear, point.slope, strict=True))

    def value(self, point: Iterate) -> float:
        """Compute the objective; the subtracted sum is half of its product with its own gradient."""
        return _inner(self.linear, point.pair) - _inner(point.slope, point.pair) / 2

    def propagated(self, steps: int = 10) -> tuple[np.ndarray, ...]:
        r"""Return linear costs that take the positions of neurons in the graph of the group's recurrent weights into account.

        Given a similarity X, neurons are similar that read similar neurons with similar weights: :math:`T X H^\top`. The limit
        of :math:`X \leftarrow L / \|L\| + T X H^\top / \|T X H^\top\|`, with L the negative linear costs, compares responses to
        the inputs over many steps. It is the IsoRank iteration for weighted directed graphs.
        """
        linear = _unit([-centred(c) for c in self.linear])
        similar = linear
        for _ in range(steps):
            mass = similar[0] if self.signable else similar[-1]
            passed = _unit(self.products(Plan(similar[-1], mass), axes=(0,)))
            similar = _unit([a + b for a, b in zip(linear, passed, strict=True)])
        return tuple(-s for s in similar)

    def assigned(self, costs: Sequence[np.ndarray], epsilon: float = 0.0) -> Coupling:
        """Return the coupling of least linear cost, given the costs of M and of the signed plan."""
        return solve(costs[0], signed=-costs[1] if self.signable else None, epsilon=epsilon, start=self.potentials)

    def vertex(self, gradient: Sequence[np.ndarray], epsilon: float = 0.0) -> Iterate:
        """Solve the linear oracle of Frank-Wolfe, one assignment or transport problem."""
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
    r"""Compute a local minimum of the objective by Frank-Wolfe with exact line search.

    The objective is quadratic along a segment and its gradient is linear, so that an iteration only needs the products with one
    vertex. At equal sizes and `epsilon` 0 the result is rounded to a permutation and polished by exchanges; the permutation is
    returned if it lowers the objective. With `epsilon` > 0 the entropy :math:`\varepsilon \sum \Pi \log \Pi` is added to the
    objective, and vertices are Sinkhorn plans (generalised conditional gradient).

    Parameters
    ----------
    problem : Quadratic
    start : Coupling
    epsilon : float
    permutation : bool
        Return the permutation in any case.
    max_iter : int
    tol : float
        Stop when the objective can fall by less than this fraction.
    """

    def objective(point: Iterate) -> float:
        return problem.value(point) - (epsilon * _entropy(point.pair) if epsilon else 0.0)

    point = Iterate(start, problem)
    value = objective(point)
    for _ in range(max_iter):
        gradient = problem.gradient(point)
        vertex = problem.vertex(gradient, epsilon)
        direction = [v - p for v, p in zip(vertex.pair, point.pair, strict=True)]
        slope = _inner(gradient, direction)
        curvature = -_inner([v - p for v, p in zip(vertex.slope, point.slope, strict=True)], direction)
        step = _line_search(slope, curvature, point, vertex, epsilon)
        if step <= 0:
            break
        point = vertex if step >= 1 else point.mixed(vertex, step)
        previous, value = value, objective(point)
        if previous - value <= tol * abs(previous):
            break
    if epsilon > 0 or start.shape[0] != start.shape[1]:
        return point.coupling
    polished = _polished(problem, _rounded(problem, point, max_iter), max_iter)
    return polished.coupling if permutation or problem.value(polished) <= value else point.coupling


def _line_search(slope: float, curvature: float, point: Iterate, vertex: Iterate, epsilon: float) -> float:
    """Return the t in [0, 1] that minimises slope t + curvature t^2 / 2, plus the entropy if there is one."""
    if epsilon > 0:

        def objective(t: float) -> float:
            pair = [(1 - t) * a + t * b for a, b in zip(point.pair, vertex.pair, strict=True)]
            return slope * t + curvature * t * t / 2 - epsilon * _entropy(pair)

        result = minimize_scalar(objective, bounds=(0, 1), method="bounded", options={"xatol": 1e-4})
        return float(result.x) if result.fun < objective(0.0) else 0.0
    if slope >= 0:
        return 0.0
    if curvature > 0:
        return min(1.0, -slope / curvature)
    return 1.0


def _entropy(pair: Sequence[np.ndarray]) -> float:
    """Return the entropy of the plans of both signs."""
    plans = [(pair[0] + pair[1]) / 2, (pair[0] - pair[1]) / 2] if len(pair) == 2 else pair
    return -float(sum((p * np.log(np.maximum(p, 1e-300))).sum() for p in plans))


def _rounded(problem: Quadratic, point: Iterate, max_iter: int) -> Iterate:
    """Return a permutation near a point: the assignment of largest mass, then full steps as long as they help."""
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
    """Exchange the sources of two targets as long as this lowers the objective, many disjoint pairs at a time."""
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
    """Return the change of the objective when two targets exchange their sources and signs, for every pair of targets."""
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
        diagonal, straight = (diagonal_t * diagonal_h).sum(1), (t * h).sum(2)
        exact_block = outer + outer.T + crossed + crossed.T - diagonal[:, None] - diagonal[None] - straight - straight.T
        # The contribution of the same entries to the products of whole rows and columns.
        down, across = torch.einsum("uk,vuk->uv", diagonal_t, h), torch.einsum("uvk,vk->uv", t, diagonal_h)
        right, up = torch.einsum("uk,uvk->uv", diagonal_t, h), torch.einsum("vuk,vk->uv", t, diagonal_h)
        mixed = down + across + right + up
        counted = mixed + mixed.T - 2 * (diagonal[:, None] + diagonal[None] + straight + straight.T)
        change -= (scale * (exact_block - counted)).double().cpu().numpy()
    return change


def _differences(matrix: np.ndarray) -> np.ndarray:
    diagonal = np.diag(matrix)
    return matrix + matrix.T - diagonal[:, None] - diagonal[None, :]


def _disjoint(change: np.ndarray, below: float) -> list[tuple[int, int]]:
    """Return pairs of the most negative change in which no neuron occurs twice."""
    rows, columns = np.nonzero(np.triu(change < below, 1))
    order = np.argsort(change[rows, columns], kind="stable")
    used: set[int] = set()
    pairs = []
    for u, v in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if u not in used and v not in used:
            pairs.append((u, v))
            used |= {u, v}
    return pairs
