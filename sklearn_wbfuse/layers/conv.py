"""Convolutions and what works on space alone: pooling, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .labels import Layer, Record, Value
from .linear import add_bias, opaque, read
from .registry import register_rule, register_sizes

for _module in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_sizes(_module, out_channels=("weight", 0), in_channels=("weight", 1))


def _convolution(space: int) -> Callable[..., Value]:
    operation = (torch.conv1d, torch.conv2d, torch.conv3d)[space - 1]

    def convolve(record: Record, x: Value, weight: Value, bias: Value | None = None, *options: Any) -> Value:
        """Channels are units; space and kernel positions are not."""
        groups = options[3] if len(options) > 3 else 1
        if not weight.is_weight or groups != 1:
            return opaque(record, "a convolution in groups" if weight.is_weight else "computed weights", x, weight, bias)
        channel = len(x.shape) - space - 1
        _fix_space(record, x, space)
        record.fix(*(weight.layer(d) for d in range(2, 2 + space)))
        kept = read(record, x, channel, weight, 1)
        empty = [torch.empty(v.shape, device="meta") for v in (x, weight)]
        shape = tuple(operation(empty[0], empty[1], None, *options).shape)
        layers = [
            Layer(_stretch(layer.ids, shape, channel), layer.dims) for layer in kept if max(layer.dims, default=0) < channel
        ]
        axis = weight.layer(0)
        if axis is not None:
            ids = axis.vector(0)
            record.computes(ids)
            layers.append(Layer.along(ids, channel, shape))
        out = Value(shape, tuple(layers))
        return add_bias(record, out, bias, channel)

    return convolve


def _fix_space(record: Record, x: Value, space: int) -> None:
    """Units laid out in space stay in place."""
    record.freeze(x.touching(range(len(x.shape) - space, len(x.shape))), "an operation on space in which units are laid out")


def _stretch(ids: torch.Tensor, shape: Sequence[int], first: int) -> torch.Tensor:
    """Labels that do not vary from dimension `first` on, in a new shape."""
    for dim in range(first, ids.dim()):
        ids = ids.narrow(dim, 0, 1)
    return ids.expand(tuple(shape))


for _space in (1, 2, 3):
    register_rule(f"aten::conv{_space}d")(_convolution(_space))


def _spatial(name: str, space: int) -> None:
    operation = getattr(torch.ops.aten, name)

    def apply(record: Record, x: Value, *options: Any, **named: Any) -> Value | tuple[Value, Value]:
        first = len(x.shape) - space
        _fix_space(record, x, space)
        out = operation(torch.empty(x.shape, device="meta"), *options, **named)
        shape = tuple((out[0] if isinstance(out, tuple) else out).shape)
        layers = [
            Layer(_stretch(layer.ids, shape, first), layer.dims) for layer in x.layers if max(layer.dims, default=0) < first
        ]
        value = Value(shape, tuple(layers))
        if "max" in name:
            record.no_sign(*layers)
        if isinstance(out, tuple):  # values and indices; the indices do not scale
            record.rigid(*layers)
            return value, value
        return value

    register_rule(f"aten::{name}")(apply)


for _space in (1, 2, 3):
    for _name in (
        "max_pool{}d",
        "avg_pool{}d",
        "adaptive_avg_pool{}d",
        "_adaptive_avg_pool{}d",
        "adaptive_max_pool{}d",
        "max_pool{}d_with_indices",
    ):
        if hasattr(torch.ops.aten, _name.format(_space)):
            _spatial(_name.format(_space), _space)
for _name in ("upsample_nearest{}d", "reflection_pad{}d", "replication_pad{}d"):
    for _space in (1, 2, 3):
        if hasattr(torch.ops.aten, _name.format(_space)):
            _spatial(_name.format(_space), _space)
_spatial("upsample_bilinear2d", 2)
_spatial("upsample_linear1d", 1)
_spatial("upsample_trilinear3d", 3)
