"""Layers as affine maps of rows: what a correction may change.

At every position of its output a layer computes ``y = W x + b`` of a row x: the features of a linear layer, the patch under a
kernel, a normalised channel. In groups, every group of outputs has rows of its own. A batch norm behind the layer is part of the
map, so that corrections speak of what comes after it.
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
from .runner import Runner

__all__ = ["AffineLayer", "ConvLayer", "LinearLayer", "NormLayer", "affine_layer_of", "rows_at"]


def rows_at(y: Tensor, channel: int, chosen: Tensor) -> Tensor:
    """Activations at positions among samples and space or time, shape (positions, channels)."""
    channel %= y.dim()
    whole = y.reshape(math.prod(y.shape[:channel]), y.shape[channel], -1)  # no copy of what no position asks for
    inner = whole.shape[2]
    return whole[chosen // inner, :, chosen % inner]


@dataclass(eq=False)
class AffineLayer:
    """An operation that computes neurons as an affine map of what it reads.

    Attributes
    ----------
    node : Node
    weight : str
    bias : str or None
    norm : Node or None
        A batch norm that nothing else comes before.
    norm_names : dict of str to str
        Its tensors, by "weight", "bias", "mean" and "var".
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
        """The tensor and its axis along which the neurons computed are labelled."""
        name = self.norm_names.get("weight", self.norm_names.get("mean"))
        return (self.weight, self.out_axis) if name is None else (name, 0)

    @property
    def channel(self) -> int:
        """The dimension of the output that holds neurons."""
        return facts_of(self.node).channel

    def read(self, runner: Runner, batch: int) -> Tensor:
        """What the operation reads on a batch."""
        return runner.read(self.node.args[0], batch)

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """What some positions of the output are computed from, shape (groups, positions, inputs)."""
        raise NotImplementedError

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as matrices of shape (groups, outputs, inputs)."""
        raise NotImplementedError

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Back from `matrix` to the shape of the weight."""
        raise NotImplementedError

    @property
    def has_offset(self) -> bool:
        """Whether an offset of its own can be written back."""
        return self.bias is not None or self.norm is not None

    @property
    def eps(self) -> float:
        """Of the batch norm."""
        return float(self.end.args[7])  # type: ignore[arg-type]

    def _gain(self, state: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """What the norm multiplies the output by, and what it adds."""
        names = self.norm_names
        if self.norm is None:
            return 1.0, 0.0
        gain = (state[names["var"]] + self.eps).rsqrt()
        if "weight" in names:
            gain = gain * state[names["weight"]]
        shift = -state[names["mean"]] * gain
        return gain, shift + state[names["bias"]] if "bias" in names else shift

    def affine(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Matrices of shape (groups, outputs, inputs) and offsets of shape (groups, outputs), the norm included."""
        matrix = self.matrix(state[self.weight])
        gain, offset = self._gain(state)
        if self.bias is not None:
            offset = offset + state[self.bias] * gain
        if isinstance(gain, Tensor):
            matrix = matrix * gain.view(len(matrix), -1, 1)
        offset = torch.zeros(matrix.shape[:2]).to(matrix) + (offset.view(len(matrix), -1) if isinstance(offset, Tensor) else 0)
        return matrix, offset

    def write(self, state: dict[str, Tensor], matrix: Tensor, offset: Tensor, *moments: Tensor) -> None:
        """Put a changed map into the tensors.

        Parameters
        ----------
        state : dict of str to Tensor
            Changed; its tensors are not.
        matrix, offset : Tensor
            As from `affine`; the offset counts only if `has_offset`.
        moments : two Tensors of shape (groups, outputs)
            Mean and variance of ``matrix @ x`` over the rows; only a norm needs them.
        """
        names = self.norm_names
        if self.norm is None:
            state[self.weight] = self.tensor(matrix, state[self.weight])
            if self.bias is not None:
                state[self.bias] = offset.flatten()
            return
        bias = state[self.bias] if self.bias is not None else 0.0
        mean, var = (m.flatten() for m in moments)
        var, offset = var.clamp_min(0.0), offset.flatten()  # rounding may make one negative
        if "weight" in names:  # the norm sees the layer's own statistics, its weight undoes their deviation
            gain = self._gain(state)[0].abs()
            gain = torch.maximum(gain, 1e-3 * gain.mean())
            scale = torch.where(gain > 0, gain, 1.0).reciprocal()  # weights keep the size that they had
            state[names["var"]] = var * scale.square()
            state[names["weight"]] = (state[names["var"]] + self.eps).sqrt() / scale
        else:
            scale = (state[names["var"]] + self.eps).sqrt()
        state[self.weight] = self.tensor(matrix * scale.view(len(matrix), -1, 1), state[self.weight])
        if "bias" in names:
            state[names["mean"]], state[names["bias"]] = mean * scale + bias, offset + mean
        else:  # the mean bears the offset
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
    """``aten::conv1d`` to ``conv3d``, in groups or transposed, which is one of its input with zeros between."""

    @property
    def transposed(self) -> bool:
        """Whether inputs are spread rather than outputs."""
        return facts_of(self.node).transposed

    @property
    def space(self) -> int:
        """Number of dimensions of space."""
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
        """See `AffineLayer`. A depthwise weight may undo the scales of its inputs; what is added to the outputs has theirs."""
        found = super().labelled
        return (self.bias, 0) if found[0] == self.weight and self.bias is not None and self._is_depthwise else found

    def _options(self, kernel: Sequence[int]) -> tuple[list[int], list[tuple[int, int]], list[int], int, list[int]]:
        """Stride, padding at both ends, dilation, groups, and zeros to put between the inputs."""
        space, names = self.space, ["input", "weight", "bias", "stride", "padding"]
        names += ["output_padding", "groups", "dilation"] if self.transposed else ["dilation", "groups"]
        given: dict[str, Any] = {**dict(zip(names, self.node.args, strict=False)), **self.node.kwargs}

        def each(name: str, default: int) -> list[int]:
            value = given.get(name, default)
            value = list(value) if isinstance(value, (list, tuple)) else [value]
            return [int(v) for v in (value * space if len(value) == 1 else value)]

        stride, dilation, groups = each("stride", 1), each("dilation", 1), int(given.get("groups", 1))
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if given.get("padding") == "same":
            ends = [(r // 2, r - r // 2) for r in reach]
        else:
            ends = [(p, p) for p in (each("padding", 0) if given.get("padding") != "valid" else [0] * space)]
        if not self.transposed:
            return stride, ends, dilation, groups, [1] * space
        extra = each("output_padding", 0)
        ends = [(r - p, r - p + e) for r, (p, _), e in zip(reach, ends, extra, strict=True)]
        return [1] * space, ends, dilation, groups, stride

    def rows(self, x: Tensor, chosen: Tensor) -> Tensor:
        """See `AffineLayer`."""
        space, kernel = self.space, self.node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
        stride, ends, dilation, groups, spread = self._options(kernel)
        x = x.reshape(-1, x.shape[-space - 1], *x.shape[-space:])
        whole = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], spread, strict=True)]  # with the zeros that lie between
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        out = [(n + a + b - r - 1) // s + 1 for n, (a, b), r, s in zip(whole, ends, reach, stride, strict=True)]
        rest, corner = chosen, list[Tensor]()
        for n in reversed(out):
            corner.insert(0, rest % n)
            rest = rest // n
        index, inside = torch.zeros_like(chosen)[:, None], torch.ones_like(chosen, dtype=torch.bool)[:, None]
        for k, c in enumerate(corner):  # of every tap, first dimension slowest
            tap = torch.arange(kernel[k], device=chosen.device) * dilation[k]
            at = (c * stride[k] - ends[k][0])[:, None] + tap
            within = (at >= 0) & (at < whole[k]) & (at % spread[k] == 0)
            at = (at // spread[k]).clamp(0, x.shape[2 + k] - 1)
            index = (index[:, :, None] * x.shape[2 + k] + at[:, None]).flatten(1)
            inside = (inside[:, :, None] & within[:, None]).flatten(1)
        taps = x.flatten(2)[rest[:, None], :, index]  # positions, taps, channels
        if not inside.all():
            taps = taps.masked_fill_(~inside[..., None], 0.0)
        return taps.unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `AffineLayer`."""
        _, _, _, groups, _ = self._options(weight.shape[2:])
        if self.transposed:  # (in, out / groups, *kernel) of each group, seen from the output
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flip(list(range(3, weight.dim() + 1)))
        else:
            weight = weight.unflatten(0, (groups, -1))
        return weight.movedim(2, -1).flatten(2)  # groups, outputs, taps x channels

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `AffineLayer`."""
        kernel = like.shape[2:]
        each = matrix.shape[2] // math.prod(kernel)
        weight = matrix.reshape(*matrix.shape[:2], *kernel, each).movedim(-1, 2)
        if self.transposed:
            weight = weight.flip(list(range(3, weight.dim()))).transpose(1, 2)
        return weight.flatten(0, 1).contiguous()


class NormLayer(AffineLayer):
    """The weight and bias behind a normalisation: one number per channel."""

    def read(self, runner: Runner, batch: int) -> Tensor:
        """What is normalised, without weight and bias."""
        arguments, facts = list(self.node.args), facts_of(self.node)
        for at in (facts.weight, facts.bias):
            if at is not None and at < len(arguments):
                arguments[at] = None
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
    """The map that a node computes with parameters of its own, if it is one."""
    facts = facts_of(node)
    if facts.weight is None:
        return None
    build: type[AffineLayer] = {"normalises": NormLayer, "convolves": ConvLayer, "contracts": LinearLayer}[facts.kind]
    given = [node.args[k] if k is not None and k < len(node.args) else None for k in (facts.weight, facts.bias)]
    if given[0] not in parameters or (given[1] is not None and given[1] not in parameters):
        return None
    weight, bias = (None if g is None else parameters[g] for g in given)  # type: ignore[index]
    if (build is NormLayer) != (given[0].meta["val"].dim() == 1):  # type: ignore[union-attr]
        return None
    return build(node, str(weight), bias)
