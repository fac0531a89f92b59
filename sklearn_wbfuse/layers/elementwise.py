"""Elementwise operations: they unite the units of their operands, which is all that a residual sum needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..network.couplings import along
from .labels import Constraints, LabelMap, Value
from .operations import TABLE
from .registry import register_rule, register_sizes

__all__ = ["TRACKED", "combine", "is_zero", "row_blocks", "unmarked", "varies"]

register_sizes(nn.PReLU, num_parameters=("weight", 0))

TRACKED = 1 << 20
"""Of larger values it is not remembered which elements are equal."""


def combine(constraints: Constraints, operation: str, values: Sequence[Value], kind: str) -> Value:
    """Unite the labels of elementwise operands.

    Parameters
    ----------
    kind : {"sum", "homogeneous", "odd", "product", "quotient", "general"}
        How scales and signs go: a sum needs equal ones, a product adds exponents, a quotient subtracts them, a positively
        homogeneous function keeps scales alone, an odd one signs alone, anything else allows none.
    """
    shape = tuple(torch.broadcast_shapes(*(v.shape for v in values)))
    total: list[LabelMap] = []
    for position, value in enumerate(values):
        layers = [layer.broadcast(shape) for layer in value.layers]
        if not position:
            total = layers
            continue
        before = values[:position]
        total = _merge(constraints, operation, shape, total, before, layers, value, kind)
    forbid = {"general": constraints.rigid, "homogeneous": constraints.no_sign, "odd": constraints.no_scale}.get(kind)
    if forbid is not None:
        forbid(*total)
    pattern = _pattern(values, shape)
    free = set(range(len(shape))) - {d for layer in total for d in layer.dims}
    uniform = tuple(d for d in free if shape[d] > 1 and not varies(values, [d], shape))
    return Value(shape, tuple(total), is_weight=_only_weights(values), pattern=pattern, uniform=uniform)


def _pattern(values: Sequence[Value], shape: tuple[int, ...]) -> Tensor | None:
    """Which elements of the result are known to be equal, where that is known of an operand; see `Value.pattern`."""
    spread = [v for v in values if any(n > 1 for n in v.shape)]
    if all(v.pattern is None for v in spread) or math.prod(shape) > TRACKED:
        return None
    found = torch.zeros(shape, dtype=torch.long)
    for value in spread:
        own = torch.arange(math.prod(value.shape)).view(value.shape) if value.pattern is None else value.pattern
        found = torch.unique(found * (int(own.max()) + 1) + own, return_inverse=True)[1]
    return found


def _only_weights(values: Sequence[Value]) -> bool:
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
    """Layers of the result of two operands, after uniting those that vary along the same dimensions."""
    merged: list[LabelMap] = []
    unmatched = list(right)
    for a in left:
        b = next((r for r in unmatched if r.dims == a.dims), None)
        if b is not None:
            merged.append(_matched(constraints, a, b, kind))
        elif nested := _nested_in(a, unmatched):
            merged.append(_nested_all(constraints, a, nested, kind))
            unmatched = [r for r in unmatched if all(r is not n for n in nested)]
        elif (b := _beside(a, left, unmatched)) is not None and not (
            varies(left_values, sorted(set(b.dims) - set(a.dims)), shape)
            or varies([value], sorted(set(a.dims) - set(b.dims)), shape)
        ):
            merged += _side_by_side(constraints, a, b, kind)
        else:
            merged += _alone(constraints, operation, a, [value], shape, kind, weight=_only_weights(left_values))
        unmatched = [r for r in unmatched if r is not b]
    for b in unmatched:
        if any(set(b.dims) & set(a.dims) for a in left):
            constraints.freeze([b], f"{operation} with a value that varies along its units")
        else:
            merged += _alone(constraints, operation, b, left_values, shape, kind, weight=value.is_weight, right=True)
    return merged


def _alone(
    constraints: Constraints,
    operation: str,
    layer: LabelMap,
    others: Sequence[Value],
    shape: tuple[int, ...],
    kind: str,
    *,
    weight: bool,
    right: bool = False,
) -> list[LabelMap]:
    """Units with no partner in the other operands: those may not vary along them, or the units are tied to their positions."""
    tied = [d for d in layer.dims if varies(others, [d], shape) and not _same_within_period(layer, others, d, shape)]
    if tied and weight:
        constraints.fix(layer)  # a weight for each position of what is no unit
        return []
    if tied and len(tied) == len(layer.dims):
        constraints.freeze([layer], f"{operation} with a value that varies along its units")
        return []
    inner = set(layer.dims) - set(tied)
    if tied and max(tied) < min(inner):
        constraints.fix(row_blocks(constraints, layer, sorted(inner)))  # each block stays in place, units move within it
    elif tied:
        layer = layer.united(constraints, tied)  # one unit, with its parts in a fixed order
    if (kind in ("sum", "homogeneous") and not all(map(is_zero, others))) or (kind == "quotient" and right):
        constraints.rigid(layer)
    return [layer]


def _nested_in(layer: LabelMap, others: Sequence[LabelMap]) -> list[LabelMap]:
    """The other layers that vary along some of the layer's dimensions only, or the single one that varies along more."""
    mine = set(layer.dims)
    inside = [o for o in others if o.dims and set(o.dims) < mine]
    around = [o for o in others if mine and mine < set(o.dims)]
    return inside if inside and not around else around if len(around) == 1 and not inside else []


def _nested_all(constraints: Constraints, layer: LabelMap, nested: Sequence[LabelMap], kind: str) -> LabelMap:
    """Units with several layers nested in theirs, such as a weight for each head and dimension; inner dimensions come first."""
    for other in sorted(nested, key=lambda o: -max(o.dims)):
        unite = _matched if other.dims == layer.dims else _nested
        layer = unite(constraints, layer, other, kind)
    return layer


def _beside(layer: LabelMap, own: Sequence[LabelMap], others: Sequence[LabelMap]) -> LabelMap | None:
    """The other layer that shares some dimensions, if there is just one, and no third."""
    found = [o for o in [*own, *others] if o is not layer and set(o.dims) & set(layer.dims)]
    return found[0] if len(found) == 1 and all(found[0] is not o for o in own) else None


def _side_by_side(constraints: Constraints, a: LabelMap, b: LabelMap, kind: str) -> list[LabelMap]:
    """An outer product of units within each position of the dimensions that they share: these are blocks of both."""
    shared = set(a.dims) & set(b.dims)
    blocks = [row_blocks(constraints, layer, [d for d in layer.dims if d not in shared]) for layer in (a, b)]
    constraints.unite(blocks[0].core, blocks[1].core)
    if kind != "product":
        constraints.rigid(a, b)
    return [a, b]


def row_blocks(constraints: Constraints, layer: LabelMap, inner: Sequence[int], name: str = "blocks") -> LabelMap:
    """The blocks of units that lie along `inner`, one for each position of the layer's other dimensions."""
    rows, place = layer.rows(inner)
    return LabelMap(constraints.enclose(rows, name)[place].expand(layer.ids.shape))


def _nested(constraints: Constraints, a: LabelMap, b: LabelMap, kind: str) -> LabelMap:
    """Units with units of some of their dimensions: blocks, or, along the inner dimensions, a fixed order within a block."""
    large, small = (a, b) if len(a.dims) > len(b.dims) else (b, a)
    constraints.rigid(small)
    if kind != "product":
        constraints.rigid(large)
    if max(small.dims) < min(set(large.dims) - set(small.dims)):
        constraints.contains(small.core, large.core)
        return large
    constraints.fix(small)
    return large.united(constraints, small.dims)


def _matched(constraints: Constraints, a: LabelMap, b: LabelMap, kind: str) -> LabelMap:
    """Units of two operands along the same dimensions are one."""
    constraints.unite(a.core, b.core)
    if kind in ("sum", "homogeneous"):
        constraints.same_factor(a.core, b.core)
    elif kind in ("product", "quotient"):
        left, right = torch.broadcast_tensors(a.core, b.core)
        pairs, where = torch.unique(torch.stack([left.reshape(-1), right.reshape(-1)]), dim=1, return_inverse=True)
        fresh = constraints.fresh(pairs.shape[1])
        constraints.unite(fresh, pairs[0])
        constraints.relate((1, -1, -1 if kind == "product" else 1), fresh, pairs[0], pairs[1])
        return LabelMap(fresh[where].view(left.shape).expand(a.ids.shape), a.dims)
    return a


def varies(values: Sequence[Value], dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether any value, which has no labels there, may differ along `dims` of the broadcast shape."""
    known = [entry for dim in dims for entry in _known_along(values, dim, shape)]
    return any(numbers is None or bool((numbers != numbers.narrow(own, 0, 1)).any()) for numbers, own in known)


def _same_within_period(layer: LabelMap, values: Sequence[Value], dim: int, shape: Sequence[int]) -> bool:
    """Whether labels repeat along `dim` (heads of each sample of a batch) and the values are equal within each period."""
    ids = layer.core.movedim(dim, 0).flatten(1)
    n, period = len(ids), len(torch.unique(ids, dim=0))
    if period == n or n % period or bool((ids != ids[:period].repeat(n // period, 1)).any()):
        return False
    for numbers, own in _known_along(values, dim, shape):
        if numbers is None:
            return False
        rows = numbers.movedim(own, 0).reshape(n // period, period, -1)
        if bool((rows != rows[:, :1]).any()):
            return False
    return True


def _known_along(values: Sequence[Value], dim: int, shape: Sequence[int]) -> Iterator[tuple[Tensor | None, int]]:
    """Of the values that may vary along a dimension of the broadcast shape: what is known of them, and their own dimension."""
    for value in values:
        own = dim - len(shape) + len(value.shape)
        if own >= 0 and value.shape[own] > 1 and own not in value.uniform:
            yield (value.constant if value.constant is not None else value.pattern), own


def unmarked(constraints: Constraints, value: Value, dims: Sequence[int]) -> LabelMap | None:
    """Labels that nothing else has, along dimensions on which a value without units does not vary: any order is the same.

    The zeros from which a state starts are such a value. None where it varies there, as inputs of the network do.
    """
    if value.touching(dims) or varies([value], dims, value.shape) or any(value.shape[d] == 1 for d in dims):
        return None
    shape = [n if d in dims else 1 for d, n in enumerate(value.shape)]
    layer = LabelMap(constraints.fresh(math.prod(shape)).view(shape))
    if not is_zero(value):
        constraints.rigid(layer)
    return LabelMap(layer.ids.expand(value.shape))


def is_zero(value: Value) -> bool:
    """Whether a value is a constant zero."""
    return value.constant is not None and not bool(value.constant.any())


def _values(arguments: Sequence[Any]) -> list[Value]:
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
    """Overwrite where a mask says so."""
    return combine(constraints, "masked_fill", _values((x, mask, value)), "general")


@register_rule("aten::bucketize")
def bucketize(constraints: Constraints, x: Value, *_: Any, **__: Any) -> Value:
    """The number of the interval in which each value lies."""
    return combine(constraints, "bucketize", [x], "general")


@register_rule("aten::prelu")
def prelu(constraints: Constraints, x: Value, weight: Value) -> Value:
    """max(x, 0) + w min(x, 0), w one number or one per unit along dimension 1: scales pass, signs do not."""
    if len(weight.shape) == 1 and weight.shape[0] > 1:
        weight = weight.map(lambda ids: along(ids, 1, len(x.shape)))
    constraints.rigid(*weight.layers)
    out = combine(constraints, "prelu", [x, weight], "product")
    constraints.no_sign(*out.layers)
    return out


@register_rule("aten::glu")
def glu(constraints: Constraints, x: Value, dim: int = -1) -> Value:
    """The first half times the sigmoid of the second."""
    half = x.shape[dim] // 2
    value, gate = (x.map(partial(torch.narrow, dim=dim, start=start, length=half)) for start in (0, half))
    constraints.rigid(*gate.layers)
    return combine(constraints, "glu", [value, gate], "product")


@register_rule("aten::_weight_norm", "aten::_weight_norm_interface")
def weight_norm(constraints: Constraints, direction: Value, length: Value, dim: int = 0) -> Value:
    """W = g v / ||v||, the norm over all axes but `dim`: scales go with g."""
    constraints.rigid(*direction.layers)
    return combine(constraints, "weight_norm", [direction, length], "product")


@register_rule("aten::lerp")
def lerp(constraints: Constraints, a: Value, b: Value, weight: Any) -> Value:
    """Mix two values."""
    return combine(constraints, "lerp", [a, b, *_values((weight,))], "general")


def _filled(number: float) -> Any:
    def like(constraints: Constraints, x: Value, *arguments: Any, **_: Any) -> Value:
        shape = tuple(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else x.shape
        return Value(shape, constant=torch.full((), number).expand(shape))

    return like


# memory that is not set yet tells no units apart
register_rule("aten::zeros_like", "aten::new_zeros", "aten::empty_like", "aten::new_empty")(_filled(0.0))
register_rule("aten::ones_like", "aten::full_like", "aten::new_ones", "aten::new_full")(_filled(1.0))
