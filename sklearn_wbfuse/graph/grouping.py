"""From what a network's operations say about unit labels to its neuron groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..groups import Graph, Group, LabelledTensor, Span
from ..layers import FIXED, Record
from .symmetries import symmetries

__all__ = ["group_units"]


def group_units(
    record: Record,
    axes: Mapping[tuple[str, int], np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    operations: tuple[str, ...],
) -> Graph:
    """Units are classes of united labels; groups are classes of units that stand on the same axes equally often.

    Units of one group have also been seen by the same operations.

    Parameters
    ----------
    record : Record
    axes : mapping of (str, int) to ndarray
        Labels of each axis of each tensor.
    shapes : mapping of str to tuple
    operations : tuple of str
    """
    unit_of = _units(record)
    keys = list(axes)
    owner = np.concatenate([np.full(len(axes[k]), i) for i, k in enumerate(keys)]) if keys else np.zeros(0, int)
    position = np.concatenate([np.arange(len(axes[k])) for k in keys]) if keys else np.zeros(0, int)
    unit = np.concatenate([unit_of[axes[k]] for k in keys]) if keys else np.zeros(0, int)
    free = unit != unit_of[FIXED]
    owner, position, unit = owner[free], position[free], unit[free]

    members = _signatures(unit, owner, [unit_of[ids] for ids in record.seen])
    order, names = _order_and_names(record, unit_of, members, axes)
    group_of_unit = np.full(unit_of.max() + 1, -1)
    for g, signature in enumerate(order):
        group_of_unit[members[signature]] = g

    scales, signs = symmetries(record, unit_of, group_of_unit, axes, len(order))
    reads = _marked(record.readers, record.count) & ~_marked(record.computers, record.count)
    spans: dict[tuple[str, int], list[Span]] = {(name, a): [] for name, shape in shapes.items() for a in range(len(shape))}
    sizes = [len(members[s]) for s in order]
    rank = _ranks([members[s] for s in order], unit, owner * (position.max(initial=0) + 1) + position, unit_of.max() + 1)
    for i, key in enumerate(keys):
        here = owner == i
        for g in np.unique(group_of_unit[unit[here]]):
            chosen = here & (group_of_unit[unit] == g)
            by_unit = np.lexsort((position[chosen], rank[unit[chosen]]))
            index = position[chosen][by_unit].reshape(sizes[g], -1)
            role = "in" if reads[axes[key][index[0, 0]]] else "out"
            kinds = [(scales[g].get((i, copy), 0.0), bool(signs[g].get((i, copy), 0))) for copy in range(index.shape[1])]
            spans[key] += [Span(names[g], index[:, [k == kind for k in kinds]], role, *kind) for kind in dict.fromkeys(kinds)]
    tensors = {
        name: LabelledTensor(
            name,
            shape,
            tuple(tuple(sorted(spans[name, a], key=lambda s: s.index[0, 0])) for a in range(len(shape))),
            name in record.recurrent,
        )
        for name, shape in shapes.items()
    }
    groups = {names[g]: Group(names[g], sizes[g], bool(scales[g]), bool(signs[g])) for g in range(len(order))}
    return Graph(
        groups,
        tensors,
        norms=tuple(record.norms),
        summed=tuple(record.summed),
        operations=operations,
        frozen=_frozen(record, axes),
    )


def _ranks(groups: list[np.ndarray], unit: np.ndarray, place: np.ndarray, n_units: int) -> np.ndarray:
    """Position of every unit in its group: in the order in which units first stand on an axis."""
    first, rank = np.full(n_units, np.iinfo(int).max), np.zeros(n_units, dtype=int)
    np.minimum.at(first, unit, place)
    for units in groups:
        rank[units[np.argsort(first[units], kind="stable")]] = np.arange(len(units))
    return rank


def _units(record: Record) -> np.ndarray:
    """For each label, the number of its class."""
    if not record.pairs:
        return np.arange(record.count)
    a, b = (np.concatenate(side) for side in zip(*record.pairs, strict=True))
    links = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(record.count, record.count))
    return connected_components(links, directed=False)[1]


def _signatures(unit: np.ndarray, owner: np.ndarray, seen: list[np.ndarray]) -> dict[tuple, np.ndarray]:
    """Units by the axes that they stand on, with multiplicity, and by the operations that have seen them."""
    free = np.zeros(max((int(u.max()) for u in (unit, *seen) if len(u)), default=0) + 1, dtype=bool)
    free[unit] = True
    watched = [np.unique(u[free[u]]) for u in seen]
    unit = np.concatenate([unit, *watched])
    owner = np.concatenate([owner, *(np.full(len(u), -1 - k) for k, u in enumerate(watched))])
    found: dict[tuple, list[int]] = {}
    order = np.lexsort((owner, unit))
    cuts = np.flatnonzero(np.diff(unit[order])) + 1
    for piece in np.split(order, cuts) if len(order) else []:
        found.setdefault(tuple(owner[piece].tolist()), []).append(int(unit[piece[0]]))
    return {signature: np.array(units) for signature, units in found.items()}


def _order_and_names(
    record: Record, unit_of: np.ndarray, members: Mapping[tuple, np.ndarray], axes: Mapping[tuple[str, int], np.ndarray]
) -> tuple[list[tuple], list[str]]:
    """Groups in the order of computation, named after the first parameter that computes them."""
    signature_of = {int(u): s for s, units in members.items() for u in units}
    parameter_of = np.full(record.count, -1)
    keys = list(axes)
    for i, key in enumerate(keys):
        parameter_of[axes[key]] = i
    order: list[tuple] = []
    first: dict[tuple, str] = {}
    leftover = [np.asarray(ids) for ids in axes.values()]
    for ids in [*record.computers, *leftover]:
        for u, label in zip(unit_of[ids].tolist(), ids.tolist(), strict=True):
            signature = signature_of.get(u)
            if signature is not None and signature not in first and parameter_of[label] >= 0:
                order.append(signature)
                first[signature] = keys[parameter_of[label]][0]
    names: list[str] = []
    paths = [_path(first[s], record.suffixes.get(first[s])) for s in order]
    for i, path in enumerate(paths):
        names.append(path if paths.count(path) == 1 else f"{path}.{paths[:i].count(path)}")
    return order, names


def _path(parameter: str, suffix: str | None) -> str:
    """Of the module that owns a parameter, with the suffix that a rule has given; a parameter of the root's own names itself."""
    owner = parameter.rpartition(".")[0]
    return ".".join(filter(None, (owner, suffix))) or parameter


def _marked(labels: list[np.ndarray], count: int) -> np.ndarray:
    mark = np.zeros(count, dtype=bool)
    for ids in labels:
        mark[ids] = True
    return mark


def _frozen(record: Record, axes: Mapping[tuple[str, int], np.ndarray]) -> tuple[tuple[str, str], ...]:
    """Parameters whose units were frozen, with the reason."""
    why: dict[str, str] = {}
    owner: dict[int, str] = {}
    for (name, _), ids in axes.items():
        for label in ids.tolist():
            owner[label] = name
    for ids, reason in record.frozen:
        for label in np.unique(ids).tolist():
            if label in owner:
                why.setdefault(owner[label], reason)
    return tuple(why.items())
