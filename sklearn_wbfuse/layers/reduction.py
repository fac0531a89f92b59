"""Operations along dimensions: reductions, softmax, cumulative ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .elementwise import combine, row_blocks
from .labels import Layer, Record, Value
from .registry import register_rule

__all__: list[str] = []


def _dims(value: Value, dims: Any) -> tuple[int, ...]:
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return tuple(range(len(value.shape)))
    dims = [dims] if isinstance(dims, int) else dims
    return tuple(d % max(len(value.shape), 1) for d in dims)


def _reduce(record: Record, x: Value, dims: tuple[int, ...], keepdim: bool, kind: str) -> Value:
    layers = []
    for layer in x.layers:
        inside = set(layer.dims) & set(dims)
        if inside:
            record.rigid(layer)  # a symmetric function of the units: any order will do, not any scale
            if inside == set(layer.dims):
                continue
            layer = row_blocks(record, layer, dims)
        elif kind != "linear":
            (record.no_sign if kind == "homogeneous" else record.rigid)(layer)
        ids = layer.ids
        for dim in sorted(dims, reverse=True):
            ids = ids.narrow(dim, 0, 1) if keepdim else ids.select(dim, 0)
        layers.append(Layer(ids))
    shape = tuple(1 if d in dims else s for d, s in enumerate(x.shape) if keepdim or d not in dims)
    return Value(shape, tuple(layers), is_weight=x.is_weight)


def _register() -> None:
    def over_dims(name: str, kind: str, position: int, indices: bool = False) -> None:
        def apply(record: Record, x: Value, *arguments: Any, **named: Any) -> Value:
            dims = named.get("dim", arguments[position] if len(arguments) > position else None)
            dims = None if isinstance(dims, bool) else dims
            keep = bool(named.get("keepdim", arguments[-1] if arguments and isinstance(arguments[-1], bool) else False))
            if indices:  # which unit is largest is not a symmetric function of the units
                record.freeze(x.touching(_dims(x, dims)), "the index of a unit")
            return _reduce(record, x, _dims(x, dims), keep, kind)

        register_rule(f"aten::{name}")(apply)

    for name in ("sum", "mean"):
        over_dims(name, "linear", 0)
    for name in ("amax", "amin"):
        over_dims(name, "homogeneous", 0)
    for name in ("prod", "std", "var", "logsumexp", "all", "any", "count_nonzero"):
        over_dims(name, "general", 0)
    for name in ("argmax", "argmin"):
        over_dims(name, "general", 0, indices=True)
    over_dims("linalg_vector_norm", "homogeneous", 1)
    over_dims("norm", "homogeneous", 1)


_register()


@register_rule("aten::max", "aten::min", "aten::median")
def extremum(record: Record, x: Value, *arguments: Any, **named: Any) -> Value | tuple[Value, Value]:
    """Largest or smallest value, over all or along one dimension (then with its index), or of two values."""
    if arguments and isinstance(arguments[0], Value):
        return combine(record, "max", [x, arguments[0]], "homogeneous")
    if not arguments and "dim" not in named:
        return _reduce(record, x, _dims(x, None), False, "homogeneous")
    dim = named.get("dim", arguments[0] if arguments else None)
    keep = bool(named.get("keepdim", arguments[1] if len(arguments) > 1 else False))
    out = _reduce(record, x, _dims(x, dim), keep, "homogeneous")
    return out, Value(out.shape, out.layers)


@register_rule("aten::softmax", "aten::_softmax", "aten::log_softmax", "aten::_log_softmax", "aten::_safe_softmax")
def softmax(record: Record, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Equivariant to any order, along whatever dimension; no scale survives it."""
    record.rigid(*x.layers)
    for layer in x.touching([dim % len(x.shape)]):
        if len(layer.dims) > 1:
            row_blocks(record, layer, [dim % len(x.shape)])
    return Value(x.shape, x.layers)


@register_rule("aten::cumsum", "aten::cumprod", "aten::logcumsumexp")
def cumulative(record: Record, x: Value, dim: int, **_: Any) -> Value:
    """Units along the dimension stay in place, others pass."""
    record.rigid(*x.layers)
    record.freeze(x.touching([dim % len(x.shape)]), "a cumulative operation along units")
    return Value(x.shape, tuple(layer for layer in x.layers if dim % len(x.shape) not in layer.dims))
