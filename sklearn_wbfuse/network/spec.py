"""A network as data, without any ``nn.Module``: its neuron groups, labelled tensors, redundant biases and recurrent states."""

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
    """A recurrent state that the caller of the network passes in or receives.

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
    """A network as labelled tensors and neuron groups.

    ``print(spec)`` shows a table of each group, its size, and the axes that compute and read it.

    Attributes
    ----------
    groups : dict of str to Group
        In the order of computation.
    tensors : dict of str to LabelledTensor
    uncompared : frozenset of str
        Tensors that matching leaves out: running means and variances of norms, and biases that the mean of a norm cancels.
    bias_pairs : tuple of RedundantBiasPair
    states : tuple of RecurrentState
    operations : tuple of (str, str, tuple of str)
        Name, module and options of each operation of the network, in order; equal for networks of one architecture.
    frozen : tuple of (str, str)
        The parameters whose neurons cannot be moved because a rule is missing, and the reason.
    ends_in_probabilities : bool
        Whether the operations of the network confine all outputs to [0, 1], as a softmax or a sigmoid does.
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
        """The size of each group."""
        return {name: group.size for name, group in self.groups.items()}

    @property
    def fixed_count_blocks(self) -> set[str]:
        """The groups of blocks whose number does not change with the widths: the groups of a convolution."""
        spans = (span for t in self.tensors.values() if t.diagonal > 1 for axis in t.spans for span in axis)
        return {blocks for blocks in (self.groups[span.group].block_group for span in spans) if blocks is not None}

    @property
    def permutation_units(self) -> list[list[str]]:
        """The groups that must be permuted together: a single group, or blocks followed by the groups within them."""
        inside = [g for g in self.groups.values() if g.block_group is not None]
        return [
            [g.name, *(m.name for m in inside if m.block_group == g.name)] for g in self.groups.values() if g.block_group is None
        ]

    @property
    def free_share(self) -> float:
        """The share of the entries of all tensors that belong to a neuron of some group; the others are fixed."""
        total, fixed = 0, 0
        for tensor in self.tensors.values():
            total += math.prod(tensor.shape)
            fixed += math.prod(len(tensor.rest(axis)) for axis in range(len(tensor.shape)))
        return 1 - fixed / total if total else 0.0

    def orders(self, draw: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
        """Draw permutations of all groups that respect blocks; `draw` returns a permutation of a given size."""
        orders = {g.name: draw(g.size) for g in self.groups.values() if g.block_group is None}
        for group in self.groups.values():
            if group.block_group is not None:
                blocks = orders[group.block_group]
                block_size = group.size // len(blocks)
                orders[group.name] = np.concatenate([block * block_size + draw(block_size) for block in blocks])
        return orders

    def copies(self, wide: NetworkSpec) -> dict[str, np.ndarray]:
        """Return, for each group of a wider network, the neurons of this network that it repeats, block by block."""
        copies = {}
        for name, group in self.groups.items():
            n, sizes = wide.groups[name].size, (self.sizes, wide.sizes)
            blocks, wide_blocks = (1, 1) if group.block_group is None else (s[group.block_group] for s in sizes)
            block, unit = np.divmod(np.arange(n), n // wide_blocks)
            block_size = group.size // blocks
            copies[name] = (block % blocks) * block_size + unit % block_size
        return copies

    def axes(self, group: str) -> Iterator[tuple[LabelledTensor, int, Span]]:
        """Yield every (tensor, axis, span) of a group."""
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
                axes, label = sides[span.role], f"{tensor.name}[{axis}]"
                axes[label] = axes.get(label, 0) + span.index.shape[1]
            symmetries = ["yes" if symmetry else "no" for symmetry in (group.scalable, group.signable)]
            size = (
                f"{group.size}"
                if group.block_group is None
                else f"{blocks[group.block_group]} x {group.size // blocks[group.block_group]}"
            )
            rows.append((name, size, symmetries[0], symmetries[1], _shortened(sides["out"]), _shortened(sides["in"])))
        widths = [max(len(row[c]) for row in rows) for c in range(5)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in [*widths, len(rows[0][5])]))
        lines.append(f"{self.free_share:.1%} of all values belong to these neurons")
        lines += [f"frozen: {name} ({why})" for name, why in self.frozen]
        return "\n".join(lines)


def _shortened(axes: Mapping[str, int], limit: int = 2) -> str:
    names = [f"{name} x{copies}" if copies > 1 else name for name, copies in axes.items()]
    shown = ", ".join(names[:limit])
    return shown + (f", ... {len(names) - limit} more" if len(names) > limit else "")
