"""Selection and writing by index: positions are selected along dimensions without units, and units pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .constraints import Constraints
from .elementwise import combine, varies
from .labels import LabelMap, Value
from .movement import cat
from .registry import register_rule

__all__: list[str] = []


@register_rule("aten::index_select")
def index_select(constraints: Constraints, x: Value, dim: int, index: Value) -> Value:
    """Select positions along a dimension; the index must be a constant where units lie along it."""
    dim %= len(x.shape)
    if index.constant is not None:
        return x.map(lambda ids: ids.index_select(dim, index.constant.reshape(-1)))  # type: ignore[union-attr]
    constraints.freeze([*x.maps_along([dim]), *index.label_maps], "a choice of units by computed indices")
    shape = (*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
    return Value(shape, tuple(LabelMap(m.ids.narrow(dim, 0, 1).expand(shape)) for m in x.label_maps if dim not in m.dims))


@register_rule("aten::gather")
def gather(constraints: Constraints, x: Value, dim: int, index: Value, **_: Any) -> Value:
    """Select positions along a dimension, different ones at each place; units pass if the index depends on the same units."""
    dim %= max(len(x.shape), 1)
    constraints.freeze(x.maps_along([dim]), "a choice of units by computed indices")
    constraints.rigid(*index.label_maps)
    shape, part = index.shape, tuple(slice(n) for n in index.shape)
    label_maps = [LabelMap(m.ids.narrow(dim, 0, 1)[part].expand(shape)) for m in x.label_maps if dim not in m.dims]
    chosen = Value(shape, tuple(label_maps), is_weight=x.is_weight)
    return combine(constraints, "gather", [chosen, index], "product")


@register_rule("aten::index")
def index(constraints: Constraints, x: Value, indices: Sequence[Value | None]) -> Value | None:
    """Index by constants, a move like any other, or by computed indices, which may select steps or samples but not units."""
    if any(i is not None and i.constant is None for i in indices):
        dims = [d for d, i in enumerate(indices) if i is not None]
        adjacent = dims == list(range(dims[0], dims[-1] + 1))
        constraints.freeze([label_map for d in dims for label_map in indices[d].label_maps], "a choice by computed indices")  # type: ignore[union-attr]
        chosen = x.label_maps if not adjacent else x.maps_along(dims)
        if x.is_weight and adjacent:
            constraints.fix(*chosen)  # rows of a table
        else:
            constraints.freeze(chosen, "a choice of units by computed indices")
        if not adjacent:
            return None
        index_shape = torch.broadcast_shapes(*(indices[d].shape for d in dims))  # type: ignore[union-attr]
        shape = (*x.shape[: dims[0]], *index_shape, *x.shape[dims[-1] + 1 :])
        label_maps = []
        for label_map in x.label_maps:
            if label_map not in chosen:
                ids = label_map.ids[(slice(None),) * dims[0] + (0,) * len(dims)]
                ids = ids.reshape(*ids.shape[: dims[0]], *[1] * len(index_shape), *ids.shape[dims[0] :])
                label_maps.append(LabelMap(ids.expand(shape)))
        return Value(shape, tuple(label_maps))
    indexers = [slice(None) if i is None else i.constant for i in indices]
    return x.map(lambda ids: ids[tuple(indexers)])


@register_rule("aten::copy")
def copy(constraints: Constraints, base: Value, source: Value, *_: Any) -> Value:
    """Return the second value in the shape of the first."""
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
    """Write into positions of a dimension: concatenate the remaining and the new positions in their order."""
    dim %= len(base.shape)
    positions = torch.arange(base.shape[dim])
    written = positions[slice(start, end, step)]
    remaining = positions[~torch.isin(positions, written)]
    parts = [base.map(lambda ids: ids.index_select(dim, remaining)), source]
    order = torch.argsort(torch.cat([remaining, written]))
    return cat(constraints, parts, dim).map(lambda ids: ids.index_select(dim, order))


@register_rule("aten::select_scatter")
def select_scatter(constraints: Constraints, base: Value, source: Value, dim: int, position: int) -> Value:
    """Write into one position of a dimension."""
    dim, position = dim % len(base.shape), position % base.shape[dim]
    return slice_scatter(constraints, base, source.map(lambda ids: ids.unsqueeze(dim)), dim, position, position + 1)


def _write(
    constraints: Constraints, operation: str, base: Value, source: Value, dims: Sequence[int], index: Value, kind: str
) -> Value:
    """Write one value into another, or add it there, at positions along `dims`.

    Units lie along other dimensions and are the same in both.
    """
    constraints.freeze([m for v in (base, source) for m in v.maps_along(dims)], f"{operation} along units")
    constraints.freeze(index.label_maps, "positions that units compute")
    shape = tuple(1 if d in dims else n for d, n in enumerate(base.shape))
    parts = [_at_one_position(v, dims, shape) for v in (base, source)]
    label_maps = [label_map for part in parts for label_map in part.label_maps]
    if len(index.shape) == len(shape) and varies([index], [d for m in label_maps for d in m.dims], index.shape):
        constraints.freeze(label_maps, f"{operation} at positions that differ between units")
        return Value(base.shape)
    return combine(constraints, operation, parts, kind).map(lambda ids: ids.expand(base.shape))


def _at_one_position(value: Value, dims: Sequence[int], shape: tuple[int, ...]) -> Value:
    """Return a value at one position of `dims`, with the labels along other dimensions."""
    first = partial(_first, dims=dims)
    label_maps = tuple(LabelMap(first(m.ids).expand(shape)) for m in value.label_maps if not set(m.dims) & set(dims))
    others = [d for d in range(len(value.shape)) if d not in dims]
    if value.constant is None or varies([value], others, value.shape):
        return Value(shape, label_maps, is_weight=value.is_weight)
    return Value(shape, label_maps, constant=value.constant.double().abs().amax(tuple(dims), keepdim=True).expand(shape))


def _first(ids: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in dims:
        ids = ids.narrow(dim, 0, 1)
    return ids


def _source(value: Any, base: Value) -> Value:
    """Return the value that is written; a number gets as many dimensions as `base`."""
    if isinstance(value, Value) and value.shape:
        return value
    number = value.constant if isinstance(value, Value) else torch.as_tensor(value)
    shape = (1,) * len(base.shape)
    return Value(shape, constant=None if number is None else number.reshape(shape))


@register_rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(
    constraints: Constraints, base: Value, dim: int, index: Value, source: Any, reduce: str = "", **keywords: Any
) -> Value:
    """Write or add at positions along a dimension (messages along the edges of a graph)."""
    reduce = str(keywords.get("reduce", reduce))
    kind = {"prod": "general", "multiply": "general", "amax": "homogeneous", "amin": "homogeneous"}.get(reduce, "sum")
    return _write(constraints, "scatter", base, _source(source, base), [dim % len(base.shape)], index, kind)


@register_rule("aten::index_add", "aten::index_copy", "aten::index_fill")
def index_add(constraints: Constraints, base: Value, dim: int, index: Value, source: Any, *_: Any, **__: Any) -> Value:
    """Add or write slices at positions along a dimension."""
    return _write(constraints, "index_add", base, _source(source, base), [dim % len(base.shape)], index, "sum")


@register_rule("aten::index_reduce")
def index_reduce(constraints: Constraints, base: Value, dim: int, index: Value, source: Value, reduce: str, **_: Any) -> Value:
    """Reduce slices into positions along a dimension."""
    kind = {"prod": "general", "mean": "sum"}.get(reduce, "homogeneous")
    return _write(constraints, "index_reduce", base, source, [dim % len(base.shape)], index, kind)


@register_rule("aten::index_put", "aten::_unsafe_index_put")
def index_put(
    constraints: Constraints, base: Value, indices: Sequence[Value | None], source: Value, accumulate: bool = False
) -> Value | None:
    """Write or add at positions along adjacent dimensions."""
    dims = [d for d, i in enumerate(indices) if i is not None]
    chosen = [i for i in indices if i is not None]
    if len(chosen) == 1 and _is_mask(chosen[0]):
        mask = chosen[0].map(lambda ids: ids.reshape(*ids.shape, *[1] * (len(base.shape) - ids.dim())))
        return combine(constraints, "index_put", [base, mask, source], "general")
    n_index_dims = len(torch.broadcast_shapes(*(i.shape for i in chosen)))
    if dims != list(range(dims[0], dims[-1] + 1)) or any(_is_mask(i) for i in chosen):
        constraints.freeze([m for v in (base, source, *chosen) for m in v.label_maps], "a choice of units by indices")
        return None
    rank = len(base.shape) - len(dims) + n_index_dims
    source = source.map(lambda ids: ids.reshape(*[1] * (rank - ids.dim()), *ids.shape))
    constraints.freeze(source.maps_along(range(dims[0], dims[0] + n_index_dims)), "index_put along units")

    def first_position(ids: Tensor) -> Tensor:
        ids = ids[(slice(None),) * dims[0] + (0,) * n_index_dims]
        return ids[(slice(None),) * dims[0] + (None,) * len(dims)]

    label_maps = tuple(m for m in source.label_maps if not set(m.dims) & set(range(dims[0], dims[0] + n_index_dims)))
    source = replace(source, label_maps=label_maps).map(first_position)
    index = Value((1,), tuple(m for i in chosen for m in i.label_maps))
    return _write(constraints, "index_put", base, source, dims, index, "sum")


def _is_mask(index: Value) -> bool:
    """Return whether an index is boolean: one value for each position of as many dimensions as it has."""
    return index.dtype == torch.bool
