r"""Transport of neurons in blocks: blocks are coupled as a whole, and neurons only within coupled blocks.

.. math:: \Pi_{(t,a),(s,b)} = B_{ts}\, P^{ts}_{ab}, \qquad B \in \Gamma(1/n, 1/m),\ P^{ts} \in \Gamma(1/d, 1/d'),

so that :math:`\langle C, \Pi \rangle = \sum_{ts} B_{ts} \langle C^{ts}, P^{ts} \rangle`: the optimal :math:`P^{ts}` of every
pair of blocks gives the cost of that pair. Several groups of neurons may share their blocks; their costs add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..exceptions import WidthError
from ..network.couplings import Coupling, Permutation, Plan
from .linear_problem import exact, largest, solve

__all__ = ["BlockCoupledTerm", "assemble", "check_multiple", "solve_nested"]

Costs = tuple[np.ndarray, np.ndarray | None]
"""Costs of neurons, and their signed part if neurons may change sign; see `solve`."""

_ROUNDS = 3
"""Number of turns of groups that share a tensor."""


@dataclass(frozen=True, eq=False)
class BlockCoupledTerm:
    """A tensor of diagonal blocks whose two axes belong to two groups of neurons in the same blocks.

    Attributes
    ----------
    groups : (int, int)
        Positions of the two among the costs.
    target : ndarray of shape (n, d, e, k)
    source : ndarray of shape (m, d, e, k)
    odd : (bool, bool)
        Whether each axis changes sign with its neurons.
    weight : float
        Factor of the products, which are subtracted from the costs.
    """

    groups: tuple[int, int]
    target: np.ndarray
    source: np.ndarray
    odd: tuple[bool, bool]
    weight: float


def solve_nested(
    costs: Sequence[Costs],
    shape: tuple[int, int],
    block_cost: np.ndarray | None = None,
    reg: float = 0.0,
    name: str = "",
    terms: Sequence[BlockCoupledTerm] = (),
) -> tuple[Coupling, list[Coupling]]:
    """Compute the couplings of least cost of blocks and of the groups of neurons in them.

    Groups that share a tensor take turns in every pair of blocks, with the permutations of the others fixed; the result is then
    a local optimum within blocks.

    Parameters
    ----------
    costs : list of (ndarray of shape (n d, m d'), ndarray or None)
        The costs of each group of neurons, in block-major order; sizes d and d' may differ between groups.
    shape : (n, m)
        Numbers of blocks of target and source.
    block_cost : ndarray of shape (n, m), optional
        Costs of the blocks themselves, in addition to their neurons.
    reg : float
        Regularisation within coupled blocks, relative to the largest cost of the group; blocks are matched exactly.
    name : str
        Name of the blocks, for the error.
    terms : list of BlockCoupledTerm
        Terms of two groups. They need permutations: equal sizes, and reg = 0.

    Returns
    -------
    blocks : Coupling
    groups : list of Coupling
        One for each of `costs`.

    Raises
    ------
    WidthError
        If n is not a multiple of m.
    """
    check_multiple(shape, name)
    total = np.zeros(shape) if block_cost is None else block_cost
    if terms:
        return _solve_coupled(costs, shape, total, terms)
    for cost, signed in costs:
        total = total + _pair_costs(cost if signed is None else cost - np.abs(signed), shape)
    blocks = exact(total)
    return blocks, [assemble(c, blocks, reg) for c in costs]


def check_multiple(shape: tuple[int, int], name: str = "") -> None:
    """Check that every block of the target can have exactly one source block."""
    if shape[0] % shape[1]:
        raise WidthError(
            f"The number of blocks of group {name!r} in the target must be a multiple of that in a model, {shape[1]}. "
            f"Got {shape[0]}."
        )


def _source_blocks(blocks: Coupling) -> np.ndarray:
    """Return the source block of each target block."""
    return blocks.index if isinstance(blocks, Permutation) else blocks.plan.argmax(1)


def assemble(costs: Costs, blocks: Coupling, reg: float = 0.0) -> Coupling:
    """Return the coupling of least cost of neurons, given the coupling of their blocks."""
    cost, signed = costs
    sources, (n, m) = _source_blocks(blocks), blocks.shape
    targets = np.arange(n)
    pairs = _in_blocks(cost, (n, m))[targets, sources]
    signed_pairs = None if signed is None else _in_blocks(signed, (n, m))[targets, sources]
    epsilon = reg * largest(cost, signed)
    inner = [solve(pairs[t], signed=None if signed_pairs is None else signed_pairs[t], epsilon=epsilon) for t in targets]
    d, d_source = pairs.shape[1:]
    permutations = [c for c in inner if isinstance(c, Permutation)]
    if isinstance(blocks, Permutation) and len(permutations) == n:
        index = np.concatenate([s * d + c.index for s, c in zip(sources, permutations, strict=True)])
        return Permutation(index, np.concatenate([c.sign for c in permutations]))
    plan, mass = (np.zeros((n, d, m, d_source)) for _ in range(2))
    for t, (s, c) in enumerate(zip(sources, inner, strict=True)):
        plan[t, :, s], mass[t, :, s] = c.plan / n, c.mass / n
    return Plan(plan.reshape(cost.shape), None if signed is None else mass.reshape(cost.shape))


def _in_blocks(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Reshape a matrix to (n, m, d, d'), contiguous within each pair of blocks."""
    (n, m), (rows, columns) = shape, matrix.shape
    return np.ascontiguousarray(matrix.reshape(n, rows // n, m, columns // m).transpose(0, 2, 1, 3), dtype=np.float64)


def _pair_costs(cost: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the least cost of every pair of blocks."""
    pairs = _in_blocks(cost, shape)
    if pairs.shape[2] == pairs.shape[3]:
        return _chosen(pairs, _assignments(pairs)).mean(2)
    return np.array([(p * exact(p).plan).sum() for p in pairs.reshape(-1, *pairs.shape[2:])]).reshape(shape)


def _assignments(pairs: np.ndarray) -> np.ndarray:
    """Solve the assignment problem of every pair of blocks; return indices of shape (n, m, d)."""
    flat = pairs.reshape(-1, *pairs.shape[2:])
    centred = flat - flat.mean(2, keepdims=True)  # large offsets slow assignments down
    return np.array([linear_sum_assignment(p)[1] for p in centred]).reshape(pairs.shape[:3])


def _chosen(pairs: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return the entries that permutations choose."""
    return np.take_along_axis(pairs, orders[..., None], 3)[..., 0]


def _solve_coupled(
    costs: Sequence[Costs], shape: tuple[int, int], block_cost: np.ndarray, terms: Sequence[BlockCoupledTerm]
) -> tuple[Coupling, list[Coupling]]:
    """Run `solve_nested` for permutations and groups that share tensors: group after group, for all pairs of blocks at once."""
    linear = [(_in_blocks(cost, shape), None if signed is None else _in_blocks(signed, shape)) for cost, signed in costs]
    orders: list[np.ndarray | None] = [None] * len(costs)
    signs = [np.ones((*shape, pairs.shape[2])) for pairs, _ in linear]
    for _ in range(_ROUNDS):
        for g, (pairs, signed) in enumerate(linear):
            even, odd = pairs, signed
            for term in terms:
                if g in term.groups and orders[term.groups[1 - term.groups.index(g)]] is not None:
                    side = term.groups.index(g)
                    other = term.groups[1 - side]
                    products = _products(term, side, orders[other], signs[other])  # type: ignore[arg-type]
                    if term.odd[side]:
                        odd = products + (0 if odd is None else odd)
                    else:
                        even = even - products
            orders[g] = assignments = _assignments(even if odd is None else even - np.abs(odd))
            if odd is not None:
                signs[g] = np.where(_chosen(odd, assignments) < 0, -1.0, 1.0)
    blocks = exact(block_cost + _values(linear, terms, orders, signs))
    assert isinstance(blocks, Permutation)
    targets, sources, groups = np.arange(shape[0]), blocks.index, list[Coupling]()
    for order, sign in zip(orders, signs, strict=True):
        assert order is not None
        index = sources[:, None] * order.shape[2] + order[targets, sources]
        groups.append(Permutation(index.ravel(), sign[targets, sources].ravel()))
    return blocks, groups


def _values(linear: Sequence[Costs], terms: Sequence[BlockCoupledTerm], orders: Sequence, signs: Sequence) -> np.ndarray:
    """Return the cost of every pair of blocks with its permutations."""
    total = np.asarray(0.0)
    for (pairs, signed), order, sign in zip(linear, orders, signs, strict=True):
        total = total + _chosen(pairs, order).mean(2)
        if signed is not None:
            total = total - (sign * _chosen(signed, order)).mean(2)
    for term in terms:
        g, other = term.groups
        chosen = _chosen(_products(term, 0, orders[other], signs[other]), orders[g])
        total = total - ((signs[g] if term.odd[0] else 1.0) * chosen).mean(2)
    return total


def _products(term: BlockCoupledTerm, side: int, orders: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return the products (n, m, d, d) of the neurons of one axis of a term, the other axis permuted in every pair of blocks."""
    target, source = (a if side == 0 else a.swapaxes(1, 2) for a in (term.target, term.source))
    (n, d), m = target.shape[:2], len(source)
    result = np.empty((n, m, d, d), dtype=np.float64)
    for t in range(n):
        moved = np.take_along_axis(source, orders[t][:, None, :, None], 2)
        if term.odd[1 - side]:
            moved = moved * signs[t][:, None, :, None]
        result[t] = target[t].reshape(d, -1) @ moved.reshape(m, d, -1).swapaxes(1, 2)
    return term.weight * n * d * result  # a permutation of n d neurons has the mass 1 / (n d) each
