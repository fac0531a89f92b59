"""From the constraints on a network's unit labels to its neuron groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..layers import FIXED, Constraints
from ..layers.operations import Operation
from ..network.groups import Group, LabelledTensor, Span
from ..network.spec import NetworkSpec
from .blocks import exchangeable_units, movable_classes, units_and_blocks
from .symmetries import symmetries

__all__ = ["group_units"]


def group_units(
    constraints: Constraints,
    axes: Mapping[tuple[str, int], np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    operations: tuple[Operation, ...],
    diagonal: Mapping[str, int],
) -> NetworkSpec:
    """Return the spec of a network: units are classes of united labels, and groups are classes of exchangeable units.

    Units are exchangeable if they occur equally often on the same axes, if the same operations observe and move them, and if they
    lie in exchangeable blocks, if any.

    Parameters
    ----------
    constraints : Constraints
    axes : mapping of (str, int) to ndarray
        Labels of each axis of each tensor.
    shapes : mapping of str to tuple
    operations : tuple of Operation
    diagonal : mapping of str to int
        See `LabelledTensor`.
    """
    unit_of, block_of, memberships = units_and_blocks(constraints)
    keys = list(axes)
    owner = np.concatenate([np.full(len(axes[k]), i) for i, k in enumerate(keys)]) if keys else np.zeros(0, int)
    position = np.concatenate([np.arange(len(axes[k])) for k in keys]) if keys else np.zeros(0, int)
    unit = np.concatenate([unit_of[axes[k]] for k in keys]) if keys else np.zeros(0, int)
    free = (unit != unit_of[FIXED]) & _in_use(constraints, unit_of)[unit] & ~_broadcast_only(constraints, unit_of, axes)[unit]
    owner, position, unit = owner[free], position[free], unit[free]

    observed = [unit_of[ids] for ids in [*constraints.observed, *constraints.moved]]
    members = exchangeable_units(_signatures(unit, owner, observed), block_of, memberships)
    signatures, names = _order_and_names(constraints, unit_of, block_of, members, axes)
    groups = [members[signature] for signature in signatures]
    group_of_unit = np.full(unit_of.max() + 1, -1)
    for g, units in enumerate(groups):
        group_of_unit[units] = g

    scales, signs = symmetries(constraints, unit_of, group_of_unit, axes, len(groups))
    is_reader = _marked(constraints.consumers, constraints.n_labels) & ~_marked(constraints.producers, constraints.n_labels)
    spans: dict[tuple[str, int], list[Span]] = {(name, a): [] for name, shape in shapes.items() for a in range(len(shape))}
    rank = _ranks(groups, unit, owner * (position.max(initial=0) + 1) + position, block_of)
    for i, key in enumerate(keys):
        on_axis = owner == i
        for g in np.unique(group_of_unit[unit[on_axis]]):
            selected = on_axis & (group_of_unit[unit] == g)
            order = np.lexsort((position[selected], rank[unit[selected]]))
            index = position[selected][order].reshape(len(groups[g]), -1)
            role = "in" if is_reader[axes[key][index[0, 0]]] else "out"
            factors = [(scales[g].get((i, copy), 0.0), bool(signs[g].get((i, copy), 0))) for copy in range(index.shape[1])]
            spans[key] += [
                Span(names[g], index[:, [f == factor for f in factors]], role, *factor) for factor in dict.fromkeys(factors)
            ]
    tensors = {
        name: LabelledTensor(
            name,
            shape,
            tuple(tuple(sorted(spans[name, a], key=lambda s: s.index[0, 0])) for a in range(len(shape))),
            name in constraints.recurrent_tensors,
            diagonal.get(name, 1),
        )
        for name, shape in shapes.items()
    }
    blocks = [block_of[units[0]] for units in groups]
    block_groups = [names[group_of_unit[b]] if b >= 0 else None for b in blocks]
    return NetworkSpec(
        {n: Group(n, len(groups[g]), bool(scales[g]), bool(signs[g]), block_groups[g]) for g, n in enumerate(names)},
        tensors,
        uncompared=frozenset(constraints.uncompared),
        bias_pairs=tuple(constraints.bias_pairs),
        operations=operations,
        frozen=_frozen(constraints, axes),
    )


def _in_use(constraints: Constraints, unit_of: np.ndarray) -> np.ndarray:
    """Return for each unit whether an operation computes something of it.

    Rows of a table that operations leave out, such as those beyond the length of the inputs, must also be selected by one.
    """
    used = np.zeros(unit_of.max() + 1, dtype=bool)
    for ids in [*constraints.observed, *constraints.producers, *constraints.consumers]:
        used[unit_of[ids]] = True
    selected = np.zeros(len(used), dtype=bool)
    for _, ids in constraints.table_selections:
        selected[unit_of[ids]] = True
    for omitted, _ in constraints.table_selections:
        used[unit_of[omitted]] &= selected[unit_of[omitted]]
    return used


def _broadcast_only(constraints: Constraints, unit_of: np.ndarray, axes: Mapping[tuple[str, int], np.ndarray]) -> np.ndarray:
    """Return for each unit whether it is only an axis of size 1 that nothing computes or reads (a class token)."""
    broadcast = np.zeros(unit_of.max() + 1, dtype=bool)
    broadcast[unit_of[[ids[0] for ids in axes.values() if len(ids) == 1]]] = True
    for ids in [*constraints.producers, *constraints.consumers, *(ids for ids in axes.values() if len(ids) > 1)]:
        broadcast[unit_of[ids]] = False
    return broadcast


def _ranks(groups: list[np.ndarray], unit: np.ndarray, order_key: np.ndarray, block_of: np.ndarray) -> np.ndarray:
    """Return the position of every unit in its group, in the order in which units first occur on an axis, block after block."""
    first, rank = np.full(len(block_of), np.iinfo(int).max), np.zeros(len(block_of), dtype=int)
    np.minimum.at(first, unit, order_key)
    in_blocks = np.flatnonzero(block_of >= 0)
    np.minimum.at(first, block_of[in_blocks], first[in_blocks])
    block_first = np.where(block_of >= 0, first[block_of], 0)
    for units in groups:
        rank[units[np.lexsort((first[units], block_first[units]))]] = np.arange(len(units))
    return rank


def _signatures(unit: np.ndarray, owner: np.ndarray, observed: list[np.ndarray]) -> dict[int, tuple]:
    """Return the axes on which each unit occurs, with multiplicity, and the operations that have observed it."""
    free = np.zeros(max((int(u.max()) for u in (unit, *observed) if len(u)), default=0) + 1, dtype=bool)
    free[unit] = True
    observed_free = [np.unique(u[free[u]]) for u in observed]
    unit = np.concatenate([unit, *observed_free])
    owner = np.concatenate([owner, *(np.full(len(u), -1 - k) for k, u in enumerate(observed_free))])
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
    """Return groups in order of computation, blocks before their units, named after the first parameter that computes them."""
    signature_of = {int(unit): s for s, units in members.items() for unit in units}
    parameter_of = np.full(constraints.n_labels, -1)
    keys = list(axes)
    for i, key in enumerate(keys):
        parameter_of[axes[key]] = i
    parameter_of_unit = np.full(len(block_of), -1)
    parameter_of_unit[unit_of[parameter_of >= 0]] = parameter_of[parameter_of >= 0]
    path_of: dict[tuple, str] = {}
    block_names: dict[int, str] = {}
    for ids, name in sorted(constraints.block_names, key=lambda entry: not entry[1].endswith("heads")):  # the more specific name
        for unit in unit_of[ids].tolist():
            block_names.setdefault(unit, name)
    leftover = [np.asarray(ids) for ids in axes.values()]
    for ids in [*constraints.producers, *leftover]:
        for unit, label in zip(unit_of[ids].tolist(), ids.tolist(), strict=True):
            signature = signature_of.get(unit)
            if signature is not None and signature not in path_of and parameter_of[label] >= 0:
                block = int(block_of[unit])
                outer = signature_of.get(block)
                if outer is not None and outer not in path_of:
                    path_of[outer] = block_names.get(block) or _path(keys[parameter_of_unit[block]][0], constraints)
                path_of[signature] = _path(keys[parameter_of[label]][0], constraints)
    paths = list(path_of.values())
    names = [path if paths.count(path) == 1 else f"{path}.{paths[:i].count(path)}" for i, path in enumerate(paths)]
    return list(path_of), names


def _path(parameter: str, constraints: Constraints) -> str:
    """Return the path of the module that owns a parameter, with the suffix from a rule; the name of a parameter of the root."""
    owner = parameter.rpartition(".")[0]
    return ".".join(filter(None, (owner, constraints.group_suffixes.get(parameter)))) or parameter


def _marked(labels: list[np.ndarray], count: int) -> np.ndarray:
    """Return for each of `count` labels whether it is in one of the arrays."""
    marked = np.zeros(count, dtype=bool)
    for ids in labels:
        marked[ids] = True
    return marked


def _frozen(constraints: Constraints, axes: Mapping[tuple[str, int], np.ndarray]) -> tuple[tuple[str, str], ...]:
    """Return the parameters and blocks whose units stay in place, with the reason.

    These are the ones without a rule, and neurons (units that a parameter computes) that a different constraint keeps in place:
    all but the outputs of the network, unless a parameter also reads these.
    """
    reason_by_name: dict[str, str] = {}
    owner = {label: name for ids, name in constraints.block_names for label in ids.tolist()}
    for (name, _), ids in axes.items():
        for label in ids.tolist():
            owner[label] = name
    class_of = movable_classes(constraints)
    reported = np.zeros(class_of.max() + 1, dtype=bool)
    for ids, reason in constraints.frozen:
        for label in np.unique(ids).tolist():
            if label in owner:
                reason_by_name.setdefault(owner[label], reason)
                reported[class_of[label]] = True

    neurons = _classes_in(constraints.producers, class_of)
    neurons &= ~_classes_in(constraints.outputs, class_of) | _classes_in(constraints.consumers, class_of)
    reason_of: dict[int, str] = {}
    fixed = [
        (ids, f"held in place in {location}" if location else "returned by the network") for ids, location in constraints.fixed
    ]
    for ids, reason in [*constraints.frozen, *fixed]:
        for c in np.unique(class_of[ids]).tolist():
            reason_of.setdefault(c, reason)
    for (name, _), ids in axes.items():
        for c in class_of[ids][(neurons & ~reported)[class_of[ids]]].tolist():
            if c in reason_of:
                reason_by_name.setdefault(name, reason_of[c])
                reported[c] = True  # its other parameters move with it
    return tuple(reason_by_name.items())


def _classes_in(labels: list[np.ndarray], class_of: np.ndarray) -> np.ndarray:
    """Return for each class whether one of the labels lies in it."""
    inside = np.zeros(class_of.max() + 1, dtype=bool)
    for ids in labels:
        inside[class_of[ids]] = True
    return inside
