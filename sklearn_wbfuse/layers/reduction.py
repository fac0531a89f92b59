"""Operations along dimensions: reductions, order statistics, softmax, cumulative ones, Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .elementwise import combine, row_blocks
from .labels import Constraints, LabelMap, Value
from .registry import register_rule

__all__ = ["reduced"]


def _dims(value: Value, dims: Any) -> tuple[int, ...]:
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return tuple(range(len(value.shape)))
    dims = [dims] if isinstance(dims, int) else dims
    return tuple(d % max(len(value.shape), 1) for d in dims)


def reduced(constraints: Constraints, x: Value, dims: tuple[int, ...], keepdim: bool, kind: str) -> Value:
    """One number in place of all along some dimensions, a symmetric function of them.

    Parameters
    ----------
    kind : {"linear", "homogeneous", "general"}
        What passes for units along other dimensions: scales and signs, scales alone, neither.
    """
    layers = []
    for layer in x.layers:
        inside = set(layer.dims) & set(dims)
        if inside:
            constraints.rigid(layer)  # a symmetric function of the units: any order will do, not any scale
            if inside == set(layer.dims):
                continue
            layer = row_blocks(constraints, layer, dims)
        elif kind != "linear":
            (constraints.no_sign if kind == "homogeneous" else constraints.rigid)(layer)
        ids = layer.ids
        for dim in sorted(dims, reverse=True):
            ids = ids.narrow(dim, 0, 1) if keepdim else ids.select(dim, 0)
        layers.append(LabelMap(ids))
    shape = tuple(1 if d in dims else s for d, s in enumerate(x.shape) if keepdim or d not in dims)
    return Value(shape, tuple(layers), is_weight=x.is_weight)


def _register() -> None:
    def over_dims(name: str, kind: str, position: int, indices: bool = False) -> None:
        def apply(constraints: Constraints, x: Value, *arguments: Any, **named: Any) -> Value:
            """One number for all along some dimensions, whatever their order."""
            dims = named.get("dim", arguments[position] if len(arguments) > position else None)
            dims = None if isinstance(dims, bool) else dims
            keep = bool(named.get("keepdim", arguments[-1] if arguments and isinstance(arguments[-1], bool) else False))
            if indices:  # which unit is largest is not a symmetric function of the units
                constraints.freeze(x.touching(_dims(x, dims)), "the index of a unit")
            return reduced(constraints, x, _dims(x, dims), keep, kind)

        register_rule(f"aten::{name}")(apply)

    for name in ("sum", "mean", "nansum", "nanmean"):
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


@register_rule("aten::max", "aten::min", "aten::median", "aten::nanmedian")
def extremum(constraints: Constraints, x: Value, *arguments: Any, **named: Any) -> Value | tuple[Value, Value]:
    """Largest, smallest or middle value, over all or along one dimension (then with its index), or of two values."""
    if arguments and isinstance(arguments[0], Value):
        return combine(constraints, "max", [x, arguments[0]], "homogeneous")
    if not arguments and "dim" not in named:
        return reduced(constraints, x, _dims(x, None), False, "homogeneous")
    return chosen(constraints, x, *arguments, **named)


@register_rule("aten::mode")
def chosen(constraints: Constraints, x: Value, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    """One of the values along a dimension, and its index."""
    _index_is_fixed(constraints, x, dim)
    out = reduced(constraints, x, _dims(x, dim), keepdim, "homogeneous")
    return out, _index_of(constraints, out)


@register_rule("aten::kthvalue")
def kthvalue(constraints: Constraints, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    """That of a rank."""
    return chosen(constraints, x, dim, keepdim)


@register_rule("aten::dist")
def dist(constraints: Constraints, a: Value, b: Value, *_: Any) -> Value:
    """The distance of two values."""
    difference = combine(constraints, "dist", [a, b], "sum")
    return reduced(constraints, difference, _dims(difference, None), False, "homogeneous")


@register_rule("aten::segment_reduce")
def segment_reduce(constraints: Constraints, x: Value, reduce: str, *, lengths: Value, axis: int = 0, **_: Any) -> Value:
    """Reductions of the neighbours along a dimension."""
    out = _along_others(constraints, x, axis)
    for layer in out.layers:
        (constraints.rigid if reduce == "prod" else constraints.no_sign)(layer)
    return out.map(
        lambda ids: ids.narrow(axis, 0, 1).expand([lengths.shape[0] if d == axis else n for d, n in enumerate(x.shape)])
    )


@register_rule("aten::aminmax")
def aminmax(constraints: Constraints, x: Value, *, dim: int | None = None, keepdim: bool = False) -> tuple[Value, Value]:
    """Smallest and largest value."""
    out = reduced(constraints, x, _dims(x, dim), keepdim, "homogeneous")
    return out, out


@register_rule("aten::std_mean", "aten::var_mean")
def std_mean(constraints: Constraints, x: Value, dims: Any = None, *options: bool, **named: Any) -> tuple[Value, Value]:
    """Standard deviation, or variance, and mean."""
    over = _dims(x, None if isinstance(dims, bool) else dims)
    keepdim = bool(named.get("keepdim", options[-1] if len(options) > 1 else False))
    return reduced(constraints, x, over, keepdim, "general"), reduced(constraints, x, over, keepdim, "linear")


@register_rule("aten::sort")
def sort(constraints: Constraints, x: Value, dim: int = -1, *_: Any, **__: Any) -> tuple[Value, Value]:
    """Values along a dimension in the order of their size, and their indices."""
    return topk(constraints, x, x.shape[dim], dim)


@register_rule("aten::topk")
def topk(constraints: Constraints, x: Value, k: int, dim: int = -1, *_: Any, **__: Any) -> tuple[Value, Value]:
    """The first of them."""
    _index_is_fixed(constraints, x, dim)
    dim %= len(x.shape)
    shape = tuple(k if d == dim else n for d, n in enumerate(x.shape))
    first = reduced(constraints, x, (dim,), True, "homogeneous")
    out = Value(shape, tuple(LabelMap(layer.ids.expand(shape), layer.dims) for layer in first.layers), is_weight=x.is_weight)
    return out, _index_of(constraints, out)


@register_rule("aten::cummax", "aten::cummin")
def running_extremum(constraints: Constraints, x: Value, dim: int) -> tuple[Value, Value]:
    """The largest value so far, and its index."""
    for layer in x.layers:
        constraints.no_sign(layer)
    out = _along_others(constraints, x, dim)
    return out, _index_of(constraints, out)


def _index_is_fixed(constraints: Constraints, x: Value, dim: int) -> None:
    """Units along a dimension stay in place if something reads the index of one: it is no symmetric function of them."""
    if constraints.wanted is None or 1 in constraints.wanted:
        constraints.freeze(x.touching([dim % len(x.shape)]), "the index of a unit")


def _index_of(constraints: Constraints, out: Value) -> Value:
    """An index for each unit along other dimensions: it moves with the unit, but does not scale."""
    if constraints.wanted is not None and 1 not in constraints.wanted:
        return Value(out.shape)
    layers = []
    for layer in out.layers:
        ids = layer.core.reshape(-1)
        twin = constraints.fresh(len(ids))
        constraints.unite(ids, twin)
        constraints.rigid(LabelMap(twin))
        layers.append(LabelMap(twin.view(layer.core.shape).expand(out.shape), layer.dims))
    return Value(out.shape, tuple(layers))


@register_rule("aten::softmax", "aten::_softmax", "aten::log_softmax", "aten::_log_softmax", "aten::_safe_softmax")
def softmax(constraints: Constraints, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Equivariant to any order, along whatever dimension; no scale survives it."""
    constraints.rigid(*x.layers)
    for layer in x.touching([dim % len(x.shape)]):
        if len(layer.dims) > 1:
            row_blocks(constraints, layer, [dim % len(x.shape)])
    return Value(x.shape, x.layers)


@register_rule("aten::cumsum")
def cumsum(constraints: Constraints, x: Value, dim: int, **_: Any) -> Value:
    """Units along the dimension stay in place, others pass."""
    return _along_others(constraints, x, dim)


@register_rule("aten::cumprod", "aten::logcumsumexp")
def cumulative(constraints: Constraints, x: Value, dim: int, **_: Any) -> Value:
    """The same, where units can neither be scaled nor change sign."""
    constraints.rigid(*x.layers)
    return _along_others(constraints, x, dim)


def _along_others(constraints: Constraints, x: Value, *dims: int) -> Value:
    """What an operation along dimensions that keeps positions apart leaves: units along other dimensions."""
    inside = x.touching([d % len(x.shape) for d in dims])
    if x.is_weight:
        constraints.fix(*inside)
    else:
        constraints.freeze(inside, "an operation in which positions count along units")
    return Value(x.shape, tuple(layer for layer in x.layers if all(layer is not i for i in inside)), is_weight=x.is_weight)


@register_rule("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def fourier(constraints: Constraints, x: Value, dims: Sequence[int], normalization: int, last: int | bool) -> Value:
    """A linear map along dimensions; from or to real numbers, the last of them changes its size."""
    out, shape = _along_others(constraints, x, *dims), list(x.shape)
    if not isinstance(last, bool):
        shape[dims[-1]] = last
    elif x.dtype is not None and not x.dtype.is_complex and last:
        shape[dims[-1]] = shape[dims[-1]] // 2 + 1
    layers = [k.ids.narrow(dims[-1] % len(shape), 0, 1).expand(shape) for k in out.layers]
    return Value(tuple(shape), tuple(LabelMap(ids) for ids in layers), is_weight=x.is_weight)


@register_rule("aten::view_as_complex")
def view_as_complex(constraints: Constraints, x: Value) -> Value:
    """Pairs along the last dimension become numbers."""
    constraints.fix(*x.touching([len(x.shape) - 1]))
    kept = tuple(layer for layer in x.layers if len(x.shape) - 1 not in layer.dims)
    return Value(x.shape, kept, is_weight=x.is_weight).map(lambda ids: ids.select(-1, 0))


@register_rule("aten::view_as_real")
def view_as_real(constraints: Constraints, x: Value) -> Value:
    """Numbers become pairs along a last dimension."""
    return x.map(lambda ids: ids.unsqueeze(-1).expand(*ids.shape, 2))
