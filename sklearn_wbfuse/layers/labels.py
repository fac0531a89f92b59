"""Unit labels: what flows through a network's graph in place of numbers.

Every position of every parameter axis gets an integer label of its own. A `LabelMap` is a tensor of labels in the shape of
a value, expanded along the dimensions where it is constant; a `Value` has one layer for each independent way in which it
depends on units (an activation has one, along its channels; a weight has one per axis). The `Constraints` collects what the
operations say about labels: which stand for the same unit, which must stay in place, how they scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..network.couplings import along
from ..network.spec import RedundantBiasPair

__all__ = ["FIXED", "Constraints", "LabelMap", "Value"]

FIXED = 0
"""The label of everything that can't move."""


class LabelMap:
    """Labels in the shape of a value, varying along `dims` only."""

    def __init__(self, ids: Tensor, dims: tuple[int, ...] | None = None):
        self.ids = ids
        self.dims = _varying(ids) if dims is None else dims

    @classmethod
    def along(cls, ids: Tensor, dim: int, shape: Sequence[int]) -> LabelMap:
        """One label for each position of `dim`."""
        return cls(along(ids, dim, len(shape)).expand(tuple(shape)), (dim,) if len(ids) > 1 else ())

    @property
    def core(self) -> Tensor:
        """The labels with every constant dimension cut to size 1."""
        ids = self.ids
        for dim, size in enumerate(ids.shape):
            if size > 1 and dim not in self.dims:
                ids = ids.narrow(dim, 0, 1)
        return ids

    def vector(self, dim: int) -> Tensor:
        """The labels along `dim`, which must be the only varying dimension."""
        index = tuple(slice(None) if d == dim else 0 for d in range(self.ids.dim()))
        return self.ids[index]

    def rows(self, inner: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The labels along the dimensions of `inner` for every position of the others on which they vary.

        Returns
        -------
        rows : Tensor of shape (n, m)
        place : Tensor
            The number of the row, in the shape of the labels with all that does not vary cut to size 1.
        """
        outer = [d for d in self.dims if d not in inner]
        core = self.core
        rows = core.movedim(outer, list(range(len(outer)))).reshape(int(np.prod([core.shape[d] for d in outer])), -1)
        place = torch.arange(len(rows)).view([core.shape[d] if d in outer else 1 for d in range(core.dim())])
        return rows, place

    def united(self, constraints: Constraints, dims: Sequence[int]) -> LabelMap:
        """The labels after those along `dims` have become one unit, which has a copy at each position."""
        first = self.core
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        constraints.unite(self.core, first)
        constraints.same_factor(self.core, first)
        return LabelMap(first.expand(self.ids.shape), tuple(d for d in self.dims if d not in dims))

    def broadcast(self, shape: Sequence[int]) -> LabelMap:
        """Expand to a shape with more leading dimensions or larger singleton ones."""
        shift = len(shape) - self.ids.dim()
        return LabelMap(self.ids.expand(tuple(shape)), tuple(d + shift for d in self.dims))


def _varying(ids: Tensor) -> tuple[int, ...]:
    dims = []
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and ids.stride(dim) != 0 and bool((ids != ids.narrow(dim, 0, 1)).any()):
            dims.append(dim)
    return tuple(dims)


@dataclass(frozen=True)
class Value:
    """What an operation reads or computes: a shape, the labels of its elements, and the number itself if it is constant.

    Attributes
    ----------
    shape : tuple of int
    layers : tuple of LabelMap
    constant : Tensor or None
        The value, where it depends on neither inputs nor parameters.
    is_weight : bool
        Whether it depends on parameters and not on inputs.
    name : str or None
        The parameter that this value is, if it is one as such.
    shared : bool
        Whether several operations read that parameter.
    bias : str or None
        The parameter that was added last, if nothing else has read the sum (a norm that follows makes it redundant).
    uniform : tuple of int
        Dimensions that were expanded from size 1, along which it can't vary.
    pattern : Tensor or None
        Where it is known that some elements are equal (a mask that was expanded and reshaped): numbers in the shape of the
        value, equal for equal elements.
    diagonal : int
        A weight of a convolution in groups stands for the whole tensor of which it holds so many diagonal blocks.
    dtype : torch.dtype or None
        As far as it is known.
    """

    shape: tuple[int, ...]
    layers: tuple[LabelMap, ...] = ()
    constant: Tensor | None = None
    is_weight: bool = False
    name: str | None = None
    shared: bool = False
    bias: str | None = None
    uniform: tuple[int, ...] = ()
    pattern: Tensor | None = None
    diagonal: int = 1
    dtype: torch.dtype | None = None

    def layer(self, dim: int) -> LabelMap | None:
        """The layer that varies along `dim` alone; for a single unit, the one that varies nowhere."""
        dim %= max(len(self.shape), 1)
        for layer in self.layers:
            if layer.dims == (dim,):
                return layer
        if self.shape and self.shape[dim] == 1:
            if len(self.layers) == len(self.shape):
                return self.layers[dim]  # a parameter has one layer per axis, in order
            return next((layer for layer in self.layers if layer.dims == ()), None)
        return None

    def touching(self, dims: Sequence[int]) -> list[LabelMap]:
        """Layers that vary along any of `dims`."""
        return [layer for layer in self.layers if set(layer.dims) & set(dims)]

    def map(self, operation: Callable[[Tensor], Tensor]) -> Value:
        """Move the labels as the operation moves the data."""
        layers = [LabelMap(operation(layer.ids)) for layer in self.layers]
        shape = layers[0].ids.shape if layers else operation(torch.zeros((), dtype=torch.bool).expand(self.shape)).shape
        pattern, constant = (None if t is None else operation(t) for t in (self.pattern, self.constant))
        return Value(tuple(shape), tuple(layers), constant=constant, is_weight=self.is_weight, pattern=pattern)


class Constraints:
    """What the operations of one network say about its unit labels.

    A rule calls `unite` (two labels are one unit), `freeze` (no rule for it), `fix` (rightly in place), `consumes` (an axis
    reads these units), and for factors c of a unit that leave the function as it is (scales, c > 0, and signs, c = -1)
    `same_factor`, `opposite_factor`, `no_scale`, `no_sign`, `rigid`. It calls `enclose` or `contains` where units lie in
    blocks (attention heads) that move as a whole. Of an operation with several results, `wanted` holds the positions of those
    that something reads.
    """

    def __init__(self) -> None:
        self.count = 1  # label 0 is FIXED
        self.starts: list[int] = []
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.outputs: list[np.ndarray] = []
        self.readers: list[np.ndarray] = []
        self.computers: list[np.ndarray] = []
        self.relations: list[tuple[str, tuple[int, ...], tuple[np.ndarray, ...]]] = []
        self.recurrent: set[str] = set()
        self.suffixes: dict[str, str] = {}
        self.bias_pairs: list[RedundantBiasPair] = []
        self.states: list[np.ndarray] = []
        self.uncompared: set[str] = set()
        self.seen: list[np.ndarray] = []
        self.moved: list[np.ndarray] = []
        self.cut: list[tuple[np.ndarray, np.ndarray]] = []
        self.enclosed: list[tuple[np.ndarray, np.ndarray]] = []
        self.block_names: list[tuple[np.ndarray, str]] = []
        self.path = ""
        self.where = ""
        self.wanted: set[int] | None = None

    @contextlib.contextmanager
    def during(self, path: str, where: str, wanted: set[int]) -> Iterator[None]:
        """One operation, of the module at a path, is what the rules speak of; `where` says so in words."""
        before = self.path, self.where, self.wanted
        self.path, self.where, self.wanted = path, where, wanted
        try:
            yield
        finally:
            self.path, self.where, self.wanted = before

    def fresh(self, size: int) -> Tensor:
        """Labels that nothing else has."""
        self.starts.append(self.count)
        ids = torch.arange(self.count, self.count + size)
        self.count += size
        return ids

    def unite(self, a: Tensor, b: Tensor) -> None:
        """The labels in `a` and `b` stand for the same units, element by element (broadcast)."""
        a, b = torch.broadcast_tensors(a, b)
        self.pairs.append((_flat(a), _flat(b)))

    def fix(self, *layers: LabelMap | None) -> None:
        """These units are network inputs or outputs, or constants: they stay in place, rightly."""
        for layer in layers:
            if layer is not None:
                flat = _flat(layer.core)
                self.pairs.append((flat, np.full_like(flat, FIXED)))
                self.fixed.append((flat, self.where))

    def returned(self, *layers: LabelMap) -> None:
        """The network returns these units to its caller."""
        self.fix(*layers)
        self.outputs += [_flat(layer.core) for layer in layers]

    def freeze(self, layers: Sequence[LabelMap], why: str) -> None:
        """These units stay in place because no rule covers what is done to them; reported to the user."""
        for layer in layers:
            self.fix(layer)
            if not layer.dims:
                continue  # a single unit, or an axis of size 1: nothing could be exchanged
            self.frozen.append((_flat(layer.core), f"{why} in {self.where}" if self.where else why))

    def enclose(self, rows: Tensor, name: str) -> Tensor:
        """Each row of units is a block: its units move within it, or with it.

        Parameters
        ----------
        rows : Tensor of shape (blocks, units)
        name : str
            What the blocks are called, after the path of the module that makes them.

        Returns
        -------
        Tensor of shape (blocks,)
            A label for each row, one for rows of the same labels. A block of one unit is that unit.
        """
        distinct, block_of_row = torch.unique(rows, dim=0, return_inverse=True)
        if bool((rows == rows[:, :1]).all()):
            return rows[:, 0]
        blocks = self.fresh(len(distinct))
        self.rigid(LabelMap(blocks))
        self.contains(blocks[:, None], distinct)
        self.block_names.append((_flat(blocks), ".".join(filter(None, (self.path, name)))))
        return blocks[block_of_row]

    def contains(self, blocks: Tensor, units: Tensor) -> None:
        """The units with labels `units` lie in the blocks with labels `blocks`, element by element (broadcast)."""
        blocks, units = torch.broadcast_tensors(blocks, units)
        self.enclosed.append((_flat(blocks), _flat(units)))

    def consumes(self, ids: Tensor) -> None:
        """A tensor reads the units with these labels."""
        self.readers.append(_flat(ids))

    def produces(self, ids: Tensor) -> None:
        """A tensor computes the units with these labels; the order of calls is the order of groups."""
        self.computers.append(_flat(ids))

    def observes(self, layers: Sequence[LabelMap]) -> None:
        """One operation that computes something of these units: units that different operations see can't be exchanged."""
        self.seen.append(np.concatenate([np.zeros(0, int), *(_flat(layer.core) for layer in layers)]))

    def moves(self, values: Sequence[Value], results: Sequence[Value], of_table: bool) -> None:
        """One operation that moves these units along other dimensions, or leaves some of them out.

        Units that different operations move can't be exchanged. Rows of a table, a value that does not depend on inputs, stay
        in place if they are left out and no such operation takes them.
        """
        before, after = (
            np.unique(np.concatenate([np.zeros(0, int), *(_flat(layer.core) for v in side for layer in v.layers)]))
            for side in (values, results)
        )
        if not len(after):
            return
        self.moved.append(before)
        left_out = np.setdiff1d(before, after)
        if of_table and len(left_out):
            self.cut.append((left_out, after))

    def is_state(self, layer: LabelMap) -> bool:
        """Whether a recurrent rule has said of some of these units that they are its state."""
        ids = _flat(layer.core)
        return any(bool(np.isin(ids, state).any()) for state in self.states)

    def relate(self, coefficients: tuple[int, ...], *ids: Tensor, of: str = "both") -> None:
        """The exponents of these labels, times the coefficients, sum to 0 element by element.

        Parameters
        ----------
        of : {"scale", "sign", "both"}
            Which exponents: how a label goes with its unit's scale, or with its sign (modulo 2).
        """
        self.relations.append((of, coefficients, tuple(_flat(i) for i in torch.broadcast_tensors(*ids))))

    def same_factor(self, a: Tensor, b: Tensor) -> None:
        """Both scale and change sign alike."""
        self.relate((1, -1), a, b)

    def opposite_factor(self, a: Tensor, b: Tensor) -> None:
        """Their product neither scales nor changes sign."""
        self.relate((1, 1), a, b)

    def no_scale(self, *layers: LabelMap) -> None:
        """These units can't be scaled; they may change sign (an odd function)."""
        for layer in layers:
            self.relate((1,), layer.core, of="scale")

    def no_sign(self, *layers: LabelMap) -> None:
        """These units can't change sign; they may be scaled (a positively homogeneous function)."""
        for layer in layers:
            self.relate((1,), layer.core, of="sign")

    def rigid(self, *layers: LabelMap) -> None:
        """These units can neither be scaled nor change sign."""
        for layer in layers:
            self.relate((1,), layer.core)


def _flat(ids: Tensor) -> np.ndarray:
    return ids.reshape(-1).numpy()
