"""Blocks of units: which units lie in which block, and groups of units whose blocks can be exchanged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..layers import FIXED, Constraints

__all__ = ["movable_classes", "refined", "units_and_blocks"]


def units_and_blocks(constraints: Constraints) -> tuple[np.ndarray, np.ndarray, dict[int, tuple]]:
    """Units, the movable block of each, and where in which blocks they lie.

    Blocks of the same units are one, and so are those of two operations that match one to one. A block of which a unit is
    fixed is fixed, and so are blocks that overlap otherwise: their units move within what they have in common.

    Returns
    -------
    unit_of : ndarray
        For each label, the number of its class.
    block_of : ndarray
        For each unit the unit that is its block, -1 where it has none that can move.
    slots : dict of int to tuple
        For each unit, what tells it from other units in its blocks: which operations have put it there, and the fixed blocks.
    """
    pairs = list(constraints.pairs)
    if not any(len(blocks) for blocks, _ in constraints.enclosed):
        unit_of = _classes(pairs, constraints.count)
        return unit_of, np.full(unit_of.max() + 1, -1), {}
    block, inside = (np.concatenate([np.zeros(0, int), *(pair[k] for pair in constraints.enclosed)]) for k in (0, 1))
    operation = np.repeat(np.arange(len(constraints.enclosed)), [len(pair[0]) for pair in constraints.enclosed])
    while True:
        unit_of = _classes(pairs, constraints.count)
        fixed = unit_of[FIXED]
        links = np.unique(np.stack([unit_of[block], unit_of[inside], operation]), axis=1)
        links = links[:, (links[0] != fixed) & (links[0] != links[1])]
        plain = np.unique(links[:2], axis=1)
        same = _same_units(plain) or _matching(links)
        held = np.unique(plain[0, plain[1] == fixed])
        overlapping = np.zeros(0, int) if same or len(held) else _overlapping(plain)
        stuck = np.concatenate([held, overlapping])
        if not same and not len(stuck):
            break
        label = np.full(unit_of.max() + 1, FIXED)
        label[unit_of[::-1]] = np.arange(constraints.count)[::-1]
        if len(overlapping):
            constraints.frozen.append((label[overlapping], "blocks of neurons that overlap with other blocks"))
        pairs.append((label[list(same)], label[list(same.values())]) if same else (label[stuck], np.full(len(stuck), FIXED)))
    block_of = np.full(unit_of.max() + 1, -1)
    block_of[plain[1]] = plain[0]
    return unit_of, block_of, _slots(operation, block, unit_of[block], unit_of[inside], fixed)


def _slots(operation: np.ndarray, block: np.ndarray, class_of: np.ndarray, unit: np.ndarray, fixed: int) -> dict[int, tuple]:
    """Of each unit, for every operation that has put it into a block: which of the united blocks that was, or which fixed one."""
    keys = np.stack([operation, class_of, block])
    distinct, which = np.unique(keys, axis=1, return_inverse=True)
    starts = np.flatnonzero(np.append(True, (distinct[:2, 1:] != distinct[:2, :-1]).any(0)))[: distinct.shape[1]]
    rank = np.arange(distinct.shape[1]) - np.repeat(starts, np.diff(np.append(starts, distinct.shape[1])))
    slot = np.where(distinct[1] == fixed, -1 - distinct[2], rank)[which.ravel()]
    slots: dict[int, list[tuple[int, int]]] = {}
    for u, k, s in np.unique(np.stack([unit, operation, slot]), axis=1).T.tolist():
        slots.setdefault(u, []).append((k, s))
    return {u: tuple(own) for u, own in slots.items()}


def _classes(pairs: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """For each label, the number of its class."""
    if not pairs:
        return np.arange(count)
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return connected_components(coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(count, count)), directed=False)[1]


def movable_classes(constraints: Constraints) -> np.ndarray:
    """For each label, the number of the class that it would be in if nothing were held in place."""
    free = [(a[kept], b[kept]) for a, b in constraints.pairs for kept in [(a != FIXED) & (b != FIXED)]]
    return _classes(free, constraints.count)


def _overlapping(links: np.ndarray) -> np.ndarray:
    """Blocks that share units with a block of others, or lie in a block."""
    units, counts = np.unique(links[1], return_counts=True)
    shared = np.unique(links[0, np.isin(links[1], units[counts > 1])])
    return np.union1d(shared, np.intersect1d(links[0], links[1]))


def _same_units(links: np.ndarray) -> dict[int, int]:
    """Blocks with the units of another one -> that one; a block of one unit is that unit."""
    order = np.lexsort((links[1], links[0]))
    first: dict[tuple[int, ...], int] = {}
    same: dict[int, int] = {}
    blocks, starts = np.unique(links[0, order], return_index=True)
    pieces = np.split(links[1, order], starts[1:])
    for b, units in zip(blocks.tolist(), pieces[: len(blocks)], strict=True):
        other = first.setdefault(tuple(units.tolist()), b) if len(units) > 1 else int(units[0])
        if other != b:
            same[b] = other
    return same


def _matching(links: np.ndarray) -> dict[int, int]:
    """Blocks of two operations that share units with one block of the other each -> that block.

    The heads in which queries and keys are normalised are those in which they are multiplied, though these hold values as well.
    """
    links = links[:, np.argsort(links[1], kind="stable")]
    edges = [np.zeros((4, 0), int)]
    for shift in range(1, links.shape[1]):
        near = links[1, shift:] == links[1, :-shift]
        if not near.any():
            break
        (b, _, k), (c, _, m) = links[:, :-shift][:, near], links[:, shift:][:, near]
        edges += [np.stack([k, m, b, c]), np.stack([m, k, c, b])]
    found = np.unique(np.concatenate(edges, axis=1), axis=1)
    _, which, counts = np.unique(found[:3], axis=1, return_inverse=True, return_counts=True)
    once = {
        edge for edge, n in zip(found.T.tolist(), counts[which.ravel()].tolist(), strict=True) if n == 1 for edge in [tuple(edge)]
    }
    return {b: c for k, m, b, c in sorted(once) if k != m and b != c and (m, k, c, b) in once}


def refined(signatures: Mapping[int, tuple], block_of: np.ndarray, slots: Mapping[int, tuple]) -> dict[tuple, np.ndarray]:
    """Units that can be exchanged: of equal signatures, in blocks whose units can be exchanged for one another.

    Parameters
    ----------
    signatures : mapping of int to tuple
        What each movable unit or block is without regard to blocks.
    block_of, slots
        See `units_and_blocks`.
    """
    colour: dict[int, tuple] = {u: (signature, slots.get(u, ())) for u, signature in signatures.items()}
    members: dict[int, list[int]] = {}
    for u in signatures:
        if block_of[u] >= 0:
            members.setdefault(int(block_of[u]), []).append(u)
    for b in members:
        colour.setdefault(b, ((), slots.get(b, ())))
    classes = len(set(colour.values()))
    while members:
        number = {c: k for k, c in enumerate(dict.fromkeys(colour.values()))}
        numbered = {u: number[c] for u, c in colour.items()}
        for b, units in members.items():
            colour[b] = (numbered[b], *sorted(numbered[u] for u in units), "block")
        for b, units in members.items():
            for u in units:
                colour[u] = (numbered[u], colour[b])
        for u in colour:
            if u not in members and block_of[u] < 0:
                colour[u] = (numbered[u],)
        if len(set(colour.values())) == classes:
            break
        classes = len(set(colour.values()))
    found: dict[tuple, list[int]] = {}
    for u, c in colour.items():
        found.setdefault(c, []).append(u)
    return {c: np.array(units) for c, units in found.items()}
