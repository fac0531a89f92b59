"""Unit labels: the integers that the discovery passes through a network's graph in place of numbers.

Every position of every parameter axis gets its own integer label. A `LabelMap` is a tensor of labels in the shape of a value,
expanded along the dimensions where it is constant; a `Value` has one label map for each independent way in which it depends
on units (an activation has one, along its channels; a weight has one per axis).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..network.couplings import along

__all__ = ["FIXED", "LabelMap", "Value"]

FIXED = 0
"""The label of everything that cannot move."""


class LabelMap:
    """Labels in the shape of a value, varying along `dims` only.

    Parameters
    ----------
    ids : Tensor
        The labels.
    dims : tuple of int, optional
        The dimensions along which they vary; computed from the labels by default.
    """

    def __init__(self, ids: Tensor, dims: tuple[int, ...] | None = None):
        self.ids = ids
        self.dims = _varying(ids) if dims is None else dims

    @classmethod
    def along(cls, ids: Tensor, dim: int, shape: Sequence[int]) -> LabelMap:
        """Return a label map with one label for each position of `dim`."""
        return cls(along(ids, dim, len(shape)).expand(tuple(shape)), (dim,) if len(ids) > 1 else ())

    @property
    def compact(self) -> Tensor:
        """The labels, with every constant dimension cut to size 1."""
        ids = self.ids
        for dim, size in enumerate(ids.shape):
            if size > 1 and dim not in self.dims:
                ids = ids.narrow(dim, 0, 1)
        return ids

    def vector(self, dim: int) -> Tensor:
        """Return the labels along `dim`, which must be the only varying dimension."""
        index = tuple(slice(None) if d == dim else 0 for d in range(self.ids.dim()))
        return self.ids[index]

    def rows(self, inner: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the labels along the dimensions `inner`, one row for each position of the other varying dimensions.

        Returns
        -------
        rows : Tensor of shape (n, m)
        row_index : Tensor
            The index of the row, in the shape of the labels with every constant dimension cut to size 1.
        """
        outer = [d for d in self.dims if d not in inner]
        ids = self.compact
        rows = ids.movedim(outer, list(range(len(outer)))).reshape(int(np.prod([ids.shape[d] for d in outer])), -1)
        row_index = torch.arange(len(rows)).view([ids.shape[d] if d in outer else 1 for d in range(ids.dim())])
        return rows, row_index

    def broadcast(self, shape: Sequence[int]) -> LabelMap:
        """Expand to a shape with more leading dimensions or larger singleton dimensions."""
        shift = len(shape) - self.ids.dim()
        return LabelMap(self.ids.expand(tuple(shape)), tuple(d + shift for d in self.dims))


def _varying(ids: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which labels vary."""
    dims = []
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and ids.stride(dim) != 0 and bool((ids != ids.narrow(dim, 0, 1)).any()):
            dims.append(dim)
    return tuple(dims)


@dataclass(frozen=True)
class Value:
    """An operand or result of an operation: its shape, the labels of its elements, and its value if it is constant.

    Attributes
    ----------
    shape : tuple of int
    label_maps : tuple of LabelMap
    constant : Tensor or None
        The value, if it depends on neither inputs nor parameters.
    is_weight : bool
        Whether it depends on parameters and not on inputs.
    name : str or None
        The parameter that this value is, if it is an unchanged parameter.
    shared : bool
        Whether several operations read that parameter.
    bias : str or None
        The parameter that was added last, if only one operation reads the sum (a norm that follows makes it redundant).
    uniform : tuple of int
        Dimensions that were expanded from size 1, along which the value cannot vary.
    pattern : Tensor or None
        Numbers in the shape of the value, equal for elements that are known to be equal (a mask that was expanded and reshaped).
    diagonal : int
        Number of diagonal blocks: the weight of a grouped convolution represents the whole tensor whose diagonal blocks it holds.
    dtype : torch.dtype or None
        None if unknown.
    """

    shape: tuple[int, ...]
    label_maps: tuple[LabelMap, ...] = ()
    constant: Tensor | None = None
    is_weight: bool = False
    name: str | None = None
    shared: bool = False
    bias: str | None = None
    uniform: tuple[int, ...] = ()
    pattern: Tensor | None = None
    diagonal: int = 1
    dtype: torch.dtype | None = None

    def label_map(self, dim: int) -> LabelMap | None:
        """Return the label map that varies along `dim` alone; for a single unit, the one that does not vary."""
        dim %= max(len(self.shape), 1)
        for label_map in self.label_maps:
            if label_map.dims == (dim,):
                return label_map
        if self.shape and self.shape[dim] == 1:
            if len(self.label_maps) == len(self.shape):
                return self.label_maps[dim]  # a parameter has one label map per axis, in order
            return next((label_map for label_map in self.label_maps if label_map.dims == ()), None)
        return None

    def maps_along(self, dims: Sequence[int]) -> list[LabelMap]:
        """Return the label maps that vary along any of `dims`."""
        return [label_map for label_map in self.label_maps if set(label_map.dims) & set(dims)]

    def map(self, operation: Callable[[Tensor], Tensor]) -> Value:
        """Move the labels as the operation moves the data, and return the resulting value."""
        label_maps = [LabelMap(operation(label_map.ids)) for label_map in self.label_maps]
        shape = label_maps[0].ids.shape if label_maps else operation(torch.zeros((), dtype=torch.bool).expand(self.shape)).shape
        pattern, constant = (None if t is None else operation(t) for t in (self.pattern, self.constant))
        return Value(tuple(shape), tuple(label_maps), constant=constant, is_weight=self.is_weight, pattern=pattern)
