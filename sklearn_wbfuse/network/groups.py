"""Neuron groups, and tensors whose axes are labelled with them.

A *neuron group* is a set of neurons that can only be permuted together. Every axis of every parameter is divided into *spans*,
the positions that belong to the units of one group, and fixed positions (network inputs and outputs, kernel offsets).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .couplings import along_axis

__all__ = ["Group", "LabelledTensor", "Span", "TensorBlock", "put", "relabel", "take"]


@dataclass(frozen=True)
class Group:
    """A set of neurons that can only be permuted together.

    Attributes
    ----------
    name : str
        The path of the module whose parameter first computes the group.
    size : int
        The number of neurons, :math:`n_g`.
    scalable : bool
        Whether multiplying a neuron by c > 0 and dividing the weights that read it by c preserves the network's function.
    signable : bool
        Whether changing the sign of a neuron and of the weights that read it preserves the network's function.
    block_group : str or None
        The group of the blocks of these neurons (attention heads, the groups of a convolution or of a group norm): block b holds
        the neurons b d to (b + 1) d - 1 with d = size / (number of blocks). Blocks are permuted as a whole, and neurons within
        their block. A group of blocks need not be on any axis.
    """

    name: str
    size: int
    scalable: bool = False
    signable: bool = False
    block_group: str | None = None


@dataclass(frozen=True, eq=False)
class Span:
    """The positions of one group on one axis of one tensor that have the same scale exponent and sign.

    A group has several spans on an axis if only some of its positions change sign with the unit: of the gates of an LSTM only
    the cell gate does.

    Attributes
    ----------
    group : str
    index : ndarray of shape (size, copies)
        Row u holds the positions of unit u; after flattening a convolution's outputs there is one copy per pixel.
    role : {"out", "in"}
        "out" if the tensor computes these neurons, "in" if it reads them.
    exponent : float
        Multiplying unit u by c multiplies this axis at u by c to this power; 0 if the group is not scalable.
    odd : bool
        Whether changing the sign of unit u changes the sign of this axis at u.
    """

    group: str
    index: np.ndarray
    role: str
    exponent: float = 0.0
    odd: bool = False


@dataclass(frozen=True, eq=False)
class TensorBlock:
    """A sub-tensor in which each axis belongs to one group or to none.

    Attributes
    ----------
    spans : tuple of Span or None, one per axis
    fixed : tuple of ndarray or None, one per axis
        The positions on an axis without a group.
    """

    spans: tuple[Span | None, ...]
    fixed: tuple[np.ndarray | None, ...]

    @property
    def axes(self) -> tuple[Span, ...]:
        """The spans of the axes that belong to groups, in order."""
        return tuple(s for s in self.spans if s is not None)


@dataclass(frozen=True, eq=False)
class LabelledTensor:
    """A parameter or floating-point buffer whose axes are divided into spans.

    Attributes
    ----------
    name : str
        Name in the state dict.
    shape : tuple of int
    spans : tuple of tuple of Span, one per axis
        An axis with several groups is their concatenation.
    recurrent : bool
        Whether `alpha_h` is the weight of this tensor in the energy.
    diagonal : int
        The number of diagonal blocks that the parameter of a convolution in groups holds; `shape` and `spans` describe the whole
        tensor, see `unfold`.
    """

    name: str
    shape: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]
    recurrent: bool = False
    diagonal: int = 1

    def unfold(self, tensor: Tensor) -> Tensor:
        """Return the whole tensor of which a parameter holds the diagonal blocks of the first two axes; other entries are 0."""
        if self.diagonal == 1:
            return tensor
        blocks = tensor.unflatten(0, (self.diagonal, -1))
        whole = blocks.new_zeros(*blocks.shape[:2], self.diagonal, *blocks.shape[2:])
        diagonal = torch.arange(self.diagonal, device=tensor.device)
        whole[diagonal, :, diagonal] = blocks
        return whole.flatten(2, 3).flatten(0, 1)

    def fold(self, tensor: Tensor) -> Tensor:
        """Return the diagonal blocks of a whole tensor, as the parameter holds them."""
        if self.diagonal == 1:
            return tensor
        whole = tensor.unflatten(1, (self.diagonal, -1)).unflatten(0, (self.diagonal, -1))
        diagonal = torch.arange(self.diagonal, device=tensor.device)
        return whole[diagonal, :, diagonal].flatten(0, 1)

    def rest(self, axis: int) -> np.ndarray:
        """Return the fixed positions of an axis."""
        is_fixed = np.ones(self.shape[axis], dtype=bool)
        for span in self.spans[axis]:
            is_fixed[span.index.ravel()] = False
        return np.flatnonzero(is_fixed)

    def blocks(self) -> Iterator[TensorBlock]:
        """Yield the blocks that tile the tensor."""
        choices: list[list[Span | np.ndarray]] = []
        for axis in range(len(self.shape)):
            rest = self.rest(axis)
            choices.append([*self.spans[axis], *([rest] if len(rest) else [])])
        for choice in itertools.product(*choices):
            yield TensorBlock(
                tuple(c if isinstance(c, Span) else None for c in choice),
                tuple(None if isinstance(c, Span) else c for c in choice),
            )


def relabel(tensor: Tensor, labels: LabelledTensor, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> Tensor:
    """Permute and multiply the units of one tensor: unit u becomes unit ``order[group][u]`` times ``factor[group][u]``.

    Groups without an order or factor are unchanged. The magnitude of a factor is a scale.
    """
    tensor = labels.unfold(tensor)
    for axis, spans in enumerate(labels.spans):
        for span in spans:
            if span.group in order:
                index = np.arange(labels.shape[axis])
                index[span.index] = span.index[order[span.group]]
                tensor = along_axis(tensor, axis, index=torch.as_tensor(index, device=tensor.device))
            if (span.exponent or span.odd) and span.group in factor:
                c = factor[span.group]
                vector = np.ones(labels.shape[axis])
                vector[span.index] = (np.abs(c) ** span.exponent * (np.sign(c) if span.odd else 1))[:, None]
                tensor = along_axis(tensor, axis, factor=torch.as_tensor(vector, dtype=tensor.dtype, device=tensor.device))
    return labels.fold(tensor)


def take(tensor: Tensor, block: TensorBlock) -> Tensor:
    """Return a block of a tensor as an array with one axis per group and a last axis for all fixed positions."""
    groups, rest = [], []
    for axis, (span, fixed) in enumerate(zip(block.spans, block.fixed, strict=True)):
        positions = span.index.ravel() if span is not None else fixed
        if positions is not None and not _everything(positions, tensor.shape[axis]):
            tensor = tensor.index_select(axis, torch.as_tensor(positions, device=tensor.device))
    shape: list[int] = []
    for span, size in zip(block.spans, tensor.shape, strict=True):
        if span is None:
            rest.append(len(shape))
            shape.append(size)
        else:
            groups.append(len(shape))
            rest.append(len(shape) + 1)
            shape += list(span.index.shape)
    moved = tensor.reshape(shape).permute(*groups, *rest)
    return moved.reshape(*moved.shape[: len(groups)], -1)


def put(tensor: Tensor, block: TensorBlock, array: Tensor) -> None:
    """Write an array from `take` back into its block, in place."""
    spans, rest = block.axes, []
    for span, fixed in zip(block.spans, block.fixed, strict=True):
        rest.append(span.index.shape[1] if span is not None else len(fixed if fixed is not None else ()))
    array = array.reshape(*array.shape[: len(spans)], *rest)
    order, position = [], 0
    for axis, span in enumerate(block.spans):
        if span is not None:
            order.append(position)
            position += 1
        order.append(len(spans) + axis)
    shape, index = [], []
    for span, fixed in zip(block.spans, block.fixed, strict=True):
        positions = span.index.ravel() if span is not None else fixed
        assert positions is not None
        shape.append(len(positions))
        index.append(torch.as_tensor(positions, device=tensor.device))
    value = array.permute(order).reshape(shape)
    tensor[tuple(torch.meshgrid(*index, indexing="ij"))] = value.to(tensor.dtype)


def _everything(positions: np.ndarray, size: int) -> bool:
    return len(positions) == size and bool((np.diff(positions) == 1).all())
