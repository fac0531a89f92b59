"""Movement of data: the same operation is applied to the labels.

Flatten, concatenation, channel shuffle and transposed weights are exact to the index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .constraints import Constraints
from .elementwise import TRACKED, interchangeable_positions, is_zero, varies
from .labels import FIXED, LabelMap, Value
from .operations import TABLE, operation_names
from .registry import register_rule

__all__: list[str] = []


def _operation(name: str) -> Any:
    return getattr(torch.ops.aten, TABLE[name].same_as or name)  # expanded labels cannot always be viewed


def _register_moves() -> None:
    def move(name: str) -> None:
        operation = _operation(name)

        def apply(constraints: Constraints, x: Value, *arguments: Any, **keywords: Any) -> Value:
            """Apply the same operation to the labels."""
            return x.map(lambda ids: operation(ids, *arguments, **keywords))

        register_rule(f"aten::{name}")(apply)

    def split(name: str) -> None:
        operation = _operation(name)

        def piece(k: int, arguments: Any, keywords: Any, ids: Tensor) -> Tensor:
            return operation(ids, *arguments, **keywords)[k]

        def apply(constraints: Constraints, x: Value, *arguments: Any, **keywords: Any) -> tuple[Value, ...]:
            """Split the labels into pieces."""
            pieces = len(operation(torch.empty(x.shape, device="meta"), *arguments, **keywords))
            return tuple(x.map(partial(piece, k, arguments, keywords)) for k in range(pieces))

        register_rule(f"aten::{name}")(apply)

    def repeat(name: str) -> None:
        operation = _operation(name)

        def apply(constraints: Constraints, x: Value, *arguments: Any, **keywords: Any) -> Value:
            """Apply the same operation to the labels; copies are known to be equal."""
            return _tracked(x).map(lambda ids: operation(ids, *arguments, **keywords))

        register_rule(f"aten::{name}")(apply)

    for kind, register in {"reshapes": move, "moves": move, "repeats": repeat, "splits": split}.items():
        for name in operation_names(kind):
            register(name)


_register_moves()


@register_rule("aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::_assert_async", "aten::sym_constrain_range")
def assertion(constraints: Constraints, *_: Any, **__: Any) -> None:
    """Compute nothing."""


def _tracked(x: Value) -> Value:
    """Return the same value with a pattern, so that its copies are known to be equal."""
    if x.pattern is not None or x.constant is not None or math.prod(x.shape) > TRACKED:
        return x
    return replace(x, pattern=torch.arange(math.prod(x.shape)).view(x.shape))


@register_rule("aten::expand", "aten::expand_copy")
def expand(constraints: Constraints, x: Value, size: Sequence[int], **_: Any) -> Value:
    """Repeat a value along a dimension, along which it then does not vary."""
    expanded = _tracked(x).map(lambda ids: ids.expand(tuple(size)))
    shift = len(expanded.shape) - len(x.shape)
    repeated = tuple(d for d, n in enumerate(expanded.shape) if n > 1 and (d < shift or x.shape[d - shift] == 1))
    return replace(expanded, uniform=repeated)


@register_rule("aten::cat", "aten::concat")
def cat(constraints: Constraints, values: Sequence[Value], dim: int = 0) -> Value:
    """Concatenate: labels along `dim` follow each other, and all other labels unite."""
    dim %= max(len(v.shape) for v in values)
    values = [v for v in values if v.shape != (0,) and v.shape[dim]] or list(values[:1])
    shape = list(values[0].shape)
    shape[dim] = sum(v.shape[dim] for v in values)
    joint = _joint_maps(values, dim)
    label_maps = []
    if joint:
        label_maps.append(LabelMap(torch.cat([label_map.ids for label_map in joint], dim)))
        values = [replace(v, label_maps=tuple(m for m in v.label_maps if m is not j)) for v, j in zip(values, joint, strict=True)]
    for value in values:
        across = [label_map for label_map in value.maps_along([dim]) if label_map.dims != (dim,)]
        constraints.freeze(across, "a concatenation along part of the dimensions along which units are laid out")
    computed = not all(v.is_weight for v in values)  # then a parameter of one position is a token, not a unit
    along = [None if computed and v.is_weight and v.shape[dim] == 1 else v.label_map(dim) for v in values]
    pieces = [
        _positions(constraints, v, dim) if label_map is None else label_map.vector(dim)
        for v, label_map in zip(values, along, strict=True)
    ]
    if any(bool((ids != FIXED).any()) for ids in pieces):
        label_maps.append(LabelMap.along(torch.cat(pieces), dim, shape))
    other_maps: dict[tuple[int, ...], dict[int, LabelMap]] = {}
    for position, (value, along_dim) in enumerate(zip(values, along, strict=True)):
        for label_map in value.label_maps:
            if label_map is not along_dim and label_map.dims and dim not in label_map.dims:
                other_maps.setdefault(label_map.dims, {})[position] = label_map
    for dims, by_position in other_maps.items():
        united = list(by_position.values())
        without = [v for position, v in enumerate(values) if position not in by_position]
        if varies(without, dims, shape):
            constraints.freeze(united, "a concatenation with a value that varies along its units")
            continue
        if not all(map(is_zero, without)):
            constraints.rigid(*united)
        for other in united[1:]:
            constraints.unite(united[0].compact, other.compact)
            constraints.same_factor(united[0].compact, other.compact)
        label_maps.append(LabelMap(united[0].ids.narrow(dim, 0, 1).expand(shape), dims))
    return Value(tuple(shape), tuple(label_maps), is_weight=all(v.is_weight for v in values))


def _joint_maps(values: Sequence[Value], dim: int) -> list[LabelMap]:
    """Return the label map of each value along several dimensions including `dim`, where a label map of blocks may omit it."""
    along = [label_map.dims for v in values for label_map in v.maps_along([dim]) if label_map.dims != (dim,)]
    if len(set(along)) != 1:
        return []
    around = tuple(d for d in along[0] if d != dim)
    candidates = [[label_map for label_map in v.label_maps if label_map.dims in (along[0], around)] for v in values]
    return [label_maps[0] for label_maps in candidates] if all(len(label_maps) == 1 for label_maps in candidates) else []


def _positions(constraints: Constraints, value: Value, dim: int) -> Tensor:
    """Return labels for the positions of a value without units: their order is free if it is constant along them."""
    label_map = None if value.constant is None else interchangeable_positions(constraints, value, [dim])
    return torch.full((value.shape[dim],), FIXED) if label_map is None else label_map.vector(dim)


@register_rule("aten::stack")
def stack(constraints: Constraints, values: Sequence[Value], dim: int = 0) -> Value:
    """Stack along a new dimension: labels are unchanged, exact to the index."""
    dim %= len(values[0].shape) + 1
    shape = (*values[0].shape[:dim], len(values), *values[0].shape[dim:])
    by_dims = [{label_map.dims: label_map for label_map in v.label_maps} for v in values]
    label_maps = []
    for dims in dict.fromkeys(d for table in by_dims for d in table):
        stacked = [t.get(dims) or interchangeable_positions(constraints, v, dims) for t, v in zip(by_dims, values, strict=True)]
        if any(label_map is None for label_map in stacked):
            constraints.freeze(
                [label_map for label_map in stacked if label_map is not None], "a stack with a value that varies along its units"
            )
        else:
            label_maps.append(LabelMap(torch.stack([label_map.ids for label_map in stacked if label_map is not None], dim)))
    return Value(shape, tuple(label_maps), is_weight=all(v.is_weight for v in values))


@register_rule("aten::constant_pad_nd", "aten::pad")
def pad(constraints: Constraints, x: Value, widths: Sequence[int], *arguments: Any) -> Value:
    """Pad: padding along other dimensions moves no units; padding along units adds equal numbers, in any order."""
    shape = list(x.shape)
    for k in range(len(widths) // 2):
        shape[-1 - k] += widths[2 * k] + widths[2 * k + 1]
    constant = not arguments or not isinstance(arguments[0], str) or arguments[0] == "constant"
    filled = [a for a in arguments if isinstance(a, (int, float)) and a]
    label_maps = []
    for label_map in x.label_maps:
        label_widths: list[int] = []
        for k in range(len(widths) // 2):
            label_widths += widths[2 * k : 2 * k + 2] if (len(shape) - 1 - k) in label_map.dims else [0, 0]
        if filled or not constant:
            constraints.rigid(label_map)
        if not constant and any(label_widths):
            constraints.freeze([label_map], "padding along units")
            continue
        ids = torch.nn.functional.pad(label_map.compact, label_widths, value=-1)
        added = ids == -1
        ids[added] = constraints.fresh(int(added.sum())) if len(label_map.dims) == 1 else FIXED
        if filled:
            constraints.rigid(LabelMap(ids[added]))
        label_maps.append(LabelMap(ids.expand(shape) if ids.shape != tuple(shape) else ids))
    return Value(tuple(shape), tuple(label_maps))
