"""Contractions with a weight: linear layers, matrix products, embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..network.couplings import along
from .constraints import Constraints
from .elementwise import combine, interchangeable_positions
from .labels import LabelMap, Value
from .product import product
from .registry import register_rule, register_sizes

__all__ = ["add_bias", "contract", "opaque", "read"]

register_sizes(nn.Linear, out_features=("weight", 0), in_features=("weight", 1))
register_sizes(nn.Bilinear, out_features=("weight", 0), in1_features=("weight", 1), in2_features=("weight", 2))
register_sizes(nn.EmbeddingBag, num_embeddings=("weight", 0), embedding_dim=("weight", 1))
register_sizes(nn.Embedding, num_embeddings=("weight", 0), embedding_dim=("weight", 1))


def read(constraints: Constraints, x: Value, x_dim: int, weight: Value, weight_dim: int) -> list[LabelMap]:
    """Unite the units of `x` with an axis of a weight that reads them.

    Returns
    -------
    list of LabelMap
        The label maps of `x` that the contraction leaves, still in the shape of `x`.
    """
    x_dim %= len(x.shape)
    axis = weight.label_map(weight_dim)
    units = x.label_map(x_dim)
    across = [label_map for label_map in x.maps_along([x_dim]) if label_map is not units]
    if units is None and len(across) == 1:
        units, across = constraints.unite_along(across[0], [d for d in across[0].dims if d != x_dim]), []
    if units is None and not across:
        units = interchangeable_positions(constraints, x, [x_dim])
    if across:
        constraints.freeze(across, "a contraction over part of the dimensions along which units are laid out")
        constraints.fix(units, axis)
    elif units is None or axis is None:
        constraints.fix(units, axis)
    else:
        ids, columns = units.vector(x_dim), axis.vector(weight_dim)
        constraints.unite(ids, columns)
        constraints.opposite_factor(ids, columns)
        constraints.consumes(columns)
    return [label_map for label_map in x.label_maps if label_map is not units and x_dim not in label_map.dims]


def contract(constraints: Constraints, x: Value, x_dim: int, weight: Value, weight_dim: int) -> Value:
    """Multiply an activation by a matrix of weights; the weight's other axis takes the place of `x_dim`."""
    x_dim %= len(x.shape)
    weight_dim %= 2
    remaining = read(constraints, x, x_dim, weight, weight_dim)
    out_dim = 1 - weight_dim
    shape = (*x.shape[:x_dim], weight.shape[out_dim], *x.shape[x_dim + 1 :])
    label_maps = [LabelMap(label_map.ids.narrow(x_dim, 0, 1).expand(shape), label_map.dims) for label_map in remaining]
    output_map = weight.label_map(out_dim)
    if output_map is not None:
        ids = output_map.vector(out_dim)
        constraints.produces(ids)
        label_maps.append(LabelMap.along(ids, x_dim, shape))
    return Value(shape, tuple(label_maps))


def add_bias(constraints: Constraints, out: Value, bias: Value | None, dim: int) -> Value:
    """Add one number per unit along `dim`."""
    if bias is None:
        return out
    dim %= len(out.shape)
    biased = combine(constraints, "bias", [out, bias.map(lambda ids: along(ids, dim, len(out.shape)))], "sum")
    return replace(biased, bias=None if bias.shared else bias.name)


@register_rule("aten::linear")
def linear(constraints: Constraints, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Compute Y = X W^T + b, W of shape (out, in)."""
    if not weight.is_weight or len(weight.shape) != 2:
        out = product(constraints, x, weight.map(lambda ids: ids.movedim(-1, 0)))
        return out if bias is None else combine(constraints, "linear", [out, bias], "sum")
    return add_bias(constraints, contract(constraints, x, -1, weight, 1), bias, -1)


@register_rule("aten::addmm", "aten::_sparse_addmm")
def addmm(constraints: Constraints, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """Compute B + X Y, X and Y matrices."""
    return combine(
        constraints, "addmm", [contract(constraints, a, -1, b, 0) if b.is_weight else product(constraints, a, b), bias], "sum"
    )


@register_rule("aten::addmv")
def addmv(constraints: Constraints, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """Compute b + A x, A a matrix and x a vector."""
    return combine(constraints, "addmv", [matmul(constraints, a, b), bias], "sum")


@register_rule("aten::matmul", "aten::mm", "aten::mv", "aten::dot", "aten::bmm", "aten::_sparse_mm")
def matmul(constraints: Constraints, a: Value, b: Value) -> Value:
    """Multiply by a matrix of weights on either side, or multiply two computed values."""
    if b.is_weight and len(b.shape) == 2 and not a.is_weight:
        return contract(constraints, a, -1, b, 0)
    if a.is_weight and len(a.shape) == 2 and not b.is_weight and len(b.shape) >= 1:
        return contract(constraints, b, -2 if len(b.shape) > 1 else -1, a, 1)
    return product(constraints, a, b)


@register_rule("aten::bilinear")
def bilinear(constraints: Constraints, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """Compute y_k = a^T W_k b + b_k, W of shape (out, in a, in b): one axis reads each of the two."""
    if not weight.is_weight:
        return opaque(constraints, "a bilinear layer with computed weights", a, b, weight, bias)
    remaining = [read(constraints, x, -1, weight, axis) for axis, x in ((1, a), (2, b))]
    constraints.freeze([label_map for label_maps in remaining for label_map in label_maps], "a bilinear layer along units")
    shape, output_map = (*a.shape[:-1], weight.shape[0]), weight.label_map(0)
    if output_map is None:
        return add_bias(constraints, Value(shape), bias, -1)
    ids = output_map.vector(0)
    constraints.produces(ids)
    return add_bias(constraints, Value(shape, (LabelMap.along(ids, len(shape) - 1, shape),)), bias, -1)


@register_rule("aten::embedding")
def embedding(constraints: Constraints, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    """Look up rows of a table: tokens are fixed, the coordinates are units."""
    constraints.fix(*index.label_maps, weight.label_map(0))
    shape = (*index.shape, weight.shape[1])
    axis = weight.label_map(1)
    if axis is None:
        return Value(shape)
    ids = axis.vector(1)
    constraints.produces(ids)
    return Value(shape, (LabelMap.along(ids, len(shape) - 1, shape),))


@register_rule("aten::embedding_bag", "aten::_embedding_bag")
def embedding_bag(
    constraints: Constraints,
    weight: Value,
    index: Value,
    offsets: Value,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    include_last_offset: bool = False,
    *_: Any,
) -> tuple[Value, ...]:
    """Look up rows of a table, and take their sums, means or maxima."""
    rows = embedding(constraints, weight, index)
    if per_sample_weights is not None:
        constraints.fix(*per_sample_weights.label_maps)
    if mode == 2:
        constraints.no_sign(*rows.label_maps)
    shape = (offsets.shape[0] - include_last_offset, weight.shape[1])
    return (
        Value(shape, tuple(LabelMap.along(label_map.vector(1), 1, shape) for label_map in rows.label_maps)),
        Value(()),
        Value(()),
        Value(()),
    )


def opaque(constraints: Constraints, why: str, *values: Value | None) -> Value:
    """Freeze the units of all operands; the result has no labels, and the interpreter fills in its shape."""
    for value in values:
        if value is not None:
            constraints.freeze(value.label_maps, why)
    return Value(())
