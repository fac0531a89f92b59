"""Operations along dimensions: reductions, order statistics, softmax, cumulative operations, Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .constraints import Constraints
from .elementwise import combine, row_blocks
from .labels import LabelMap, Value
from .registry import register_rule

__all__ = ["reduced"]


def _dims(value: Value, dims: Any) -> tuple[int, ...]:
    """Return the dimensions of a reduction as nonnegative numbers; all of them if none are given."""
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return tuple(range(len(value.shape)))
    dims = [dims] if isinstance(dims, int) else dims
    return tuple(d % max(len(value.shape), 1) for d in dims)


def reduced(constraints: Constraints, x: Value, dims: tuple[int, ...], keepdim: bool, kind: str) -> Value:
    """Reduce some dimensions of a value by a symmetric function.

    Parameters
    ----------
    constraints : Constraints
    x : Value
    dims : tuple of int
    keepdim : bool
    kind : {"linear", "homogeneous", "general"}
        What passes for units along other dimensions: scales and signs, scales alone, or neither.
    """
    label_maps = []
    for label_map in x.label_maps:
        inside = set(label_map.dims) & set(dims)
        if inside:
            constraints.rigid(label_map)  # a symmetric function of the units: their order does not matter, their scales do
            if inside == set(label_map.dims):
                continue
            label_map = row_blocks(constraints, label_map, dims)
        elif kind != "linear":
            (constraints.no_sign if kind == "homogeneous" else constraints.rigid)(label_map)
        ids = label_map.ids
        for dim in sorted(dims, reverse=True):
            ids = ids.narrow(dim, 0, 1) if keepdim else ids.select(dim, 0)
        label_maps.append(LabelMap(ids))
    shape = tuple(1 if d in dims else s for d, s in enumerate(x.shape) if keepdim or d not in dims)
    return Value(shape, tuple(label_maps), is_weight=x.is_weight)


def _register() -> None:
    def over_dims(name: str, kind: str, position: int, indices: bool = False) -> None:
        def apply(constraints: Constraints, x: Value, *arguments: Any, **keywords: Any) -> Value:
            """Reduce some dimensions by a symmetric function."""
            dims = keywords.get("dim", arguments[position] if len(arguments) > position else None)
            dims = None if isinstance(dims, bool) else dims
            keepdim = bool(keywords.get("keepdim", arguments[-1] if arguments and isinstance(arguments[-1], bool) else False))
            if indices:  # which unit is largest is not a symmetric function of the units
                constraints.freeze(x.maps_along(_dims(x, dims)), "the index of a unit")
            return reduced(constraints, x, _dims(x, dims), keepdim, kind)

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
def extremum(constraints: Constraints, x: Value, *arguments: Any, **keywords: Any) -> Value | tuple[Value, Value]:
    """Take the largest, smallest or middle value, over all or along one dimension (then with its index), or of two values."""
    if arguments and isinstance(arguments[0], Value):
        return combine(constraints, "max", [x, arguments[0]], "homogeneous")
    if not arguments and "dim" not in keywords:
        return reduced(constraints, x, _dims(x, None), False, "homogeneous")
    return order_statistic(constraints, x, *arguments, **keywords)


@register_rule("aten::mode")
def order_statistic(constraints: Constraints, x: Value, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    """Take one of the values along a dimension, with its index."""
    _index_is_fixed(constraints, x, dim)
    out = reduced(constraints, x, _dims(x, dim), keepdim, "homogeneous")
    return out, _index_of(constraints, out)


@register_rule("aten::kthvalue")
def kthvalue(constraints: Constraints, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    """Take the value of a given rank."""
    return order_statistic(constraints, x, dim, keepdim)


@register_rule("aten::dist")
def dist(constraints: Constraints, a: Value, b: Value, *_: Any) -> Value:
    """Compute the distance of two values."""
    difference = combine(constraints, "dist", [a, b], "sum")
    return reduced(constraints, difference, _dims(difference, None), False, "homogeneous")


@register_rule("aten::segment_reduce")
def segment_reduce(constraints: Constraints, x: Value, reduce: str, *, lengths: Value, axis: int = 0, **_: Any) -> Value:
    """Reduce segments of adjacent positions along a dimension."""
    out = _along_others(constraints, x, axis)
    for label_map in out.label_maps:
        (constraints.rigid if reduce == "prod" else constraints.no_sign)(label_map)
    return out.map(
        lambda ids: ids.narrow(axis, 0, 1).expand([lengths.shape[0] if d == axis else n for d, n in enumerate(x.shape)])
    )


@register_rule("aten::aminmax")
def aminmax(constraints: Constraints, x: Value, *, dim: int | None = None, keepdim: bool = False) -> tuple[Value, Value]:
    """Take the smallest and the largest value."""
    out = reduced(constraints, x, _dims(x, dim), keepdim, "homogeneous")
    return out, out


@register_rule("aten::std_mean", "aten::var_mean")
def std_mean(constraints: Constraints, x: Value, dims: Any = None, *options: bool, **keywords: Any) -> tuple[Value, Value]:
    """Compute the standard deviation, or the variance, and the mean."""
    reduced_dims = _dims(x, None if isinstance(dims, bool) else dims)
    keepdim = bool(keywords.get("keepdim", options[-1] if len(options) > 1 else False))
    return reduced(constraints, x, reduced_dims, keepdim, "general"), reduced(constraints, x, reduced_dims, keepdim, "linear")


@register_rule("aten::sort")
def sort(constraints: Constraints, x: Value, dim: int = -1, *_: Any, **__: Any) -> tuple[Value, Value]:
    """Sort values along a dimension, with their indices."""
    return topk(constraints, x, x.shape[dim], dim)


@register_rule("aten::topk")
def topk(constraints: Constraints, x: Value, k: int, dim: int = -1, *_: Any, **__: Any) -> tuple[Value, Value]:
    """Take the largest or smallest values along a dimension, with their indices."""
    _index_is_fixed(constraints, x, dim)
    dim %= len(x.shape)
    shape = tuple(k if d == dim else n for d, n in enumerate(x.shape))
    first = reduced(constraints, x, (dim,), True, "homogeneous")
    out = Value(
        shape,
        tuple(LabelMap(label_map.ids.expand(shape), label_map.dims) for label_map in first.label_maps),
        is_weight=x.is_weight,
    )
    return out, _index_of(constraints, out)


@register_rule("aten::cummax", "aten::cummin")
def running_extremum(constraints: Constraints, x: Value, dim: int) -> tuple[Value, Value]:
    """Take the largest value up to each position, with its index."""
    for label_map in x.label_maps:
        constraints.no_sign(label_map)
    out = _along_others(constraints, x, dim)
    return out, _index_of(constraints, out)


def _index_is_fixed(constraints: Constraints, x: Value, dim: int) -> None:
    """Freeze units along a dimension if an index of one is used: it is not a symmetric function of the units."""
    if constraints.used_results is None or 1 in constraints.used_results:
        constraints.freeze(x.maps_along([dim % len(x.shape)]), "the index of a unit")


def _index_of(constraints: Constraints, out: Value) -> Value:
    """Return the index of each unit along other dimensions: it moves with the unit but does not scale."""
    if constraints.used_results is not None and 1 not in constraints.used_results:
        return Value(out.shape)
    label_maps = []
    for label_map in out.label_maps:
        unit_ids = label_map.compact.reshape(-1)
        index_ids = constraints.fresh(len(unit_ids))
        constraints.unite(unit_ids, index_ids)
        constraints.rigid(LabelMap(index_ids))
        label_maps.append(LabelMap(index_ids.view(label_map.compact.shape).expand(out.shape), label_map.dims))
    return Value(out.shape, tuple(label_maps))


@register_rule("aten::softmax", "aten::_softmax", "aten::log_softmax", "aten::_log_softmax", "aten::_safe_softmax")
def softmax(constraints: Constraints, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Compute a softmax, equivariant to permutations along any dimension; it removes scales."""
    constraints.rigid(*x.label_maps)
    for label_map in x.maps_along([dim % len(x.shape)]):
        if len(label_map.dims) > 1:
            row_blocks(constraints, label_map, [dim % len(x.shape)])
    return Value(x.shape, x.label_maps)


@register_rule("aten::cumsum")
def cumsum(constraints: Constraints, x: Value, dim: int, **_: Any) -> Value:
    """Sum cumulatively: units along the dimension stay in place, others pass."""
    return _along_others(constraints, x, dim)


@register_rule("aten::cumprod", "aten::logcumsumexp")
def cumulative(constraints: Constraints, x: Value, dim: int, **_: Any) -> Value:
    """Accumulate along a dimension: its units stay in place, others can neither be scaled nor change sign."""
    constraints.rigid(*x.label_maps)
    return _along_others(constraints, x, dim)


def _along_others(constraints: Constraints, x: Value, *dims: int) -> Value:
    """Keep units along `dims` in place, where the operation depends on positions; units along other dimensions pass."""
    fixed_maps = x.maps_along([d % len(x.shape) for d in dims])
    if x.is_weight:
        constraints.fix(*fixed_maps)
    else:
        constraints.freeze(fixed_maps, "an operation in which positions count along units")
    return Value(
        x.shape,
        tuple(label_map for label_map in x.label_maps if all(label_map is not fixed for fixed in fixed_maps)),
        is_weight=x.is_weight,
    )


@register_rule("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def fourier(constraints: Constraints, x: Value, dims: Sequence[int], normalization: int, last: int | bool) -> Value:
    """Apply a linear map along dimensions; the last one changes its size if the input or the output is real."""
    out, shape = _along_others(constraints, x, *dims), list(x.shape)
    if not isinstance(last, bool):
        shape[dims[-1]] = last
    elif x.dtype is not None and not x.dtype.is_complex and last:
        shape[dims[-1]] = shape[dims[-1]] // 2 + 1
    id_maps = [m.ids.narrow(dims[-1] % len(shape), 0, 1).expand(shape) for m in out.label_maps]
    return Value(tuple(shape), tuple(map(LabelMap, id_maps)), is_weight=x.is_weight)


@register_rule("aten::view_as_complex")
def view_as_complex(constraints: Constraints, x: Value) -> Value:
    """Convert pairs along the last dimension to complex numbers."""
    constraints.fix(*x.maps_along([len(x.shape) - 1]))
    remaining = tuple(label_map for label_map in x.label_maps if len(x.shape) - 1 not in label_map.dims)
    return Value(x.shape, remaining, is_weight=x.is_weight).map(lambda ids: ids.select(-1, 0))


@register_rule("aten::view_as_real")
def view_as_real(constraints: Constraints, x: Value) -> Value:
    """Convert complex numbers to pairs along a new last dimension."""
    return x.map(lambda ids: ids.unsqueeze(-1).expand(*ids.shape, 2))
