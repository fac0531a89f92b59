"""Convolutions and operations over space alone: pooling, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .constraints import Constraints
from .elementwise import combine, varies
from .labels import LabelMap, Value
from .linear import add_bias, opaque, read
from .operations import TABLE, operation_names
from .registry import Blocks, register_rule, register_sizes

__all__ = ["is_depthwise"]

for _module in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_sizes(
        _module, out_channels=("weight", 0), groups=Blocks("weight", 0), in_channels=lambda m: m.weight.shape[1] * m.groups
    )
for _transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_sizes(
        _transposed, in_channels=("weight", 0), groups=Blocks("weight", 0), out_channels=lambda m: m.weight.shape[1] * m.groups
    )


def _convolution(space: int, transposed: bool) -> Callable[..., Value]:
    operation = getattr(torch, f"conv{'_transpose' * transposed}{space}d")
    in_axis, out_axis = (0, 1) if transposed else (1, 0)

    def convolve(constraints: Constraints, x: Value, weight: Value, bias: Value | None = None, *options: Any) -> Value:
        """Convolve: channels are units, space and kernel positions are not; with groups, channels lie in blocks."""
        groups = options[3] if len(options) > 3 else 1
        channel = len(x.shape) - space - 1
        channelwise = weight.constant is not None and bias is None and groups == weight.shape[0] == x.shape[channel]
        if channelwise and not varies([weight], [0], weight.shape):  # one filter for all channels
            x, shape = _out_of_space(constraints, x, space), _shape_after(operation, x, weight, options)
            remaining = [k for k in x.label_maps if max(k.dims, default=0) <= channel]
            return Value(shape, tuple(LabelMap(_stretch(k.ids, shape, channel + 1), k.dims) for k in remaining))
        if not weight.is_weight:
            return opaque(constraints, "computed weights", x, weight, bias)
        depthwise = is_depthwise(weight.shape, groups, transposed)
        if groups > 1 and not depthwise and weight.diagonal == 1:
            return opaque(constraints, "a convolution in groups with computed weights", x, weight, bias)
        pointwise = groups == 1 and not transposed and _is_pointwise(weight.shape[2:], options)
        x = x if pointwise else _out_of_space(constraints, x, space)
        constraints.fix(*(weight.label_map(d) for d in range(1 if depthwise else 2, 2 + space)))
        shape = _shape_after(operation, x, weight, options)
        remaining = (
            [k for k in x.label_maps if k is not x.label_map(channel)]
            if depthwise
            else read(constraints, x, channel, weight, in_axis)
        )
        label_maps = [
            LabelMap(label_map.ids.narrow(channel, 0, 1).expand(shape) if pointwise else _stretch(label_map.ids, shape, channel))
            for label_map in remaining
            if pointwise or max(label_map.dims, default=0) < channel
        ]
        out_dim = 0 if depthwise else out_axis
        output_map = weight.label_map(out_dim)
        if output_map is not None:
            ids = output_map.vector(out_dim)
            constraints.produces(ids)
            if depthwise:
                ids = _channelwise(constraints, x, channel, ids)
            elif groups > 1:
                _in_groups(constraints, weight.label_map(in_axis), in_axis, ids, groups)
            label_maps.append(LabelMap.along(ids, channel, shape))
        return add_bias(constraints, Value(shape, tuple(label_maps)), bias, channel)

    return convolve


def _is_pointwise(kernel: Sequence[int], options: Sequence[Any]) -> bool:
    """Return whether a convolution does the same at every position, so that units may lie in space (an MLP-Mixer)."""
    stride, padding = [*options, *([1], [0])[len(options) :]][:2]
    return all(k == 1 for k in kernel) and all(n == 1 for n in stride) and (padding == "same" or all(n == 0 for n in padding))


def is_depthwise(shape: Sequence[int], groups: int, transposed: bool) -> bool:
    """Return whether a convolution with a weight of this shape reads one channel for each channel that it computes."""
    return groups > 1 and shape[1] == 1 and (not transposed or shape[0] == groups)


def _shape_after(operation: Any, x: Value, weight: Value, options: Sequence[Any]) -> tuple[int, ...]:
    """Return the shape of a convolution's result."""
    shape = (weight.shape[0], weight.shape[1] // weight.diagonal, *weight.shape[2:])
    return tuple(operation(torch.empty(x.shape, device="meta"), torch.empty(shape, device="meta"), None, *options).shape)


def _channelwise(constraints: Constraints, x: Value, channel: int, ids: torch.Tensor) -> torch.Tensor:
    """Constrain one or more filters for each channel: one multiplies its channel, several form a block."""
    units = x.label_map(channel)
    constraints.freeze([m for m in x.maps_along([channel]) if m is not units], "channels that vary along several dimensions")
    if units is None:
        constraints.fix(LabelMap(constraints.enclose(ids.view(x.shape[channel], -1), "blocks")))
        return ids
    channel_ids = units.vector(channel)
    if len(ids) > len(channel_ids):
        constraints.rigid(LabelMap(channel_ids))
        constraints.contains(channel_ids[:, None], ids.view(len(channel_ids), -1))
        return ids
    product_ids = constraints.fresh(len(ids))
    constraints.unite(ids, channel_ids)
    constraints.unite(ids, product_ids)
    constraints.relate((1, -1, -1), product_ids, channel_ids, ids)
    return product_ids


def _in_groups(constraints: Constraints, inputs: LabelMap | None, axis: int, outputs: torch.Tensor, groups: int) -> None:
    """Declare the channels that each group reads and computes to be blocks that move together."""
    assert inputs is not None
    blocks = constraints.enclose(inputs.vector(axis).view(groups, -1), "blocks")
    constraints.contains(blocks[:, None], outputs.view(groups, -1))


def _out_of_space(constraints: Constraints, x: Value, space: int) -> Value:
    """Return a value whose units lie in no spatial dimension.

    Units laid out in space and channels (after a pixel shuffle) become one per channel; units in space alone stay in place.
    Positions of a weight (a table of biases) are not units.
    """
    spatial_dims = range(len(x.shape) - space, len(x.shape))
    label_maps = []
    for label_map in x.label_maps:
        if not set(label_map.dims) & set(spatial_dims):
            label_maps.append(label_map)
        elif not set(label_map.dims) <= set(spatial_dims):
            label_maps.append(constraints.unite_along(label_map, [d for d in label_map.dims if d in spatial_dims]))
        elif x.is_weight:
            constraints.fix(label_map)
        else:
            constraints.freeze([label_map], "an operation on space in which units are laid out")
    return replace(x, label_maps=tuple(label_maps))


def _stretch(ids: torch.Tensor, shape: Sequence[int], first: int) -> torch.Tensor:
    """Expand labels that do not vary from dimension `first` on to a new shape."""
    for dim in range(first, ids.dim()):
        ids = ids.narrow(dim, 0, 1)
    return ids.expand(tuple(shape))


for _name in operation_names("convolves"):
    register_rule(f"aten::{_name}")(_convolution(TABLE[_name].space, TABLE[_name].transposed))


def _spatial(name: str) -> None:
    operation, space, maxima = getattr(torch.ops.aten, name), TABLE[name].space, TABLE[name].maxima

    def apply(constraints: Constraints, x: Value, *options: Any, **keywords: Any) -> Value | tuple[Value, Value]:
        """Apply the same function to every channel; where it takes maxima, channels cannot change sign."""
        first = len(x.shape) - space
        x = _out_of_space(constraints, x, space)
        out = operation(torch.empty(x.shape, device="meta"), *options, **keywords)
        shape = tuple((out[0] if isinstance(out, tuple) else out).shape)
        label_maps = [
            LabelMap(_stretch(label_map.ids, shape, first), label_map.dims)
            for label_map in x.label_maps
            if max(label_map.dims, default=0) < first
        ]
        value = Value(shape, tuple(label_maps), is_weight=x.is_weight)
        if maxima:
            constraints.no_sign(*label_maps)
        if isinstance(out, tuple):  # values and indices; the indices do not scale
            constraints.rigid(*label_maps)
            return value, value
        return value

    register_rule(f"aten::{name}")(apply)


for _name in operation_names("windows"):
    if hasattr(torch.ops.aten, _name):
        _spatial(_name)


@register_rule("aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d")
def grid_sampler(constraints: Constraints, x: Value, grid: Value, *_: Any) -> Value:
    """Interpolate at the positions in a grid, which all channels share."""
    constraints.fix(*grid.label_maps)
    x, shape = _out_of_space(constraints, x, len(x.shape) - 2), (*x.shape[:2], *grid.shape[1:-1])
    label_maps = [LabelMap(_stretch(m.ids, shape, 2), m.dims) for m in x.label_maps if max(m.dims, default=0) < 2]
    return Value(shape, tuple(label_maps))


def _unpooling(space: int) -> None:
    def apply(constraints: Constraints, x: Value, index: Value, size: Sequence[int], *_: Any) -> Value:
        """Write values back to their positions before a pooling, for each channel by its own indices."""
        constraints.rigid(*index.label_maps)
        operands = [_out_of_space(constraints, x, space), _out_of_space(constraints, index, space)]
        unpooled = combine(constraints, "max_unpool", operands, "product")
        first = len(x.shape) - space
        shape = (*x.shape[:first], *size)
        return Value(shape, tuple(LabelMap(_stretch(m.ids, shape, first), m.dims) for m in unpooled.label_maps))

    register_rule(f"aten::max_unpool{space}d")(apply)


for _space in (2, 3):
    _unpooling(_space)


@register_rule("aten::im2col")
def im2col(constraints: Constraints, x: Value, kernel: Sequence[int], *options: Any) -> Value:
    """Extract patches: each channel occurs once for every position of the kernel."""
    x, copies = _out_of_space(constraints, x, 2), int(kernel[0]) * int(kernel[1])
    shape = tuple(torch.ops.aten.im2col(torch.empty(x.shape, device="meta"), kernel, *options).shape)
    return x.map(lambda ids: ids.flatten(-2)[..., :1].repeat_interleave(copies, -2).expand(shape))


@register_rule("aten::col2im")
def col2im(constraints: Constraints, x: Value, size: Sequence[int], kernel: Sequence[int], *options: Any) -> Value:
    """Sum patches into an image: the positions of a kernel are one channel."""
    shape = tuple(torch.ops.aten.col2im(torch.empty(x.shape, device="meta"), size, kernel, *options).shape)
    x = x.map(lambda ids: ids.unflatten(-2, (-1, int(kernel[0]) * int(kernel[1]))))
    return _out_of_space(constraints, x, 2).map(lambda ids: ids[..., :1, :1].expand(shape))
