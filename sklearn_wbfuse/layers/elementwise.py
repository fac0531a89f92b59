"""Elementwise operations: they unite the units of their operands, which is all that a residual sum needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .labels import Layer, Record, Value
from .registry import register_rule

__all__ = ["combine", "is_zero", "varies"]

IDENTITIES = "alias clone detach contiguous dropout feature_dropout alpha_dropout _to_copy to lift_fresh_copy lift_fresh".split()
LINEAR = [*IDENTITIES, "neg", "native_dropout"]
HOMOGENEOUS = ["relu", "leaky_relu", "abs"]
ODD = "tanh sin tan atan asin sinh asinh erf erfinv sign trunc".split()
GENERAL = """gelu sigmoid silu elu selu celu softplus hardtanh hardswish hardsigmoid hardshrink softshrink mish relu6 exp
log log1p expm1 sqrt rsqrt reciprocal square pow cos acos cosh floor ceil round clamp clamp_min clamp_max log_sigmoid
logical_not bitwise_not isnan isfinite sinc threshold rrelu ne eq lt gt le ge logical_and logical_or
atan2 fmod remainder bitwise_and bitwise_or floor_divide nan_to_num logit xlogy""".split()


def combine(record: Record, operation: str, values: Sequence[Value], kind: str) -> Value:
    """Unite the labels of elementwise operands.

    Parameters
    ----------
    kind : {"sum", "homogeneous", "odd", "product", "quotient", "general"}
        How scales and signs go: a sum needs equal ones, a product adds exponents, a quotient subtracts them, a positively
        homogeneous function keeps scales alone, an odd one signs alone, anything else allows none.
    """
    shape = tuple(torch.broadcast_shapes(*(v.shape for v in values)))
    total: list[Layer] = []
    for position, value in enumerate(values):
        layers = [layer.broadcast(shape) for layer in value.layers]
        if not position:
            total = layers
            continue
        before = values[:position]
        total = _merge(record, operation, shape, total, before, layers, value, kind)
    forbid = {"general": record.rigid, "homogeneous": record.no_sign, "odd": record.no_scale}.get(kind)
    if forbid is not None:
        forbid(*total)
    bias = values[0].bias if operation in IDENTITIES else None
    return Value(shape, tuple(total), is_weight=_only_weights(values), bias=bias)


def _only_weights(values: Sequence[Value]) -> bool:
    return any(v.is_weight for v in values) and all(v.is_weight or v.constant is not None for v in values)


def _merge(
    record: Record,
    operation: str,
    shape: tuple[int, ...],
    left: list[Layer],
    left_values: Sequence[Value],
    right: list[Layer],
    value: Value,
    kind: str,
) -> list[Layer]:
    """Layers of the result of two operands, after uniting those that vary along the same dimensions."""
    merged: list[Layer] = []
    unmatched = list(right)
    for a in left:
        b = next((r for r in unmatched if r.dims == a.dims), None) or _only_subset(a, unmatched)
        if b is None:
            if varies([value], a.dims, shape):
                record.freeze([a], f"{operation} with a value that varies along its units")
            else:
                if kind in ("sum", "homogeneous") and not is_zero(value):
                    record.rigid(a)
                merged.append(a)
            continue
        unmatched.remove(b)
        record.unite(a.core, b.core)
        merged.append(_scaled(record, a, b, kind))
    for b in unmatched:
        if varies(left_values, b.dims, shape) or any(set(b.dims) & set(a.dims) for a in left):
            record.freeze([b], f"{operation} with a value that varies along its units")
        else:
            if (kind in ("sum", "homogeneous") and not all(map(is_zero, left_values))) or kind == "quotient":
                record.rigid(b)
            merged.append(b)
    return merged


def _only_subset(layer: Layer, others: list[Layer]) -> Layer | None:
    """The single other layer that varies along some of the layer's dimensions only, if there is just one."""
    found = [o for o in others if o.dims and set(o.dims) < set(layer.dims)]
    return found[0] if len(found) == 1 else None


def _scaled(record: Record, a: Layer, b: Layer, kind: str) -> Layer:
    if kind in ("sum", "homogeneous"):
        record.same_factor(a.core, b.core)
    elif kind in ("product", "quotient"):
        left, right = torch.broadcast_tensors(a.core, b.core)
        pairs, where = torch.unique(torch.stack([left.reshape(-1), right.reshape(-1)]), dim=1, return_inverse=True)
        fresh = record.fresh(pairs.shape[1])
        record.unite(fresh, pairs[0])
        record.relate((1, -1, -1 if kind == "product" else 1), fresh, pairs[0], pairs[1])
        return Layer(fresh[where].view(left.shape).expand(a.ids.shape), a.dims)
    return a


def varies(values: Sequence[Value], dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether any value, which has no labels there, may differ along `dims` of the broadcast shape."""
    for value in values:
        shift = len(shape) - len(value.shape)
        for dim in (d - shift for d in dims):
            if dim < 0 or value.shape[dim] == 1 or dim in value.uniform:
                continue
            if value.constant is None or bool((value.constant != value.constant.narrow(dim, 0, 1)).any()):
                return True
    return False


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
        def apply(record: Record, *arguments: Any, **_: Any) -> Value:
            return combine(record, name, _values(arguments[:operands]), kind)

        register_rule(f"aten::{name}")(apply)

    for name in LINEAR:
        rule(name, "sum", 1)
    for name in HOMOGENEOUS:
        rule(name, "homogeneous", 1)
    for name in ODD:
        rule(name, "odd", 1)
    for name in GENERAL:
        rule(name, "general", None)
    for name in ("add", "sub", "rsub"):
        rule(name, "sum", 2)
    for name in ("maximum", "minimum"):
        rule(name, "homogeneous", 2)
    rule("mul", "product", 2)
    rule("div", "quotient", 2)


_register()


@register_rule("aten::where")
def where(record: Record, condition: Value, a: Any, b: Any) -> Value:
    """Choose between two values: all three unite; the condition itself does not scale."""
    return combine(record, "where", _values((condition, a, b)), "general")


@register_rule("aten::masked_fill")
def masked_fill(record: Record, x: Value, mask: Value, value: Any) -> Value:
    """Overwrite where a mask says so."""
    return combine(record, "masked_fill", _values((x, mask, value)), "general")


@register_rule("aten::lerp")
def lerp(record: Record, a: Value, b: Value, weight: Any) -> Value:
    """Mix two values."""
    return combine(record, "lerp", [a, b, *_values((weight,))], "general")


def _filled(number: float) -> Any:
    def like(record: Record, x: Value, *arguments: Any, **_: Any) -> Value:
        shape = tuple(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else x.shape
        return Value(shape, constant=torch.full((), number).expand(shape))

    return like


register_rule("aten::zeros_like", "aten::new_zeros")(_filled(0.0))
register_rule("aten::ones_like", "aten::full_like", "aten::new_ones", "aten::new_full")(_filled(1.0))
