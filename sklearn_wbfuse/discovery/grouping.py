"""From what a network's operations say about unit labels to its neuron groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..layers import FIXED, Constraints
from ..layers.operations import Operation
from ..network.groups import Group, LabelledTensor, Span
from ..network.spec import NetworkSpec
from .blocks import movable_classes, refined, units_and_blocks
from .symmetries import symmetries

__all__ = ["group_units"]


def group_units(
    constraints: Constraints,
    axes: Mapping[tuple[str, int], np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    operations: tuple[Operation, ...],
    diagonal: Mapping[str, int],
) -> NetworkSpec:
    """Units are classes of united labels; groups are classes of units that stand on the same axes equally often.

    Units of one group have also been seen by the same operations, and lie in blocks of one group if they lie in any.

    Parameters
    ----------
    record : Record
    axes : mapping of (str, int) to ndarray
        Labels of each axis of each tensor.
    shapes : mapping of str to tuple
    operations : tuple of Operation
    diagonal : mapping of str to int
        See `LabelledTensor`.
    """
    unit_of, block_of, slots = units_and_blocks(constraints)
    keys = list(axes)
    owner = np.concatenate([np.full(len(axes[k]), i) for i, k in enumerate(keys)]) if keys else np.zeros(0, int)
    position = np.concatenate([np.arange(len(axes[k])) for k in keys]) if keys else np.zeros(0, int)
    unit = np.concatenate([unit_of[axes[k]] for k in keys]) if keys else np.zeros(0, int)
    free = (unit != unit_of[FIXED]) & _in_use(constraints, unit_of)[unit] & ~_mere_broadcast(constraints, unit_of, axes)[unit]
    owner, position, unit = owner[free], position[free], unit[free]

    members = refined(
        _signatures(unit, owner, [unit_of[ids] for ids in [*constraints.seen, *constraints.moved]]), block_of, slots
    )
    order, names = _order_and_names(constraints, unit_of, block_of, members, axes)
    group_of_unit = np.full(unit_of.max() + 1, -1)
    for g, signature in enumerate(order):
        group_of_unit[members[signature]] = g

    scales, signs = symmetries(constraints, unit_of, group_of_unit, axes, len(order))
    reads = _marked(constraints.readers, constraints.count) & ~_marked(constraints.computers, constraints.count)
    spans: dict[tuple[str, int], list[Span]] = {(name, a): [] for name, shape in shapes.items() for a in range(len(shape))}
    sizes = [len(members[s]) for s in order]
    place = owner * (position.max(initial=0) + 1) + position
    rank = _ranks([members[s] for s in order], unit, place, block_of)
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
            name in constraints.recurrent,
            diagonal.get(name, 1),
        )
        for name, shape in shapes.items()
    }
    blocks = [block_of[members[s][0]] for s in order]
    within = [names[group_of_unit[b]] if b >= 0 else None for b in blocks]
    groups = {n: Group(n, sizes[g], bool(scales[g]), bool(signs[g]), within[g]) for g, n in enumerate(names)}
    return NetworkSpec(
        groups,
        tensors,
        uncompared=frozenset(constraints.uncompared),
        bias_pairs=tuple(constraints.bias_pairs),
        operations=operations,
        frozen=_frozen(constraints, axes),
    )


def _in_use(constraints: Constraints, unit_of: np.ndarray) -> np.ndarray:
    """For each unit whether an operation computes something of it, and one takes it where some are left out.

    Rows of a table beyond the length of the inputs are no such units.
    """
    used = np.zeros(unit_of.max() + 1, dtype=bool)
    for ids in [*constraints.seen, *constraints.computers, *constraints.readers]:
        used[unit_of[ids]] = True
    taken = np.zeros(len(used), dtype=bool)
    for _, ids in constraints.cut:
        taken[unit_of[ids]] = True
    for ids, _ in constraints.cut:
        used[unit_of[ids]] &= taken[unit_of[ids]]
    return used


def _mere_broadcast(constraints: Constraints, unit_of: np.ndarray, axes: Mapping[tuple[str, int], np.ndarray]) -> np.ndarray:
    """For each unit whether it is but an axis of size 1 that nothing computes or reads, such as those of a class token."""
    mere = np.zeros(unit_of.max() + 1, dtype=bool)
    mere[unit_of[[ids[0] for ids in axes.values() if len(ids) == 1]]] = True
    for ids in [*constraints.computers, *constraints.readers, *(ids for ids in axes.values() if len(ids) > 1)]:
        mere[unit_of[ids]] = False
    return mere


def _ranks(groups: list[np.ndarray], unit: np.ndarray, place: np.ndarray, block_of: np.ndarray) -> np.ndarray:
    """Position of every unit in its group: in the order in which units first stand on an axis, block after block."""
    first, rank = np.full(len(block_of), np.iinfo(int).max), np.zeros(len(block_of), dtype=int)
    np.minimum.at(first, unit, place)
    inside = np.flatnonzero(block_of >= 0)
    np.minimum.at(first, block_of[inside], first[inside])
    before = np.where(block_of >= 0, first[block_of], 0)
    for units in groups:
        rank[units[np.lexsort((first[units], before[units]))]] = np.arange(len(units))
    return rank


def _signatures(unit: np.ndarray, owner: np.ndarray, seen: list[np.ndarray]) -> dict[int, tuple]:
    """The axes that each unit stands on, with multiplicity, and the operations that have seen it."""
    free = np.zeros(max((int(u.max()) for u in (unit, *seen) if len(u)), default=0) + 1, dtype=bool)
    free[unit] = True
    watched = [np.unique(u[free[u]]) for u in seen]
    unit = np.concatenate([unit, *watched])
    owner = np.concatenate([owner, *(np.full(len(u), -1 - k) for k, u in enumerate(watched))])
    order = np.lexsort((owner, unit))
    cuts = np.flatnonzero(np.diff(unit[order])) + 1
    pieces = np.split(order, cuts) if len(order) else []
    return {int(unit[piece[0]]): tuple(owner[piece].tolist()) for piece in pieces}


def _order_and_names(
    constraints: Constraints,
    unit_of: np.ndarray,
    block_of: np.ndarray,
    members: Mapping[tuple, np.ndarray],
    axes: Mapping[tuple[str, int], np.ndarray],
) -> tuple[list[tuple], list[str]]:
    """Groups in the order of computation, named after the first parameter that computes them; blocks before their units."""
    signature_of = {int(u): s for s, units in members.items() for u in units}
    parameter_of = np.full(constraints.count, -1)
    keys = list(axes)
    for i, key in enumerate(keys):
        parameter_of[axes[key]] = i
    parameter_of_unit = np.full(len(block_of), -1)
    parameter_of_unit[unit_of[parameter_of >= 0]] = parameter_of[parameter_of >= 0]
    order: list[tuple] = []
    first: dict[tuple, str] = {}
    block_names: dict[int, str] = {}
    for ids, name in sorted(constraints.block_names, key=lambda entry: not entry[1].endswith("heads")):  # the more telling name
        for u in unit_of[ids].tolist():
            block_names.setdefault(u, name)
    leftover = [np.asarray(ids) for ids in axes.values()]
    for ids in [*constraints.computers, *leftover]:
        for u, label in zip(unit_of[ids].tolist(), ids.tolist(), strict=True):
            signature = signature_of.get(u)
            if signature is not None and signature not in first and parameter_of[label] >= 0:
                outer = signature_of.get(int(block_of[u]))
                if outer is not None and outer not in first:
                    order.append(outer)
                    first[outer] = block_names.get(int(block_of[u])) or _path(
                        keys[parameter_of_unit[block_of[u]]][0], constraints
                    )
                order.append(signature)
                first[signature] = _path(keys[parameter_of[label]][0], constraints)
    names: list[str] = []
    paths = [first[s] for s in order]
    for i, path in enumerate(paths):
        names.append(path if paths.count(path) == 1 else f"{path}.{paths[:i].count(path)}")
    return order, names


def _path(parameter: str, constraints: Constraints) -> str:
    """Of the module that owns a parameter, with the suffix that a rule has given; a parameter of the root's own names itself."""
    owner = parameter.rpartition(".")[0]
    return ".".join(filter(None, (owner, constraints.suffixes.get(parameter)))) or parameter


def _marked(labels: list[np.ndarray], count: int) -> np.ndarray:
    mark = np.zeros(count, dtype=bool)
    for ids in labels:
        mark[ids] = True
    return mark


def _frozen(constraints: Constraints, axes: Mapping[tuple[str, int], np.ndarray]) -> tuple[tuple[str, str], ...]:
    """Parameters and blocks whose units stay in place, with the reason.

    Those for which a rule is lacking, and neurons (units that a parameter computes) that are held by what is not theirs: all
    but the outputs of the network, unless a parameter reads these as well.
    """
    why: dict[str, str] = {}
    owner = {label: name for ids, name in constraints.block_names for label in ids.tolist()}
    for (name, _), ids in axes.items():
        for label in ids.tolist():
            owner[label] = name
    class_of = movable_classes(constraints)
    reported = np.zeros(class_of.max() + 1, dtype=bool)
    for ids, reason in constraints.frozen:
        for label in np.unique(ids).tolist():
            if label in owner:
                why.setdefault(owner[label], reason)
                reported[class_of[label]] = True

    neurons = _classes_in(constraints.computers, class_of)
    neurons &= ~_classes_in(constraints.outputs, class_of) | _classes_in(constraints.readers, class_of)
    reason_of: dict[int, str] = {}
    places = [(ids, f"held in place in {where}" if where else "returned by the network") for ids, where in constraints.fixed]
    for ids, reason in [*constraints.frozen, *places]:
        for c in np.unique(class_of[ids]).tolist():
            reason_of.setdefault(c, reason)
    for (name, _), ids in axes.items():
        for c in class_of[ids][(neurons & ~reported)[class_of[ids]]].tolist():
            if c in reason_of:
                why.setdefault(name, reason_of[c])
                reported[c] = True  # its other parameters move with it
    return tuple(why.items())


def _classes_in(labels: list[np.ndarray], class_of: np.ndarray) -> np.ndarray:
    """For each class whether one of the labels lies in it."""
    inside = np.zeros(class_of.max() + 1, dtype=bool)
    for ids in labels:
        inside[class_of[ids]] = True
    return inside
