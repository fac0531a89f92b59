"""Choosing and writing by index: positions are picked along dimensions without units, and units pass beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .elementwise import combine, varies
from .labels import Constraints, LabelMap, Value
from .movement import cat
from .registry import register_rule

__all__: list[str] = []


@register_rule("aten::index_select")
def index_select(constraints: Constraints, x: Value, dim: int, index: Value) -> Value:
    """Pick positions along a dimension; the index must be a constant where units lie along it."""
    dim %= len(x.shape)
    if index.constant is not None:
        return x.map(lambda ids: ids.index_select(dim, index.constant.reshape(-1)))  # type: ignore[union-attr]
    constraints.freeze([*x.touching([dim]), *index.layers], "a choice of units by computed indices")
    shape = (*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
    return Value(shape, tuple(LabelMap(k.ids.narrow(dim, 0, 1).expand(shape)) for k in x.layers if dim not in k.dims))


@register_rule("aten::gather")
def gather(constraints: Constraints, x: Value, dim: int, index: Value, **_: Any) -> Value:
    """Pick positions along a dimension, others at every place: for each unit its own, if that is computed of the same units."""
    dim %= max(len(x.shape), 1)
    constraints.freeze(x.touching([dim]), "a choice of units by computed indices")
    constraints.rigid(*index.layers)
    shape, cut = index.shape, tuple(slice(n) for n in index.shape)
    layers = [k.ids.narrow(dim, 0, 1)[cut] for k in x.layers if dim not in k.dims]
    chosen = Value(shape, tuple(LabelMap(ids.expand(shape)) for ids in layers), is_weight=x.is_weight)
    return combine(constraints, "gather", [chosen, index], "product")


@register_rule("aten::index")
def index(constraints: Constraints, x: Value, indices: Sequence[Value | None]) -> Value | None:
    """Fancy indexing by constants is a move like any other; computed indices may pick steps or samples, not units."""
    if any(i is not None and i.constant is None for i in indices):
        given = [d for d, i in enumerate(indices) if i is not None]
        side_by_side = given == list(range(given[0], given[-1] + 1))
        constraints.freeze([layer for d in given for layer in indices[d].layers], "a choice by computed indices")  # type: ignore[union-attr]
        chosen = x.layers if not side_by_side else x.touching(given)
        if x.is_weight and side_by_side:
            constraints.fix(*chosen)  # rows of a table
        else:
            constraints.freeze(chosen, "a choice of units by computed indices")
        if not side_by_side:
            return None
        picked = torch.broadcast_shapes(*(indices[d].shape for d in given))  # type: ignore[union-attr]
        shape = (*x.shape[: given[0]], *picked, *x.shape[given[-1] + 1 :])
        layers = []
        for layer in x.layers:
            if layer not in chosen:
                ids = layer.ids[(slice(None),) * given[0] + (0,) * len(given)]
                ids = ids.reshape(*ids.shape[: given[0]], *[1] * len(picked), *ids.shape[given[0] :])
                layers.append(LabelMap(ids.expand(shape)))
        return Value(shape, tuple(layers))
    picks = [slice(None) if i is None else i.constant for i in indices]
    return x.map(lambda ids: ids[tuple(picks)])


@register_rule("aten::copy")
def copy(constraints: Constraints, base: Value, source: Value, *_: Any) -> Value:
    """The second value, in the shape of the first."""
    return replace(source.map(lambda ids: ids.expand(base.shape)), is_weight=source.is_weight)


@register_rule("aten::slice_scatter")
def slice_scatter(
    constraints: Constraints,
    base: Value,
    source: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    """Write into positions of a dimension: a concatenation of what stays and what is new, in the order of positions."""
    dim %= len(base.shape)
    at = torch.arange(base.shape[dim])
    written = at[slice(start, end, step)]
    stays = at[~torch.isin(at, written)]
    parts = [base.map(lambda ids: ids.index_select(dim, stays)), source]
    order = torch.argsort(torch.cat([stays, written]))
    return cat(constraints, parts, dim).map(lambda ids: ids.index_select(dim, order))


@register_rule("aten::select_scatter")
def select_scatter(constraints: Constraints, base: Value, source: Value, dim: int, position: int) -> Value:
    """Write into one position of a dimension."""
    dim, position = dim % len(base.shape), position % base.shape[dim]
    return slice_scatter(constraints, base, source.map(lambda ids: ids.unsqueeze(dim)), dim, position, position + 1)


def _written(
    constraints: Constraints, operation: str, base: Value, source: Value, dims: Sequence[int], index: Value, kind: str
) -> Value:
    """Write one value into another, or add it there, at positions along `dims`.

    Units lie along other dimensions, and are the same in both.
    """
    constraints.freeze([k for v in (base, source) for k in v.touching(dims)], f"{operation} along units")
    constraints.freeze(index.layers, "positions that units compute")
    shape = tuple(1 if d in dims else n for d, n in enumerate(base.shape))
    parts = [_beside(v, dims, shape) for v in (base, source)]
    layers = [layer for part in parts for layer in part.layers]
    if len(index.shape) == len(shape) and varies([index], [d for k in layers for d in k.dims], index.shape):
        constraints.freeze(layers, f"{operation} at positions that differ between units")
        return Value(base.shape)
    return combine(constraints, operation, parts, kind).map(lambda ids: ids.expand(base.shape))


def _beside(value: Value, dims: Sequence[int], shape: tuple[int, ...]) -> Value:
    """A value at one position of `dims`, with the labels along other dimensions."""
    first = partial(_first, dims=dims)
    layers = tuple(LabelMap(first(k.ids).expand(shape)) for k in value.layers if not set(k.dims) & set(dims))
    others = [d for d in range(len(value.shape)) if d not in dims]
    if value.constant is None or varies([value], others, value.shape):
        return Value(shape, layers, is_weight=value.is_weight)
    return Value(shape, layers, constant=value.constant.double().abs().amax(tuple(dims), keepdim=True).expand(shape))


def _first(ids: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in dims:
        ids = ids.narrow(dim, 0, 1)
    return ids


def _source(value: Any, like: Value) -> Value:
    """What is written; a number in as many dimensions."""
    if isinstance(value, Value) and value.shape:
        return value
    number = value.constant if isinstance(value, Value) else torch.as_tensor(value)
    shape = (1,) * len(like.shape)
    return Value(shape, constant=None if number is None else number.reshape(shape))


@register_rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(constraints: Constraints, base: Value, dim: int, index: Value, source: Any, reduce: str = "", **named: Any) -> Value:
    """Write or add at positions along a dimension (messages along the edges of a graph)."""
    reduce = str(named.get("reduce", reduce))
    kind = {"prod": "general", "multiply": "general", "amax": "homogeneous", "amin": "homogeneous"}.get(reduce, "sum")
    return _written(constraints, "scatter", base, _source(source, base), [dim % len(base.shape)], index, kind)


@register_rule("aten::index_add", "aten::index_copy", "aten::index_fill")
def index_add(constraints: Constraints, base: Value, dim: int, index: Value, source: Any, *_: Any, **__: Any) -> Value:
    """Add or write slices at positions along a dimension."""
    return _written(constraints, "index_add", base, _source(source, base), [dim % len(base.shape)], index, "sum")


@register_rule("aten::index_reduce")
def index_reduce(constraints: Constraints, base: Value, dim: int, index: Value, source: Value, reduce: str, **_: Any) -> Value:
    """Reduce slices into positions along a dimension."""
    kind = {"prod": "general", "mean": "sum"}.get(reduce, "homogeneous")
    return _written(constraints, "index_reduce", base, source, [dim % len(base.shape)], index, kind)


@register_rule("aten::index_put", "aten::_unsafe_index_put")
def index_put(
    constraints: Constraints, base: Value, indices: Sequence[Value | None], source: Value, accumulate: bool = False
) -> Value | None:
    """Write or add at positions along neighbouring dimensions."""
    given = [d for d, i in enumerate(indices) if i is not None]
    chosen = [i for i in indices if i is not None]
    if len(chosen) == 1 and _is_mask(chosen[0]):
        mask = chosen[0].map(lambda ids: ids.reshape(*ids.shape, *[1] * (len(base.shape) - ids.dim())))
        return combine(constraints, "index_put", [base, mask, source], "general")
    picked = len(torch.broadcast_shapes(*(i.shape for i in chosen)))
    if given != list(range(given[0], given[-1] + 1)) or any(_is_mask(i) for i in chosen):
        constraints.freeze([k for v in (base, source, *chosen) for k in v.layers], "a choice of units by indices")
        return None
    rank = len(base.shape) - len(given) + picked
    source = source.map(lambda ids: ids.reshape(*[1] * (rank - ids.dim()), *ids.shape))
    constraints.freeze(source.touching(range(given[0], given[0] + picked)), "index_put along units")

    def at_one_position(ids: Tensor) -> Tensor:
        ids = ids[(slice(None),) * given[0] + (0,) * picked]
        return ids[(slice(None),) * given[0] + (None,) * len(given)]

    kept = tuple(k for k in source.layers if not set(k.dims) & set(range(given[0], given[0] + picked)))
    source = replace(source, layers=kept).map(at_one_position)
    where = Value((1,), tuple(k for i in chosen for k in i.layers))
    return _written(constraints, "index_put", base, source, given, where, "sum")


def _is_mask(index: Value) -> bool:
    """Whether an index holds truth values: one for each position of as many dimensions as it has."""
    return index.dtype == torch.bool
