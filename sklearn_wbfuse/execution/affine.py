"""Layers as affine maps of rows, which corrections read and write.

At every position of its output a layer computes ``y = W x + b`` of a row x: the features of a linear layer, the patch under a
kernel, a normalised channel. A layer in groups has different rows for every group of outputs. A batch norm after the layer is
part of the map, so that corrections deal with its output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..layers.conv import is_depthwise
from ..layers.operations import facts_of
from ..network.types import State
from .runner import Runner

__all__ = ["AffineLayer", "ConvLayer", "LinearLayer", "NormLayer", "affine_layer_of", "rows_at"]


def rows_at(y: Tensor, channel: int, chosen: Tensor) -> Tensor:
    """Return activations at positions among samples and space or time, of shape (positions, channels)."""
    channel %= y.dim()
    whole = y.reshape(math.prod(y.shape[:channel]), y.shape[channel], -1)  # a view: only the positions are copied
    inner = whole.shape[2]
    return whole[chosen // inner, :, chosen % inner]


@dataclass(eq=False)
class AffineLayer:
    """An operation that computes neurons as an affine map of its input: abstract.

    Attributes
    ----------
    node : Node
    weight : str
    bias : str or None
    norm : Node or None
        A batch norm that directly follows.
    norm_names : dict of str to str
        The tensors of the norm, by "weight", "bias", "mean" and "var".
    """

    node: Node
    weight: str
    bias: str | None
    norm: Node | None = None
    norm_names: dict[str, str] = field(default_factory=dict)

    out_axis = 0

    @property
    def end(self) -> Node:
        """The layer's output, after the norm."""
        return self.node if self.norm is None else self.norm

    @property
    def labelled(self) -> tuple[str, int]:
        """The tensor and the axis that label the neurons of the output."""
        name = self.norm_names.get("weight", self.norm_names.get("mean"))
        return (self.weight, self.out_axis) if name is None else (name, 0)

    @property
    def channel(self) -> int:
        """The dimension of the output that holds neurons."""
        return facts_of(self.node).channel

    def read(self, runner: Runner, batch: int) -> Tensor:
        """Return the input of the operation on a batch."""
        return runner.read(self.node.args[0], batch)

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Return the inputs of some positions of the output, of shape (groups, positions, inputs)."""
        raise NotImplementedError

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as matrices of shape (groups, outputs, inputs)."""
        raise NotImplementedError

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Return matrices in the shape of the weight, the inverse of `matrix`."""
        raise NotImplementedError

    @property
    def has_offset(self) -> bool:
        """Whether the layer or its norm can hold an offset."""
        return self.bias is not None or self.norm is not None

    @property
    def eps(self) -> float:
        """The epsilon of the batch norm."""
        return float(self.end.args[7])  # type: ignore[arg-type]

    def _gain(self, state: State) -> tuple[Any, Any]:
        """Return the factor and the summand that the norm applies to the output."""
        names = self.norm_names
        if self.norm is None:
            return 1.0, 0.0
        gain = (state[names["var"]] + self.eps).rsqrt()
        if "weight" in names:
            gain = gain * state[names["weight"]]
        shift = -state[names["mean"]] * gain
        return gain, shift + state[names["bias"]] if "bias" in names else shift

    def affine(self, state: State) -> tuple[Tensor, Tensor]:
        """Return matrices of shape (groups, outputs, inputs) and offsets of shape (groups, outputs), the norm included."""
        matrix = self.matrix(state[self.weight])
        gain, offset = self._gain(state)
        if self.bias is not None:
            offset = offset + state[self.bias] * gain
        if isinstance(gain, Tensor):
            matrix = matrix * gain.view(len(matrix), -1, 1)
        offset = torch.zeros(matrix.shape[:2]).to(matrix) + (offset.view(len(matrix), -1) if isinstance(offset, Tensor) else 0)
        return matrix, offset

    def write(self, state: dict[str, Tensor], matrix: Tensor, offset: Tensor, *moments: Tensor) -> None:
        """Write a changed map into the state.

        Parameters
        ----------
        state : dict of str to Tensor
            Modified; its tensors are not modified but replaced.
        matrix, offset : Tensor
            As returned by `affine`; without `has_offset` the offset is ignored.
        moments : two Tensors of shape (groups, outputs)
            Mean and variance of ``matrix @ x`` over the rows; only needed with a norm.
        """
        names = self.norm_names
        if self.norm is None:
            state[self.weight] = self.tensor(matrix, state[self.weight])
            if self.bias is not None:
                state[self.bias] = offset.flatten()
            return
        bias = state[self.bias] if self.bias is not None else 0.0
        mean, var = (m.flatten() for m in moments)
        var, offset = var.clamp_min(0.0), offset.flatten()  # rounding can make a variance negative
        if "weight" in names:  # the norm takes the layer's new statistics, and its weight cancels the new standard deviation
            gain = self._gain(state)[0].abs()
            gain = torch.maximum(gain, 1e-3 * gain.mean())
            scale = torch.where(gain > 0, gain, 1.0).reciprocal()  # the layer's weights keep their size
            state[names["var"]] = var * scale.square()
            state[names["weight"]] = (state[names["var"]] + self.eps).sqrt() / scale
        else:
            scale = (state[names["var"]] + self.eps).sqrt()
        state[self.weight] = self.tensor(matrix * scale.view(len(matrix), -1, 1), state[self.weight])
        if "bias" in names:
            state[names["mean"]], state[names["bias"]] = mean * scale + bias, offset + mean
        else:  # the mean holds the offset
            state[names["mean"]] = bias - offset * scale


class LinearLayer(AffineLayer):
    """``aten::linear``."""

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """See `AffineLayer`."""
        return x.reshape(-1, x.shape[-1])[chosen][None]

    def matrix(self, weight: Tensor) -> Tensor:
        """See `AffineLayer`."""
        return weight[None]

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `AffineLayer`."""
        return matrix[0].contiguous()


class ConvLayer(AffineLayer):
    """``aten::conv1d`` to ``conv3d``, also in groups; transposed ones are convolutions of their input with zeros inserted."""

    @property
    def transposed(self) -> bool:
        """Whether the convolution is transposed."""
        return facts_of(self.node).transposed

    @property
    def space(self) -> int:
        """The number of spatial dimensions."""
        return facts_of(self.node).space

    @property
    def out_axis(self) -> int:  # type: ignore[override]
        """See `AffineLayer`."""
        return int(self.transposed and not self._is_depthwise)

    @property
    def _is_depthwise(self) -> bool:
        shape = self.node.args[1].meta["val"].shape  # type: ignore[union-attr]
        return is_depthwise(shape, self._options(shape[2:])[3], self.transposed)

    @property
    def labelled(self) -> tuple[str, int]:
        """See `AffineLayer`. The scales of a depthwise weight also depend on its inputs; those of its bias do not."""
        labelled = super().labelled
        return (self.bias, 0) if labelled[0] == self.weight and self.bias is not None and self._is_depthwise else labelled

    def _options(self, kernel: Sequence[int]) -> tuple[list[int], list[tuple[int, int]], list[int], int, list[int]]:
        """Return stride, padding at both ends, dilation, groups, and the stride of the inputs among inserted zeros."""
        space, names = self.space, ["input", "weight", "bias", "stride", "padding"]
        names += ["output_padding", "groups", "dilation"] if self.transposed else ["dilation", "groups"]
        options: dict[str, Any] = {**dict(zip(names, self.node.args, strict=False)), **self.node.kwargs}

        def per_dimension(name: str, default: int) -> list[int]:
            value = options.get(name, default)
            value = list(value) if isinstance(value, (list, tuple)) else [value]
            return [int(v) for v in (value * space if len(value) == 1 else value)]

        stride, dilation = per_dimension("stride", 1), per_dimension("dilation", 1)
        groups = int(options.get("groups", 1))
        extent = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if options.get("padding") == "same":
            padding = [(e // 2, e - e // 2) for e in extent]
        else:
            padding = [(p, p) for p in (per_dimension("padding", 0) if options.get("padding") != "valid" else [0] * space)]
        if not self.transposed:
            return stride, padding, dilation, groups, [1] * space
        extra = per_dimension("output_padding", 0)
        padding = [(e - p, e - p + o) for e, (p, _), o in zip(extent, padding, extra, strict=True)]
        return [1] * space, padding, dilation, groups, stride

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """See `AffineLayer`."""
        space, kernel = self.space, self.node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
        stride, padding, dilation, groups, in_stride = self._options(kernel)
        x = x.reshape(-1, x.shape[-space - 1], *x.shape[-space:])
        in_size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], in_stride, strict=True)]  # inserted zeros included
        extent = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        out_size = [(n + a + b - e - 1) // s + 1 for n, (a, b), e, s in zip(in_size, padding, extent, stride, strict=True)]
        samples, corners = chosen, list[Tensor]()
        for n in reversed(out_size):
            corners.insert(0, samples % n)
            samples = samples // n
        index, is_inside = torch.zeros_like(chosen)[:, None], torch.ones_like(chosen, dtype=torch.bool)[:, None]
        for k, corner in enumerate(corners):  # taps in order, the first dimension slowest
            tap = torch.arange(kernel[k], device=chosen.device) * dilation[k]
            position = (corner * stride[k] - padding[k][0])[:, None] + tap
            is_input = (position >= 0) & (position < in_size[k]) & (position % in_stride[k] == 0)
            position = (position // in_stride[k]).clamp(0, x.shape[2 + k] - 1)
            index = (index[:, :, None] * x.shape[2 + k] + position[:, None]).flatten(1)
            is_inside = (is_inside[:, :, None] & is_input[:, None]).flatten(1)
        taps = x.flatten(2)[samples[:, None], :, index]  # positions, taps, channels
        if not is_inside.all():
            taps = taps.masked_fill_(~is_inside[..., None], 0.0)
        return taps.unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `AffineLayer`."""
        _, _, _, groups, _ = self._options(weight.shape[2:])
        if self.transposed:  # from (in, out / groups, *kernel) of each group to outputs first
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flip(list(range(3, weight.dim() + 1)))
        else:
            weight = weight.unflatten(0, (groups, -1))
        return weight.movedim(2, -1).flatten(2)  # groups, outputs, taps x channels

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `AffineLayer`."""
        kernel = like.shape[2:]
        n_channels = matrix.shape[2] // math.prod(kernel)
        weight = matrix.reshape(*matrix.shape[:2], *kernel, n_channels).movedim(-1, 2)
        if self.transposed:
            weight = weight.flip(list(range(3, weight.dim()))).transpose(1, 2)
        return weight.flatten(0, 1).contiguous()


class NormLayer(AffineLayer):
    """The weight and bias of a normalisation, one number per channel."""

    def read(self, runner: Runner, batch: int) -> Tensor:
        """Return the normalised values, before weight and bias."""
        arguments, facts = list(self.node.args), facts_of(self.node)
        for position in (facts.weight, facts.bias):
            if position is not None and position < len(arguments):
                arguments[position] = None
        return runner.compute(self.node, batch, tuple(arguments))

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """See `AffineLayer`."""
        return rows_at(x, self.channel, chosen).T[..., None]

    def matrix(self, weight: Tensor) -> Tensor:
        """See `AffineLayer`."""
        return weight[:, None, None]

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `AffineLayer`."""
        return matrix.flatten()


def affine_layer_of(node: Node, parameters: Mapping[Node, str]) -> AffineLayer | None:
    """Return the affine map of a node if it is one and has parameters of its own."""
    facts = facts_of(node)
    if facts.weight is None:
        return None
    build: type[AffineLayer] = {"normalises": NormLayer, "convolves": ConvLayer, "contracts": LinearLayer}[facts.kind]
    arguments = [node.args[k] if k is not None and k < len(node.args) else None for k in (facts.weight, facts.bias)]
    if arguments[0] not in parameters or (arguments[1] is not None and arguments[1] not in parameters):
        return None
    weight, bias = (None if argument is None else parameters[argument] for argument in arguments)  # type: ignore[index]
    if (build is NormLayer) != (arguments[0].meta["val"].dim() == 1):  # type: ignore[union-attr]
        return None
    return build(node, str(weight), bias)
