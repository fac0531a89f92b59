"""Blocks of units: which units lie in which block, and groups of units that can be exchanged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..layers import FIXED, Constraints

__all__ = ["exchangeable_units", "movable_classes", "units_and_blocks"]


def units_and_blocks(constraints: Constraints) -> tuple[np.ndarray, np.ndarray, dict[int, tuple]]:
    """Return the units, the movable block of each, and how they lie in blocks.

    Blocks of the same units are one, and so are those of two operations that match one to one. A block that contains a fixed
    unit is fixed, and so are blocks that overlap in other ways: their units move within what they have in common.

    Returns
    -------
    unit_of : ndarray
        For each label, the number of its class.
    block_of : ndarray
        For each unit, the unit that is its block; -1 if it has none that can move.
    memberships : dict of int to tuple
        For each unit, what distinguishes it from other units in its blocks: the operations that declared them, and the fixed
        blocks.
    """
    united = list(constraints.united)
    if not any(len(blocks) for blocks, _ in constraints.block_members):
        unit_of = _classes(united, constraints.n_labels)
        return unit_of, np.full(unit_of.max() + 1, -1), {}
    block, member = (np.concatenate([np.zeros(0, int), *(pair[k] for pair in constraints.block_members)]) for k in (0, 1))
    operation = np.repeat(np.arange(len(constraints.block_members)), [len(pair[0]) for pair in constraints.block_members])
    while True:
        unit_of = _classes(united, constraints.n_labels)
        fixed = unit_of[FIXED]
        links = np.unique(np.stack([unit_of[block], unit_of[member], operation]), axis=1)
        links = links[:, (links[0] != fixed) & (links[0] != links[1])]
        members = np.unique(links[:2], axis=1)
        replaced_by = _same_units(members) or _matching(links)
        fixed_blocks = np.unique(members[0, members[1] == fixed])
        overlapping = np.zeros(0, int) if replaced_by or len(fixed_blocks) else _overlapping(members)
        fixed_blocks = np.concatenate([fixed_blocks, overlapping])
        if not replaced_by and not len(fixed_blocks):
            break
        label = np.full(unit_of.max() + 1, FIXED)
        label[unit_of[::-1]] = np.arange(constraints.n_labels)[::-1]
        if len(overlapping):
            constraints.frozen.append((label[overlapping], "blocks of neurons that overlap with other blocks"))
        if replaced_by:
            united.append((label[list(replaced_by)], label[list(replaced_by.values())]))
        else:
            united.append((label[fixed_blocks], np.full(len(fixed_blocks), FIXED)))
    block_of = np.full(unit_of.max() + 1, -1)
    block_of[members[1]] = members[0]
    return unit_of, block_of, _memberships(operation, block, unit_of[block], unit_of[member], fixed)


def _memberships(
    operation: np.ndarray, block: np.ndarray, class_of: np.ndarray, unit: np.ndarray, fixed: int
) -> dict[int, tuple]:
    """Return, for each unit and operation that put it into a block, the rank among the united blocks, or the fixed block."""
    keys = np.stack([operation, class_of, block])
    distinct, key_index = np.unique(keys, axis=1, return_inverse=True)
    starts = np.flatnonzero(np.append(True, (distinct[:2, 1:] != distinct[:2, :-1]).any(0)))[: distinct.shape[1]]
    rank = np.arange(distinct.shape[1]) - np.repeat(starts, np.diff(np.append(starts, distinct.shape[1])))
    rank_or_fixed = np.where(distinct[1] == fixed, -1 - distinct[2], rank)[key_index.ravel()]
    memberships: dict[int, list[tuple[int, int]]] = {}
    for u, k, r in np.unique(np.stack([unit, operation, rank_or_fixed]), axis=1).T.tolist():
        memberships.setdefault(u, []).append((k, r))
    return {u: tuple(entries) for u, entries in memberships.items()}


def _classes(pairs: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """Return for each label the number of its class."""
    if not pairs:
        return np.arange(count)
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return connected_components(coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(count, count)), directed=False)[1]


def movable_classes(constraints: Constraints) -> np.ndarray:
    """Return for each label the number of the class that it would be in if nothing were fixed."""
    free = [(a[movable], b[movable]) for a, b in constraints.united for movable in [(a != FIXED) & (b != FIXED)]]
    return _classes(free, constraints.n_labels)


def _overlapping(links: np.ndarray) -> np.ndarray:
    """Return blocks that share units with another block, or lie in a block."""
    units, counts = np.unique(links[1], return_counts=True)
    shared = np.unique(links[0, np.isin(links[1], units[counts > 1])])
    return np.union1d(shared, np.intersect1d(links[0], links[1]))


def _same_units(links: np.ndarray) -> dict[int, int]:
    """Map blocks to an earlier block with the same units, and blocks of one unit to that unit."""
    order = np.lexsort((links[1], links[0]))
    first: dict[tuple[int, ...], int] = {}
    same: dict[int, int] = {}
    blocks, starts = np.unique(links[0, order], return_index=True)
    pieces = np.split(links[1, order], starts[1:])
    for block, units in zip(blocks.tolist(), pieces[: len(blocks)], strict=True):
        other = first.setdefault(tuple(units.tolist()), block) if len(units) > 1 else int(units[0])
        if other != block:
            same[block] = other
    return same


def _matching(links: np.ndarray) -> dict[int, int]:
    """Return the partners of blocks of two operations, each of which shares units with only one block of the other operation.

    The heads in which queries and keys are normalised are those in which they are multiplied, though these also contain values.
    """
    links = links[:, np.argsort(links[1], kind="stable")]
    edges = [np.zeros((4, 0), int)]
    for shift in range(1, links.shape[1]):
        adjacent = links[1, shift:] == links[1, :-shift]
        if not adjacent.any():
            break
        (b, _, k), (c, _, m) = links[:, :-shift][:, adjacent], links[:, shift:][:, adjacent]
        edges += [np.stack([k, m, b, c]), np.stack([m, k, c, b])]
    edge_columns = np.unique(np.concatenate(edges, axis=1), axis=1)
    _, edge_index, counts = np.unique(edge_columns[:3], axis=1, return_inverse=True, return_counts=True)
    once = {
        edge
        for edge, n in zip(edge_columns.T.tolist(), counts[edge_index.ravel()].tolist(), strict=True)
        if n == 1
        for edge in [tuple(edge)]
    }
    return {b: c for k, m, b, c in sorted(once) if k != m and b != c and (m, k, c, b) in once}


def exchangeable_units(
    signatures: Mapping[int, tuple], block_of: np.ndarray, memberships: Mapping[int, tuple]
) -> dict[tuple, np.ndarray]:
    """Return groups of units that can be exchanged, by colour refinement.

    These have equal signatures and lie in blocks that can be exchanged, if any.

    Parameters
    ----------
    signatures : mapping of int to tuple
        What each movable unit or block is without regard to blocks.
    block_of, memberships
        See `units_and_blocks`.
    """
    colour: dict[int, tuple] = {u: (signature, memberships.get(u, ())) for u, signature in signatures.items()}
    members: dict[int, list[int]] = {}
    for u in signatures:
        if block_of[u] >= 0:
            members.setdefault(int(block_of[u]), []).append(u)
    for b in members:
        colour.setdefault(b, ((), memberships.get(b, ())))
    n_colours = len(set(colour.values()))
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
        if len(set(colour.values())) == n_colours:
            break
        n_colours = len(set(colour.values()))
    groups: dict[tuple, list[int]] = {}
    for u, c in colour.items():
        groups.setdefault(c, []).append(u)
    return {c: np.array(units) for c, units in groups.items()}
