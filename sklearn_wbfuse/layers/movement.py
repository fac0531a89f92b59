"""Data movement: the same operation is executed on the labels, so there is no rule to write.

Flatten, concatenation, channel shuffle and transposed weights come out exact to the index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .elementwise import TRACKED, is_zero, unmarked, varies
from .labels import FIXED, Constraints, LabelMap, Value
from .operations import TABLE, named
from .registry import register_rule

__all__: list[str] = []


def _operation(name: str) -> Any:
    return getattr(torch.ops.aten, TABLE[name].same_as or name)  # expanded labels can't always be viewed


def _register_moves() -> None:
    def move(name: str) -> None:
        operation = _operation(name)

        def apply(constraints: Constraints, x: Value, *arguments: Any, **named: Any) -> Value:
            """The same operation is done to the labels."""
            return x.map(lambda ids: operation(ids, *arguments, **named))

        register_rule(f"aten::{name}")(apply)

    def split(name: str) -> None:
        operation = _operation(name)

        def piece(k: int, arguments: Any, named: Any, ids: Tensor) -> Tensor:
            return operation(ids, *arguments, **named)[k]

        def apply(constraints: Constraints, x: Value, *arguments: Any, **named: Any) -> tuple[Value, ...]:
            """Pieces of the labels."""
            pieces = len(operation(torch.empty(x.shape, device="meta"), *arguments, **named))
            return tuple(x.map(partial(piece, k, arguments, named)) for k in range(pieces))

        register_rule(f"aten::{name}")(apply)

    def repeated(name: str) -> None:
        operation = _operation(name)

        def apply(constraints: Constraints, x: Value, *arguments: Any, **named: Any) -> Value:
            """The same operation is done to the labels; copies are known to be equal."""
            return _tracked(x).map(lambda ids: operation(ids, *arguments, **named))

        register_rule(f"aten::{name}")(apply)

    for kind, register in {"reshapes": move, "moves": move, "repeats": repeated, "splits": split}.items():
        for name in named(kind):
            register(name)


_register_moves()


@register_rule("aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::_assert_async", "aten::sym_constrain_range")
def assertion(constraints: Constraints, *_: Any, **__: Any) -> None:
    """Nothing is computed."""


def _tracked(x: Value) -> Value:
    """The same value, of whose copies it will be known that they are equal."""
    if x.pattern is not None or x.constant is not None or math.prod(x.shape) > TRACKED:
        return x
    return replace(x, pattern=torch.arange(math.prod(x.shape)).view(x.shape))


@register_rule("aten::expand", "aten::expand_copy")
def expand(constraints: Constraints, x: Value, size: Sequence[int], **_: Any) -> Value:
    """A value repeated along a dimension does not vary along it."""
    moved = _tracked(x).map(lambda ids: ids.expand(tuple(size)))
    shift = len(moved.shape) - len(x.shape)
    repeated = tuple(d for d, n in enumerate(moved.shape) if n > 1 and (d < shift or x.shape[d - shift] == 1))
    return replace(moved, uniform=repeated)


@register_rule("aten::cat", "aten::concat")
def cat(constraints: Constraints, values: Sequence[Value], dim: int = 0) -> Value:
    """Side by side: labels along `dim` follow each other; all other labels unite."""
    dim %= max(len(v.shape) for v in values)
    values = [v for v in values if v.shape != (0,) and v.shape[dim]] or list(values[:1])
    shape = list(values[0].shape)
    shape[dim] = sum(v.shape[dim] for v in values)
    joint = _joint_layers(values, dim)
    layers = []
    if joint:
        layers.append(LabelMap(torch.cat([layer.ids for layer in joint], dim)))
        values = [replace(v, layers=tuple(k for k in v.layers if k is not j)) for v, j in zip(values, joint, strict=True)]
    for value in values:
        across = [layer for layer in value.touching([dim]) if layer.dims != (dim,)]
        constraints.freeze(across, "a concatenation along part of the dimensions along which units are laid out")
    computed = not all(v.is_weight for v in values)  # then a parameter of one position is a token, not a unit
    along = [None if computed and v.is_weight and v.shape[dim] == 1 else v.layer(dim) for v in values]
    pieces = [
        _positions(constraints, v, dim) if layer is None else layer.vector(dim) for v, layer in zip(values, along, strict=True)
    ]
    if any(bool((ids != FIXED).any()) for ids in pieces):
        layers.append(LabelMap.along(torch.cat(pieces), dim, shape))
    elsewhere: dict[tuple[int, ...], dict[int, LabelMap]] = {}
    for position, (value, own) in enumerate(zip(values, along, strict=True)):
        for layer in value.layers:
            if layer is not own and layer.dims and dim not in layer.dims:
                elsewhere.setdefault(layer.dims, {})[position] = layer
    for dims, table in elsewhere.items():
        first, *others = found = list(table.values())
        rest = [v for position, v in enumerate(values) if position not in table]
        if varies(rest, dims, shape):
            constraints.freeze(found, "a concatenation with a value that varies along its units")
            continue
        if not all(map(is_zero, rest)):
            constraints.rigid(*found)
        for other in others:
            constraints.unite(first.core, other.core)
            constraints.same_factor(first.core, other.core)
        layers.append(LabelMap(first.ids.narrow(dim, 0, 1).expand(shape), dims))
    return Value(tuple(shape), tuple(layers), is_weight=all(v.is_weight for v in values))


def _joint_layers(values: Sequence[Value], dim: int) -> list[LabelMap]:
    """Of each value the layer along several dimensions, this one among them; one of blocks does not vary along it."""
    along = [layer.dims for v in values for layer in v.touching([dim]) if layer.dims != (dim,)]
    if len(set(along)) != 1:
        return []
    around = tuple(d for d in along[0] if d != dim)
    found = [[layer for layer in v.layers if layer.dims in (along[0], around)] for v in values]
    return [layers[0] for layers in found] if all(len(layers) == 1 for layers in found) else []


def _positions(constraints: Constraints, value: Value, dim: int) -> Tensor:
    """Labels for the positions of a value without units: their order does not matter if it is constant along them."""
    free = None if value.constant is None else unmarked(constraints, value, [dim])
    return torch.full((value.shape[dim],), FIXED) if free is None else free.vector(dim)


@register_rule("aten::stack")
def stack(constraints: Constraints, values: Sequence[Value], dim: int = 0) -> Value:
    """Along a new dimension: labels stay what they were, exact to the index."""
    dim %= len(values[0].shape) + 1
    shape = (*values[0].shape[:dim], len(values), *values[0].shape[dim:])
    by_dims = [{layer.dims: layer for layer in v.layers} for v in values]
    layers = []
    for dims in dict.fromkeys(d for table in by_dims for d in table):
        found = [t.get(dims) or unmarked(constraints, v, dims) for t, v in zip(by_dims, values, strict=True)]
        if any(layer is None for layer in found):
            constraints.freeze(
                [layer for layer in found if layer is not None], "a stack with a value that varies along its units"
            )
        else:
            layers.append(LabelMap(torch.stack([layer.ids for layer in found if layer is not None], dim)))
    return Value(shape, tuple(layers), is_weight=all(v.is_weight for v in values))


@register_rule("aten::constant_pad_nd", "aten::pad")
def pad(constraints: Constraints, x: Value, widths: Sequence[int], *arguments: Any) -> Value:
    """Padding beside units adds nothing that moves; padding along units adds equal numbers, in any order."""
    shape = list(x.shape)
    for k in range(len(widths) // 2):
        shape[-1 - k] += widths[2 * k] + widths[2 * k + 1]
    constant = not arguments or not isinstance(arguments[0], str) or arguments[0] == "constant"
    filled = [a for a in arguments if isinstance(a, (int, float)) and a]
    layers = []
    for layer in x.layers:
        inner: list[int] = []
        for k in range(len(widths) // 2):
            varies = (len(shape) - 1 - k) in layer.dims
            inner += widths[2 * k : 2 * k + 2] if varies else [0, 0]
        if filled or not constant:
            constraints.rigid(layer)
        if not constant and any(inner):
            constraints.freeze([layer], "padding along units")
            continue
        ids = torch.nn.functional.pad(layer.core, inner, value=-1)
        added = ids == -1
        ids[added] = constraints.fresh(int(added.sum())) if len(layer.dims) == 1 else FIXED
        if filled:
            constraints.rigid(LabelMap(ids[added]))
        layers.append(LabelMap(ids.expand(shape) if ids.shape != tuple(shape) else ids))
    return Value(tuple(shape), tuple(layers))
