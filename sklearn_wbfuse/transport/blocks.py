r"""Transport of neurons that lie in blocks: blocks move as a whole, and neurons only within theirs.

.. math:: \Pi_{(t,a),(s,b)} = B_{ts}\, P^{ts}_{ab}, \qquad B \in \Gamma(1/n, 1/m),\ P^{ts} \in \Gamma(1/d, 1/d'),

so that :math:`\langle C, \Pi \rangle = \sum_{ts} B_{ts} \langle C^{ts}, P^{ts} \rangle`: the best :math:`P^{ts}` of every pair of
blocks give the costs of the blocks. Several groups of neurons may share their blocks; their costs add up.
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
"""Costs of neurons, and their signed part where neurons may change sign; see `solve`."""


_ROUNDS = 3
"""Turns that groups take which a tensor ties to each other."""


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
        Of the products, which are subtracted from the costs.
    """

    groups: tuple[int, int]
    target: np.ndarray
    source: np.ndarray
    odd: tuple[bool, bool]
    weight: float


def solve_nested(
    costs: Sequence[Costs],
    shape: tuple[int, int],
    own: np.ndarray | None = None,
    reg: float = 0.0,
    name: str = "",
    ties: Sequence[BlockCoupledTerm] = (),
) -> tuple[Coupling, list[Coupling]]:
    """Couplings of blocks, and of the groups of neurons that lie in them, of least cost.

    Groups that a tensor ties to each other take turns in every pair of blocks, the others' permutations fixed; the result is
    then a local optimum within blocks.

    Parameters
    ----------
    costs : list of (ndarray of shape (n d, m d'), ndarray or None)
        Of each group of neurons, in block-major order; sizes d and d' may differ from group to group.
    shape : (n, m)
        Numbers of blocks of target and source.
    own : ndarray of shape (n, m), optional
        What the blocks cost by themselves.
    reg : float
        Within blocks that are matched, relative to the largest cost of the group; blocks are matched exactly.
    name : str
        Of the blocks, for the error.
    ties : list of BlockCoupledTerm
        For permutations alone: equal sizes, and reg = 0.

    Raises
    ------
    WidthError
        If n is not a multiple of m.
    """
    check_multiple(shape, name)
    total = np.zeros(shape) if own is None else own
    if ties:
        return _tied(costs, shape, total, ties)
    for cost, signed in costs:
        total = total + _pairs(cost if signed is None else cost - np.abs(signed), shape)
    blocks = exact(total)
    return blocks, [assemble(c, blocks, reg) for c in costs]


def check_multiple(shape: tuple[int, int], name: str = "") -> None:
    """Every block of the target has one source block."""
    if shape[0] % shape[1]:
        raise WidthError(
            f"Group {name!r} has {shape[1]} blocks in a model and {shape[0]} in the target; "
            f"the number of blocks of the target must be a multiple of {shape[1]}."
        )


def _source_blocks(blocks: Coupling) -> np.ndarray:
    """The source block of each target block."""
    return blocks.index if isinstance(blocks, Permutation) else blocks.plan.argmax(1)


def assemble(costs: Costs, blocks: Coupling, reg: float = 0.0) -> Coupling:
    """The coupling of neurons of least cost within blocks that are matched already."""
    cost, signed = costs
    of, (n, m) = _source_blocks(blocks), blocks.shape
    each = np.arange(n)
    pairs = _cut(cost, (n, m))[each, of]
    signs = None if signed is None else _cut(signed, (n, m))[each, of]
    epsilon = reg * largest(cost, signed)
    found = [solve(pairs[t], signed=None if signs is None else signs[t], epsilon=epsilon) for t in each]
    d, d_source = pairs.shape[1:]
    inner = [c for c in found if isinstance(c, Permutation)]
    if isinstance(blocks, Permutation) and len(inner) == n:
        index = np.concatenate([s * d + c.index for s, c in zip(of, inner, strict=True)])
        return Permutation(index, np.concatenate([c.sign for c in inner]))
    plan, mass = (np.zeros((n, d, m, d_source)) for _ in range(2))
    for t, (s, c) in enumerate(zip(of, found, strict=True)):
        plan[t, :, s], mass[t, :, s] = c.plan / n, c.mass / n
    return Plan(plan.reshape(cost.shape), None if signed is None else mass.reshape(cost.shape))


def _cut(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A matrix as (n, m, d, d'), contiguous within each pair of blocks."""
    (n, m), (rows, columns) = shape, matrix.shape
    return np.ascontiguousarray(matrix.reshape(n, rows // n, m, columns // m).transpose(0, 2, 1, 3), dtype=np.float64)


def _pairs(cost: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Least cost of every pair of blocks."""
    pairs = _cut(cost, shape)
    if pairs.shape[2] == pairs.shape[3]:
        return _inner(pairs, _orders(pairs)).mean(2)
    return np.array([(p * exact(p).plan).sum() for p in pairs.reshape(-1, *pairs.shape[2:])]).reshape(shape)


def _orders(pairs: np.ndarray) -> np.ndarray:
    """The assignment of every pair of blocks, as indices of shape (n, m, d)."""
    flat = pairs.reshape(-1, *pairs.shape[2:])
    centred = flat - flat.mean(2, keepdims=True)  # strong offsets slow assignments down
    return np.array([linear_sum_assignment(p)[1] for p in centred]).reshape(pairs.shape[:3])


def _inner(pairs: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """The entries that permutations choose."""
    return np.take_along_axis(pairs, orders[..., None], 3)[..., 0]


def _tied(
    costs: Sequence[Costs], shape: tuple[int, int], own: np.ndarray, ties: Sequence[BlockCoupledTerm]
) -> tuple[Coupling, list[Coupling]]:
    """`solve_nested` for permutations and groups that are tied: all pairs of blocks side by side, group after group."""
    linear = [(_cut(cost, shape), None if signed is None else _cut(signed, shape)) for cost, signed in costs]
    orders: list[np.ndarray | None] = [None] * len(costs)
    signs = [np.ones((*shape, pairs.shape[2])) for pairs, _ in linear]
    for _ in range(_ROUNDS):
        for g, (pairs, signed) in enumerate(linear):
            even, odd = pairs, signed
            for tie in ties:
                if g in tie.groups and orders[tie.groups[1 - tie.groups.index(g)]] is not None:
                    side = tie.groups.index(g)
                    other = tie.groups[1 - side]
                    products = _products(tie, side, orders[other], signs[other])  # type: ignore[arg-type]
                    if tie.odd[side]:
                        odd = products + (0 if odd is None else odd)
                    else:
                        even = even - products
            orders[g] = found = _orders(even if odd is None else even - np.abs(odd))
            if odd is not None:
                signs[g] = np.where(_inner(odd, found) < 0, -1.0, 1.0)
    n = shape[0]
    total, each = own + _value(linear, ties, orders, signs), np.arange(n)
    blocks = exact(total)
    assert isinstance(blocks, Permutation)
    of, result = blocks.index, list[Coupling]()
    for order, sign in zip(orders, signs, strict=True):
        assert order is not None
        index = of[:, None] * order.shape[2] + order[each, of]
        result.append(Permutation(index.ravel(), sign[each, of].ravel()))
    return blocks, result


def _value(linear: Sequence, ties: Sequence[BlockCoupledTerm], orders: Sequence, signs: Sequence) -> np.ndarray:
    """What every pair of blocks costs with its permutations."""
    total = 0.0
    for (pairs, signed), order, sign in zip(linear, orders, signs, strict=True):
        total = total + _inner(pairs, order).mean(2)
        if signed is not None:
            total = total - (sign * _inner(signed, order)).mean(2)
    for tie in ties:
        g, other = tie.groups
        chosen = _inner(_products(tie, 0, orders[other], signs[other]), orders[g])
        total = total - ((signs[g] if tie.odd[0] else 1.0) * chosen).mean(2)
    return np.asarray(total)


def _products(tie: BlockCoupledTerm, side: int, orders: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Products (n, m, d, d) of the neurons of one axis of a tie, those of the other permuted in every pair of blocks."""
    target, source = (a if side == 0 else a.swapaxes(1, 2) for a in (tie.target, tie.source))
    (n, d), m = target.shape[:2], len(source)
    result = np.empty((n, m, d, d), dtype=np.float64)
    for t in range(n):
        moved = np.take_along_axis(source, orders[t][:, None, :, None], 2)
        if tie.odd[1 - side]:
            moved = moved * signs[t][:, None, :, None]
        result[t] = target[t].reshape(d, -1) @ moved.reshape(m, d, -1).swapaxes(1, 2)
    return tie.weight * n * d * result  # a permutation of n d neurons has the mass 1 / (n d) each
