"""Neuron groups, and tensors whose axes are labelled with them.

A *neuron group* is a set of neurons that can only be moved together. Every axis of every parameter is cut into *spans*:
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

__all__ = ["Block", "Group", "LabelledTensor", "Span", "put", "relabel", "take"]


@dataclass(frozen=True)
class Group:
    """A set of `size` neurons that move together.

    Attributes
    ----------
    name : str
        Path of the first parameter that computes the group, without the parameter's own name.
    size : int
        Number of neurons, :math:`n_g`.
    scalable : bool
        Whether multiplying a neuron by c > 0 and dividing its readers by c leaves the network's function unchanged.
    signable : bool
        Whether flipping the sign of a neuron and of its readers does.
    within : str or None
        The group of blocks that these neurons lie in (attention heads, the groups of a convolution or of a group norm): block
        b holds the neurons b d to (b + 1) d - 1 with d = size / (number of blocks). Blocks move as a whole, and neurons only
        within theirs. A group of blocks need not stand on any axis.
    """

    name: str
    size: int
    scalable: bool = False
    signable: bool = False
    block_group: str | None = None


@dataclass(frozen=True, eq=False)
class Span:
    """The positions of one group on one axis of one tensor that scale and change sign alike.

    A group has several spans on an axis where some of its positions go with a unit's sign and others do not: of the gates
    of an LSTM only the cell gate does.

    Attributes
    ----------
    group : str
    index : ndarray of shape (size, copies)
        Row u holds the positions that belong to unit u; a flattened convolution has one copy per pixel.
    role : {"out", "in"}
        "out" where the tensor computes these neurons, "in" where it reads them.
    exponent : float
        Multiplying unit u by c multiplies this axis at u by c to this power; 0 where the group is not scalable.
    odd : bool
        Whether flipping the sign of unit u flips this axis at u.
    """

    group: str
    index: np.ndarray
    role: str
    exponent: float = 0.0
    odd: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """A sub-tensor in which each axis belongs to one group or to none.

    Attributes
    ----------
    spans : tuple of Span or None, one per axis
    fixed : tuple of ndarray or None, one per axis
        Positions taken on an axis without a group.
    """

    spans: tuple[Span | None, ...]
    fixed: tuple[np.ndarray | None, ...]

    @property
    def axes(self) -> tuple[Span, ...]:
        """The spans of the axes that belong to groups, in order."""
        return tuple(s for s in self.spans if s is not None)


@dataclass(frozen=True, eq=False)
class LabelledTensor:
    """A parameter or float buffer whose axes are cut into spans.

    Attributes
    ----------
    name : str
        Name in the state dict.
    shape : tuple of int
    spans : tuple of tuple of Span, one per axis
        Several groups on one axis stand side by side (a concatenation).
    recurrent : bool
        Whether the energy weighs this tensor with `alpha_h`.
    diagonal : int
        A convolution in groups holds the diagonal blocks of a tensor, so many of them; `shape` and `spans` are those of the
        whole tensor, see `unfold`.
    """

    name: str
    shape: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]
    recurrent: bool = False
    diagonal: int = 1

    def unfold(self, tensor: Tensor) -> Tensor:
        """The whole tensor of which a parameter holds the diagonal blocks of the first two axes: zeros elsewhere."""
        if self.diagonal == 1:
            return tensor
        blocks = tensor.unflatten(0, (self.diagonal, -1))
        whole = blocks.new_zeros(*blocks.shape[:2], self.diagonal, *blocks.shape[2:])
        each = torch.arange(self.diagonal, device=tensor.device)
        whole[each, :, each] = blocks
        return whole.flatten(2, 3).flatten(0, 1)

    def fold(self, tensor: Tensor) -> Tensor:
        """The diagonal blocks of a whole tensor, as the parameter holds them."""
        if self.diagonal == 1:
            return tensor
        whole = tensor.unflatten(1, (self.diagonal, -1)).unflatten(0, (self.diagonal, -1))
        each = torch.arange(self.diagonal, device=tensor.device)
        return whole[each, :, each].flatten(0, 1)

    def rest(self, axis: int) -> np.ndarray:
        """Fixed positions of an axis."""
        free = np.ones(self.shape[axis], dtype=bool)
        for span in self.spans[axis]:
            free[span.index.ravel()] = False
        return np.flatnonzero(free)

    def blocks(self) -> Iterator[Block]:
        """Cut the tensor into blocks that tile it."""
        choices: list[list[Span | np.ndarray]] = []
        for axis in range(len(self.shape)):
            rest = self.rest(axis)
            choices.append([*self.spans[axis], *([rest] if len(rest) else [])])
        for choice in itertools.product(*choices):
            yield Block(
                tuple(c if isinstance(c, Span) else None for c in choice),
                tuple(None if isinstance(c, Span) else c for c in choice),
            )


def relabel(tensor: Tensor, labels: LabelledTensor, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> Tensor:
    """Move the units of one tensor and multiply them: unit u becomes unit ``order[group][u]`` times ``factor[group][u]``.

    Groups that are not named stay as they are. `factor` is that of the result's units, its magnitude a scale.
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


def take(tensor: Tensor, block: Block) -> Tensor:
    """A block of a tensor as an array: one axis per group, then one for all that is fixed."""
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


def put(tensor: Tensor, block: Block, array: Tensor) -> None:
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
