"""Constraints: what the operations of a network require of its unit labels.

These define which labels denote the same unit, which units must stay in place, and how units scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..network.spec import RedundantBiasPair
from .labels import FIXED, LabelMap, Value

__all__ = ["Constraints"]


class Constraints:
    """The constraints that the operations of one network place on its unit labels.

    A rule calls `unite` (two labels denote one unit), `freeze` (the operation has no rule), `fix` (units that must stay in
    place), `consumes` and `produces` (an axis reads or computes units). Factors c of a unit that preserve the function are scales
    (c > 0) and signs (c = -1); rules constrain them by `same_factor`, `opposite_factor`, `no_scale`, `no_sign` and `rigid`. Units
    that lie in blocks (attention heads), which move as a whole, are declared by `enclose` or `contains`.

    Attributes
    ----------
    n_labels : int
        Number of labels; label 0 is `FIXED`.
    range_starts : list of int
        First label of each range of fresh labels.
    united : list of (ndarray, ndarray)
        Labels that denote the same units, element by element.
    frozen, fixed : list of (ndarray, str)
        Labels of units that stay in place, with the reason, or the operation.
    outputs : list of ndarray
        Labels of units that the network returns.
    consumers, producers : list of ndarray
        Labels of axes that read or compute units.
    relations : list of (str, tuple of int, tuple of ndarray)
        Linear relations between exponents; see `relate`.
    recurrent_tensors : set of str
        Recurrent weights.
    group_suffixes : dict of str to str
        What is appended to the name of a group that a parameter computes.
    bias_pairs : list of RedundantBiasPair
    state_units : list of ndarray
        Labels of units of recurrent states.
    uncompared : set of str
        Tensors that matching leaves out.
    observed, moved : list of ndarray
        For each operation that computes something of units, or moves them, their labels.
    table_selections : list of (ndarray, ndarray)
        For each operation that selects rows of a table, the labels left out and those selected.
    block_members : list of (ndarray, ndarray)
        Labels of blocks and of units that lie in them, element by element.
    block_names : list of (ndarray, str)
    module_path, location : str
        The module of the current operation, and the operation as messages show it.
    used_results : set of int or None
        Of a current operation with several results, the positions of those that are used.
    """

    def __init__(self) -> None:
        self.n_labels = 1  # label 0 is FIXED
        self.range_starts: list[int] = []
        self.united: list[tuple[np.ndarray, np.ndarray]] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.outputs: list[np.ndarray] = []
        self.consumers: list[np.ndarray] = []
        self.producers: list[np.ndarray] = []
        self.relations: list[tuple[str, tuple[int, ...], tuple[np.ndarray, ...]]] = []
        self.recurrent_tensors: set[str] = set()
        self.group_suffixes: dict[str, str] = {}
        self.bias_pairs: list[RedundantBiasPair] = []
        self.state_units: list[np.ndarray] = []
        self.uncompared: set[str] = set()
        self.observed: list[np.ndarray] = []
        self.moved: list[np.ndarray] = []
        self.table_selections: list[tuple[np.ndarray, np.ndarray]] = []
        self.block_members: list[tuple[np.ndarray, np.ndarray]] = []
        self.block_names: list[tuple[np.ndarray, str]] = []
        self.module_path = ""
        self.location = ""
        self.used_results: set[int] | None = None

    @contextlib.contextmanager
    def in_operation(self, module_path: str, location: str, used_results: set[int]) -> Iterator[None]:
        """Attribute the following constraints to one operation.

        Parameters
        ----------
        module_path : str
            The module that contains the operation.
        location : str
            The operation as messages show it.
        used_results : set of int
            Of an operation with several results, the positions of those that are used.
        """
        previous = self.module_path, self.location, self.used_results
        self.module_path, self.location, self.used_results = module_path, location, used_results
        try:
            yield
        finally:
            self.module_path, self.location, self.used_results = previous

    def fresh(self, size: int) -> Tensor:
        """Return new labels."""
        self.range_starts.append(self.n_labels)
        ids = torch.arange(self.n_labels, self.n_labels + size)
        self.n_labels += size
        return ids

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Unite the units of the labels `a` and `b`, element by element (broadcast)."""
        a, b = torch.broadcast_tensors(a, b)
        self.united.append((_flat(a), _flat(b)))

    def unite_along(self, label_map: LabelMap, dims: Sequence[int]) -> LabelMap:
        """Unite the labels along `dims` into one unit with a copy at each position, and return the new label map."""
        first = label_map.compact
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self.unite(label_map.compact, first)
        self.same_factor(label_map.compact, first)
        return LabelMap(first.expand(label_map.ids.shape), tuple(d for d in label_map.dims if d not in dims))

    def fix(self, *label_maps: LabelMap | None) -> None:
        """Keep units in place that must not move: network inputs, outputs and constants."""
        for label_map in label_maps:
            if label_map is not None:
                flat = _flat(label_map.compact)
                self.united.append((flat, np.full_like(flat, FIXED)))
                self.fixed.append((flat, self.location))

    def fix_outputs(self, *label_maps: LabelMap) -> None:
        """Keep units in place that the network returns to its caller."""
        self.fix(*label_maps)
        self.outputs += [_flat(label_map.compact) for label_map in label_maps]

    def freeze(self, label_maps: Sequence[LabelMap], why: str) -> None:
        """Keep units in place because no rule covers an operation on them; this is reported to the user."""
        for label_map in label_maps:
            self.fix(label_map)
            if not label_map.dims:
                continue  # a single unit, or an axis of size 1: nothing could be exchanged
            self.frozen.append((_flat(label_map.compact), f"{why} in {self.location}" if self.location else why))

    def enclose(self, rows: Tensor, name: str) -> Tensor:
        """Declare each row of units to be a block: its units move within it, or with it.

        Parameters
        ----------
        rows : Tensor of shape (blocks, units)
        name : str
            Name of the blocks, appended to the path of the module that contains the operation.

        Returns
        -------
        Tensor of shape (blocks,)
            A label for each row, the same for equal rows. A block of one unit is that unit.
        """
        distinct, block_of_row = torch.unique(rows, dim=0, return_inverse=True)
        if bool((rows == rows[:, :1]).all()):
            return rows[:, 0]
        blocks = self.fresh(len(distinct))
        self.rigid(LabelMap(blocks))
        self.contains(blocks[:, None], distinct)
        self.block_names.append((_flat(blocks), ".".join(filter(None, (self.module_path, name)))))
        return blocks[block_of_row]

    def contains(self, blocks: Tensor, units: Tensor) -> None:
        """Declare that the units with labels `units` lie in the blocks with labels `blocks`, element by element (broadcast)."""
        blocks, units = torch.broadcast_tensors(blocks, units)
        self.block_members.append((_flat(blocks), _flat(units)))

    def consumes(self, ids: Tensor) -> None:
        """Declare that a tensor reads the units with these labels."""
        self.consumers.append(_flat(ids))

    def produces(self, ids: Tensor) -> None:
        """Declare that a tensor computes the units with these labels; the order of calls is the order of groups."""
        self.producers.append(_flat(ids))

    def observes(self, label_maps: Sequence[LabelMap]) -> None:
        """Record one operation that computes something of these units.

        Units that different operations observe cannot be exchanged.
        """
        self.observed.append(np.concatenate([np.zeros(0, int), *(_flat(label_map.compact) for label_map in label_maps)]))

    def moves(self, values: Sequence[Value], results: Sequence[Value], of_table: bool) -> None:
        """Record one operation that moves units along other dimensions, or leaves some of them out.

        Units that different operations move cannot be exchanged. Rows of a table (`of_table`: a value that does not depend on
        inputs) stay in place if an operation leaves them out and none selects them.
        """
        before, after = (
            np.unique(np.concatenate([np.zeros(0, int), *(_flat(label_map.compact) for v in side for label_map in v.label_maps)]))
            for side in (values, results)
        )
        if not len(after):
            return
        self.moved.append(before)
        omitted = np.setdiff1d(before, after)
        if of_table and len(omitted):
            self.table_selections.append((omitted, after))

    def is_state(self, label_map: LabelMap) -> bool:
        """Return whether some of these units belong to a recurrent state."""
        ids = _flat(label_map.compact)
        return any(bool(np.isin(ids, state).any()) for state in self.state_units)

    def relate(self, coefficients: tuple[int, ...], *ids: Tensor, kind: str = "both") -> None:
        """Require that the exponents of labels, times the coefficients, sum to 0 element by element.

        Parameters
        ----------
        coefficients : tuple of int
            One for each of `ids`.
        kind : {"scale", "sign", "both"}
            Which exponents: those of scales, or those of signs (modulo 2).
        """
        self.relations.append((kind, coefficients, tuple(_flat(i) for i in torch.broadcast_tensors(*ids))))

    def same_factor(self, a: Tensor, b: Tensor) -> None:
        """Require that two units scale and change sign together."""
        self.relate((1, -1), a, b)

    def opposite_factor(self, a: Tensor, b: Tensor) -> None:
        """Require that the product of two units neither scales nor changes sign."""
        self.relate((1, 1), a, b)

    def no_scale(self, *label_maps: LabelMap) -> None:
        """Forbid scales of these units; they may change sign (an odd function)."""
        for label_map in label_maps:
            self.relate((1,), label_map.compact, kind="scale")

    def no_sign(self, *label_maps: LabelMap) -> None:
        """Forbid signs of these units; they may be scaled (a positively homogeneous function)."""
        for label_map in label_maps:
            self.relate((1,), label_map.compact, kind="sign")

    def rigid(self, *label_maps: LabelMap) -> None:
        """Forbid both scales and signs of these units."""
        for label_map in label_maps:
            self.relate((1,), label_map.compact)


def _flat(ids: Tensor) -> np.ndarray:
    return ids.reshape(-1).numpy()
