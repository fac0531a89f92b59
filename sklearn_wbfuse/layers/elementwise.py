"""Elementwise operations: they unite the units of their operands, such as those of a residual sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..network.couplings import along
from .constraints import Constraints
from .labels import LabelMap, Value
from .operations import TABLE
from .registry import register_rule, register_sizes

__all__ = ["TRACKED", "combine", "interchangeable_positions", "is_zero", "row_blocks", "varies"]

register_sizes(nn.PReLU, num_parameters=("weight", 0))

TRACKED = 1 << 20
"""Number of elements of a value above which it is not tracked which of them are equal."""


def combine(constraints: Constraints, operation: str, values: Sequence[Value], kind: str) -> Value:
    """Unite the labels of elementwise operands.

    Parameters
    ----------
    constraints : Constraints
    operation : str
        Name for messages.
    values : sequence of Value
        The operands.
    kind : {"sum", "homogeneous", "odd", "product", "quotient", "general"}
        How scales and signs pass: a sum requires equal ones, a product adds exponents, a quotient subtracts them, a positively
        homogeneous function passes scales alone, an odd function signs alone, a general function neither.
    """
    shape = tuple(torch.broadcast_shapes(*(v.shape for v in values)))
    total: list[LabelMap] = []
    for position, value in enumerate(values):
        label_maps = [label_map.broadcast(shape) for label_map in value.label_maps]
        if not position:
            total = label_maps
            continue
        before = values[:position]
        total = _merge(constraints, operation, shape, total, before, label_maps, value, kind)
    forbid = {"general": constraints.rigid, "homogeneous": constraints.no_sign, "odd": constraints.no_scale}.get(kind)
    if forbid is not None:
        forbid(*total)
    pattern = _pattern(values, shape)
    free = set(range(len(shape))) - {d for label_map in total for d in label_map.dims}
    uniform = tuple(d for d in free if shape[d] > 1 and not varies(values, [d], shape))
    return Value(shape, tuple(total), is_weight=_only_weights(values), pattern=pattern, uniform=uniform)


def _pattern(values: Sequence[Value], shape: tuple[int, ...]) -> Tensor | None:
    """Return which elements of the result are known to be equal, if this is known of an operand; see `Value.pattern`."""
    varying = [v for v in values if any(n > 1 for n in v.shape)]
    if all(v.pattern is None for v in varying) or math.prod(shape) > TRACKED:
        return None
    pattern = torch.zeros(shape, dtype=torch.long)
    for value in varying:
        numbers = torch.arange(math.prod(value.shape)).view(value.shape) if value.pattern is None else value.pattern
        pattern = torch.unique(pattern * (int(numbers.max()) + 1) + numbers, return_inverse=True)[1]
    return pattern


def _only_weights(values: Sequence[Value]) -> bool:
    """Return whether a result of these operands depends on parameters and not on inputs."""
    return any(v.is_weight for v in values) and all(v.is_weight or v.constant is not None for v in values)


def _merge(
    constraints: Constraints,
    operation: str,
    shape: tuple[int, ...],
    left: list[LabelMap],
    left_values: Sequence[Value],
    right: list[LabelMap],
    value: Value,
    kind: str,
) -> list[LabelMap]:
    """Return the label maps of the result of two operands, after uniting those that vary along the same dimensions."""
    merged: list[LabelMap] = []
    unmatched = list(right)
    for a in left:
        b = next((r for r in unmatched if r.dims == a.dims), None)
        if b is not None:
            merged.append(_unite_matched(constraints, a, b, kind))
        elif nested := _nested_in(a, unmatched):
            merged.append(_unite_all_nested(constraints, a, nested, kind))
            unmatched = [r for r in unmatched if all(r is not n for n in nested)]
        elif (b := _overlapping(a, left, unmatched)) is not None and not (
            varies(left_values, sorted(set(b.dims) - set(a.dims)), shape)
            or varies([value], sorted(set(a.dims) - set(b.dims)), shape)
        ):
            merged += _unite_overlapping(constraints, a, b, kind)
        else:
            merged += _unmatched(constraints, operation, a, [value], shape, kind, is_weight=_only_weights(left_values))
        unmatched = [r for r in unmatched if r is not b]
    for b in unmatched:
        if any(set(b.dims) & set(a.dims) for a in left):
            constraints.freeze([b], f"{operation} with a value that varies along its units")
        else:
            merged += _unmatched(constraints, operation, b, left_values, shape, kind, is_weight=value.is_weight, is_right=True)
    return merged


def _unmatched(
    constraints: Constraints,
    operation: str,
    label_map: LabelMap,
    others: Sequence[Value],
    shape: tuple[int, ...],
    kind: str,
    *,
    is_weight: bool,
    is_right: bool = False,
) -> list[LabelMap]:
    """Return the label maps that remain of units without a partner in the other operands.

    The other operands must not vary along them, or the units are tied to their positions.
    """
    tied = [d for d in label_map.dims if varies(others, [d], shape) and not _same_within_period(label_map, others, d, shape)]
    if tied and is_weight:
        constraints.fix(label_map)  # a weight for each position that is not a unit
        return []
    if tied and len(tied) == len(label_map.dims):
        constraints.freeze([label_map], f"{operation} with a value that varies along its units")
        return []
    inner = set(label_map.dims) - set(tied)
    if tied and max(tied) < min(inner):
        constraints.fix(row_blocks(constraints, label_map, sorted(inner)))  # each block stays in place, and units move within it
    elif tied:
        label_map = constraints.unite_along(label_map, tied)  # one unit, with its parts in a fixed order
    if (kind in ("sum", "homogeneous") and not all(map(is_zero, others))) or (kind == "quotient" and is_right):
        constraints.rigid(label_map)
    return [label_map]


def _nested_in(label_map: LabelMap, others: Sequence[LabelMap]) -> list[LabelMap]:
    """Return the other label maps that vary along some of the label map's dimensions, or the only one with more dimensions."""
    dims = set(label_map.dims)
    inside = [other for other in others if other.dims and set(other.dims) < dims]
    around = [other for other in others if dims and dims < set(other.dims)]
    return inside if inside and not around else around if len(around) == 1 and not inside else []


def _unite_all_nested(constraints: Constraints, label_map: LabelMap, nested: Sequence[LabelMap], kind: str) -> LabelMap:
    """Unite units with the units nested in theirs, such as a weight for each head and dimension, inner dimensions first."""
    for other in sorted(nested, key=lambda o: -max(o.dims)):
        unite = _unite_matched if other.dims == label_map.dims else _unite_nested
        label_map = unite(constraints, label_map, other, kind)
    return label_map


def _overlapping(label_map: LabelMap, left: Sequence[LabelMap], right: Sequence[LabelMap]) -> LabelMap | None:
    """Return the label map that shares dimensions with this one, if there is only one and it is on the right."""
    others = [o for o in [*left, *right] if o is not label_map and set(o.dims) & set(label_map.dims)]
    return others[0] if len(others) == 1 and all(others[0] is not o for o in left) else None


def _unite_overlapping(constraints: Constraints, a: LabelMap, b: LabelMap, kind: str) -> list[LabelMap]:
    """Unite blocks of both label maps, an outer product of units within each position of the dimensions that they share."""
    shared = set(a.dims) & set(b.dims)
    blocks = [row_blocks(constraints, label_map, [d for d in label_map.dims if d not in shared]) for label_map in (a, b)]
    constraints.unite(blocks[0].compact, blocks[1].compact)
    if kind != "product":
        constraints.rigid(a, b)
    return [a, b]


def row_blocks(constraints: Constraints, label_map: LabelMap, inner: Sequence[int], name: str = "blocks") -> LabelMap:
    """Return the blocks of units that lie along `inner`, one for each position of the label map's other dimensions."""
    rows, row_index = label_map.rows(inner)
    return LabelMap(constraints.enclose(rows, name)[row_index].expand(label_map.ids.shape))


def _unite_nested(constraints: Constraints, a: LabelMap, b: LabelMap, kind: str) -> LabelMap:
    """Unite units with units along some of their dimensions.

    These are blocks if their dimensions come first; otherwise units keep a fixed order within a block.
    """
    large, small = (a, b) if len(a.dims) > len(b.dims) else (b, a)
    constraints.rigid(small)
    if kind != "product":
        constraints.rigid(large)
    if max(small.dims) < min(set(large.dims) - set(small.dims)):
        constraints.contains(small.compact, large.compact)
        return large
    constraints.fix(small)
    return constraints.unite_along(large, small.dims)


def _unite_matched(constraints: Constraints, a: LabelMap, b: LabelMap, kind: str) -> LabelMap:
    """Unite the units of two operands along the same dimensions."""
    constraints.unite(a.compact, b.compact)
    if kind in ("sum", "homogeneous"):
        constraints.same_factor(a.compact, b.compact)
    elif kind in ("product", "quotient"):
        left, right = torch.broadcast_tensors(a.compact, b.compact)
        pairs, pair_index = torch.unique(torch.stack([left.reshape(-1), right.reshape(-1)]), dim=1, return_inverse=True)
        fresh = constraints.fresh(pairs.shape[1])
        constraints.unite(fresh, pairs[0])
        constraints.relate((1, -1, -1 if kind == "product" else 1), fresh, pairs[0], pairs[1])
        return LabelMap(fresh[pair_index].view(left.shape).expand(a.ids.shape), a.dims)
    return a


def varies(values: Sequence[Value], dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether any value, which has no labels there, may vary along `dims` of the broadcast shape."""
    known = [entry for dim in dims for entry in _known_along(values, dim, shape)]
    return any(numbers is None or bool((numbers != numbers.narrow(dim, 0, 1)).any()) for numbers, dim in known)


def _same_within_period(label_map: LabelMap, values: Sequence[Value], dim: int, shape: Sequence[int]) -> bool:
    """Return whether labels repeat along `dim` (heads of each sample of a batch) with values that are equal in each period."""
    ids = label_map.compact.movedim(dim, 0).flatten(1)
    n, period = len(ids), len(torch.unique(ids, dim=0))
    if period == n or n % period or bool((ids != ids[:period].repeat(n // period, 1)).any()):
        return False
    for numbers, value_dim in _known_along(values, dim, shape):
        if numbers is None:
            return False
        rows = numbers.movedim(value_dim, 0).reshape(n // period, period, -1)
        if bool((rows != rows[:, :1]).any()):
            return False
    return True


def _known_along(values: Sequence[Value], dim: int, shape: Sequence[int]) -> Iterator[tuple[Tensor | None, int]]:
    """Yield what is known of each value that may vary along a dimension of the broadcast shape, and the value's dimension."""
    for value in values:
        value_dim = dim - len(shape) + len(value.shape)
        if value_dim >= 0 and value.shape[value_dim] > 1 and value_dim not in value.uniform:
            yield (value.constant if value.constant is not None else value.pattern), value_dim


def interchangeable_positions(constraints: Constraints, value: Value, dims: Sequence[int]) -> LabelMap | None:
    """Return fresh labels along dimensions on which a value without units does not vary, so that any order is the same.

    The zeros from which a state starts are such a value. None if it varies there, as the inputs of the network do.
    """
    if value.maps_along(dims) or varies([value], dims, value.shape) or any(value.shape[d] == 1 for d in dims):
        return None
    shape = [n if d in dims else 1 for d, n in enumerate(value.shape)]
    label_map = LabelMap(constraints.fresh(math.prod(shape)).view(shape))
    if not is_zero(value):
        constraints.rigid(label_map)
    return LabelMap(label_map.ids.expand(value.shape))


def is_zero(value: Value) -> bool:
    """Return whether a value is a constant zero."""
    return value.constant is not None and not bool(value.constant.any())


def _values(arguments: Sequence[Any]) -> list[Value]:
    """Return values and numbers among arguments as values."""
    return [
        a if isinstance(a, Value) else Value((), constant=torch.as_tensor(a))
        for a in arguments
        if isinstance(a, (Value, int, float)) and not isinstance(a, bool)
    ]


def _register() -> None:
    def rule(name: str, kind: str, operands: int | None) -> None:
        def apply(constraints: Constraints, *arguments: Any, **_: Any) -> Value:
            return combine(constraints, name, _values(arguments[:operands]), kind)

        register_rule(f"aten::{name}")(apply)

    def identity(name: str) -> None:
        def apply(constraints: Constraints, x: Value, *_: Any, **__: Any) -> Value:
            return replace(combine(constraints, name, [x], "sum"), bias=x.bias)

        register_rule(f"aten::{name}")(apply)

    for name, facts in TABLE.items():
        if facts.kind == "identity":
            identity(name)
        elif facts.operands != 0:
            rule(name, facts.kind, facts.operands)


_register()


@register_rule("aten::where")
def where(constraints: Constraints, condition: Value, a: Any, b: Any) -> Value:
    """Choose between two values: all three unite; the condition itself does not scale."""
    return combine(constraints, "where", _values((condition, a, b)), "general")


@register_rule("aten::masked_fill")
def masked_fill(constraints: Constraints, x: Value, mask: Value, value: Any) -> Value:
    """Overwrite where a mask is true."""
    return combine(constraints, "masked_fill", _values((x, mask, value)), "general")


@register_rule("aten::bucketize")
def bucketize(constraints: Constraints, x: Value, *_: Any, **__: Any) -> Value:
    """Return the index of the interval in which each value lies."""
    return combine(constraints, "bucketize", [x], "general")


@register_rule("aten::prelu")
def prelu(constraints: Constraints, x: Value, weight: Value) -> Value:
    """Compute max(x, 0) + w min(x, 0), w one number or one per unit along dimension 1: scales pass, signs do not."""
    if len(weight.shape) == 1 and weight.shape[0] > 1:
        weight = weight.map(lambda ids: along(ids, 1, len(x.shape)))
    constraints.rigid(*weight.label_maps)
    out = combine(constraints, "prelu", [x, weight], "product")
    constraints.no_sign(*out.label_maps)
    return out


@register_rule("aten::glu")
def glu(constraints: Constraints, x: Value, dim: int = -1) -> Value:
    """Multiply the first half by the sigmoid of the second."""
    half = x.shape[dim] // 2
    value, gate = (x.map(partial(torch.narrow, dim=dim, start=start, length=half)) for start in (0, half))
    constraints.rigid(*gate.label_maps)
    return combine(constraints, "glu", [value, gate], "product")


@register_rule("aten::_weight_norm", "aten::_weight_norm_interface")
def weight_norm(constraints: Constraints, direction: Value, length: Value, dim: int = 0) -> Value:
    """Compute W = g v / ||v||, with the norm over all axes but `dim`: W scales with g."""
    constraints.rigid(*direction.label_maps)
    return combine(constraints, "weight_norm", [direction, length], "product")


@register_rule("aten::lerp")
def lerp(constraints: Constraints, a: Value, b: Value, weight: Any) -> Value:
    """Interpolate between two values."""
    return combine(constraints, "lerp", [a, b, *_values((weight,))], "general")


def _filled(number: float) -> Any:
    def fill(constraints: Constraints, x: Value, *arguments: Any, **_: Any) -> Value:
        """Fill a shape with a number."""
        shape = tuple(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else x.shape
        return Value(shape, constant=torch.full((), number).expand(shape))

    return fill


# uninitialised memory is treated as zeros: it must not distinguish units
register_rule("aten::zeros_like", "aten::new_zeros", "aten::empty_like", "aten::new_empty")(_filled(0.0))
register_rule("aten::ones_like", "aten::full_like", "aten::new_ones", "aten::new_full")(_filled(1.0))
