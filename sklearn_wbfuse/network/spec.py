"""A network as data, without any ``nn.Module``: its neuron groups, labelled tensors and states, and how they are laid out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .groups import Group, LabelledTensor, Span

__all__ = ["NetworkSpec", "RecurrentState", "RedundantBiasPair"]


@dataclass(frozen=True, eq=False)
class RedundantBiasPair:
    """Two biases of which the network depends on the sum alone at some positions (b_ih and b_hh of recurrent layers)."""

    bias: str
    redundant_bias: str
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """A recurrent state that the caller passes or receives.

    Attributes
    ----------
    is_input : bool
        Whether it is an input of the network; otherwise an output.
    position : int
        Position among the tensors of the inputs or outputs.
    layer_index : int or None
        Index along its first dimension (layers and directions); None if it has two dimensions.
    labels : LabelledTensor
        Of its last dimension.
    """

    is_input: bool
    position: int
    layer_index: int | None
    labels: LabelledTensor


@dataclass(frozen=True, eq=False)
class NetworkSpec:
    """A network as labelled tensors.

    ``print(graph)`` shows a table: each group, its size, which axes compute it and which read it.

    Attributes
    ----------
    groups : dict of str to Group
        In the order of computation.
    tensors : dict of str to LabelledTensor
    uncompared : frozenset of str
        Tensors that matching leaves out: running means and variances of norms, and biases in front, taken off with a mean.
    summed : tuple of RedundantBiasPair
    states : tuple of RecurrentState
    operations : tuple of (str, str, tuple of str)
        The operations of the network in order: name, module and options of each. Two networks of one architecture share them.
    frozen : tuple of (str, str)
        What is kept in place for lack of a rule: parameter, and why.
    ends_in_probabilities : bool
        Whether operations keep all outputs within 0 and 1: a softmax or a sigmoid, and what keeps their values there.
    """

    groups: dict[str, Group]
    tensors: dict[str, LabelledTensor]
    uncompared: frozenset[str] = frozenset()
    bias_pairs: tuple[RedundantBiasPair, ...] = ()
    states: tuple[RecurrentState, ...] = ()
    operations: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    frozen: tuple[tuple[str, str], ...] = ()
    ends_in_probabilities: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each group."""
        return {name: group.size for name, group in self.groups.items()}

    @property
    def fixed_count_blocks(self) -> set[str]:
        """Groups of blocks whose number stays when widths change by a factor: the groups of a convolution."""
        spans = (span for t in self.tensors.values() if t.diagonal > 1 for axis in t.spans for span in axis)
        return {within for within in (self.groups[span.group].block_group for span in spans) if within is not None}

    @property
    def permutation_units(self) -> list[list[str]]:
        """Groups that can only be moved together: each without blocks, or blocks before the groups within them."""
        inside = [g for g in self.groups.values() if g.block_group is not None]
        return [
            [g.name, *(m.name for m in inside if m.block_group == g.name)] for g in self.groups.values() if g.block_group is None
        ]

    @property
    def free_share(self) -> float:
        """Share of the values of all tensors that belong to a neuron of some group; the others stay where they are."""
        total, fixed = 0, 0
        for tensor in self.tensors.values():
            total += math.prod(tensor.shape)
            fixed += math.prod(len(tensor.rest(axis)) for axis in range(len(tensor.shape)))
        return 1 - fixed / total if total else 0.0

    def orders(self, draw: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
        """Permutations of all groups that respect blocks, from one for any size."""
        orders = {g.name: draw(g.size) for g in self.groups.values() if g.block_group is None}
        for group in self.groups.values():
            if group.block_group is not None:
                blocks = orders[group.block_group]
                each = group.size // len(blocks)
                orders[group.name] = np.concatenate([block * each + draw(each) for block in blocks])
        return orders

    def copies(self, wide: NetworkSpec) -> dict[str, np.ndarray]:
        """For each group of a wider network the neurons of this one in turns, block for block."""
        copies = {}
        for name, group in self.groups.items():
            n, sizes = wide.groups[name].size, (self.sizes, wide.sizes)
            blocks, wider = (1, 1) if group.block_group is None else (s[group.block_group] for s in sizes)
            block, unit = np.divmod(np.arange(n), n // wider)
            each = group.size // blocks
            copies[name] = (block % blocks) * each + unit % each
        return copies

    def axes(self, group: str) -> Iterator[tuple[LabelledTensor, int, Span]]:
        """Every (tensor, axis, span) on which a group stands."""
        for tensor in self.tensors.values():
            for axis, spans in enumerate(tensor.spans):
                for span in spans:
                    if span.group == group:
                        yield tensor, axis, span

    def __str__(self) -> str:
        rows = [("group", "size", "scale", "sign", "computed by", "read by")]
        blocks = self.sizes
        for name, group in self.groups.items():
            sides: dict[str, dict[str, int]] = {"out": {}, "in": {}}
            for tensor, axis, span in self.axes(name):
                side, place = sides[span.role], f"{tensor.name}[{axis}]"
                side[place] = side.get(place, 0) + span.index.shape[1]
            free = ["yes" if f else "no" for f in (group.scalable, group.signable)]
            size = (
                f"{group.size}"
                if group.block_group is None
                else f"{blocks[group.block_group]} x {group.size // blocks[group.block_group]}"
            )
            rows.append((name, size, free[0], free[1], _wrap(sides["out"]), _wrap(sides["in"])))
        widths = [max(len(row[c]) for row in rows) for c in range(5)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in [*widths, len(rows[0][5])]))
        lines.append(f"{self.free_share:.1%} of all values belong to these neurons")
        lines += [f"frozen: {name} ({why})" for name, why in self.frozen]
        return "\n".join(lines)


def _wrap(places: Mapping[str, int], limit: int = 2) -> str:
    names = [f"{name} x{copies}" if copies > 1 else name for name, copies in places.items()]
    shown = ", ".join(names[:limit])
    return shown + (f", ... {len(names) - limit} more" if len(names) > limit else "")
