"""A fused network and its parents run side by side: at every layer, what the fused one reads and what it should compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from ..layers.operations import operation
from .affine import Writer, rows_at
from .equations import Equation
from .recording import Recording
from .steps import Steps

__all__ = ["Parent", "Rows", "run_alongside"]

_FEW = 10
"""A first dimension of fewer entries over all batches holds no samples (an unbatched network, steps before the batch)."""

Labelled = tuple[str, int]
"""An axis of a tensor, for the neurons that stand on it."""


@dataclass(eq=False)
class Parent:
    """A parent in its own neurons, and how its activations are carried to the target's.

    Attributes
    ----------
    recording : Recording
        What it computes.
    weight : float
        Its proportion.
    carry_map : callable
        From the name of a tensor and an axis to the matrix that carries activations along that axis.
    on_data : bool
        Whether it runs on rows of data, which its running statistics are taken to describe.
    """

    recording: Recording
    weight: float
    carry_map: Callable[[str, int], Tensor]
    on_data: bool = False
    maps: dict[Labelled, Any] = field(default_factory=dict)

    def carried(self, rows: Tensor, labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """Activations (..., neurons) in the target's neurons; of a `magnitude` signs do not matter."""
        if labelled not in self.maps:
            self.maps[labelled] = _one_for_one(self.carry_map(*labelled).to(rows.device, rows.dtype))
        matrix, index, factor = self.maps[labelled]
        if matrix is not None:
            return rows @ (matrix.abs() if magnitude else matrix).T
        rows = rows if index is None else rows[..., index]
        return rows if factor is None else rows * (factor.abs() if magnitude else factor)


def _one_for_one(matrix: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A matrix, or the indices and factors that do the same where every neuron comes from one: None where nothing changes."""
    if not bool((matrix != 0).sum(1).eq(1).all()):
        return matrix, None, None
    index = matrix.abs().argmax(1)
    factor = matrix.gather(1, index[:, None])[:, 0]
    here = torch.arange(len(index), device=index.device)
    stays = matrix.shape[0] == matrix.shape[1] and torch.equal(index, here)
    return None, None if stays else index, None if bool((factor == 1).all()) else factor


class Rows:
    """The rows of one equation, batch by batch: what its writers read, and what they leave to be explained.

    Parameters
    ----------
    equation : Equation
    fused : Steps
    parents : list of Parent

    Attributes
    ----------
    chosen : list of Tensor
        For each batch the positions taken, among samples and space or time: those that the parents are recorded at.
    sample : list of Tensor
        The sample that each belongs to, counted over all batches; where the first dimension of the value holds but a few, each
        row is one.
    """

    def __init__(self, equation: Equation, fused: Steps, parents: Sequence[Parent]):
        self.equation, self.fused, self.parents = equation, fused, parents
        self.channel = equation.writers[0].channel
        self.others = [n for n in _terms(equation) if n not in equation.between]
        value = equation.at.meta["val"]
        n, size = value.numel() // value.shape[self.channel], len(value)
        chosen = parents[0].recording.positions.of(value, self.channel, fused.n_batches)
        device = next(iter(fused.state.values())).device
        self.chosen = [c.to(device) for c in chosen]
        self.sample = [c * size // n + batch * size for batch, c in enumerate(self.chosen)]
        if size * fused.n_batches < _FEW:
            self.sample = list(torch.arange(sum(map(len, chosen)), device=device).split([len(c) for c in chosen]))

    def of(self, node: Node, batch: int, taken: Any = ...) -> Tensor:
        """The fused network's value at the positions taken, shape (positions, channels)."""
        return rows_at(self.fused.read(node, batch), self.channel, self.chosen[batch][taken])

    def of_parent(self, parent: Parent, node: Node, batch: int, taken: Any = ...) -> Tensor:
        """A parent's; `node` is the fused network's."""
        return parent.recording.rows(self.fused.position[node], self.channel, batch)[taken]

    @property
    def rectified(self) -> bool:
        """Whether nothing but ReLUs reads the value."""
        users = self.equation.at.users
        return bool(users) and all(operation(u) == "relu" for u in users)

    def target(self, batch: int, taken: Any = ...) -> tuple[Tensor, Tensor | float]:
        """What the writers should compute, and what comes into the sum from elsewhere, shape (positions, channels).

        Together they are the weighted mean of the parents' aligned values; `taken` are some of the positions.
        """
        labelled, rest = self.equation.writers[0].labelled, 0.0
        total: Any = 0.0
        for parent in self.parents:
            total = total + parent.weight * parent.carried(self.of_parent(parent, self.equation.at, batch, taken), labelled)
        for node in self.others:
            rest = rest + self.of(node, batch, taken)  # type: ignore[assignment]
        return total - rest, rest

    def inputs(self, writer: Writer, batch: int, taken: Any = ...) -> Tensor:
        """What a writer reads, shape (groups, positions, inputs)."""
        return writer.rows(writer.read(self.fused, batch), self.chosen[batch][taken])


def _terms(equation: Equation) -> list[Node]:
    """The terms of the sum that an equation is about, or its value."""
    found, inside = [], [equation.at]
    while inside:
        node = inside.pop()
        if node in equation.between and operation(node) == "add":
            inside += [a for a in node.args[:2] if isinstance(a, Node)]
        else:
            found.append(node)
    return found


def read_by(
    found: Iterable[Equation], position: Mapping[Node, int], reads: Callable[[Equation], Iterable[Node]] | None = None
) -> tuple[dict[int, int], list[int]]:
    """The values that equations want of a network, the layers' at some positions, with the dimension of channels, those that
    recurrent cells read in whole; by default the values that the equations are about.
    """
    rows, whole = {}, []
    for equation in found:
        if equation.cells:
            whole += [position[n] for n in pytree.tree_leaves(equation.at.args[:2]) if isinstance(n, Node)]
        else:
            nodes = [equation.at] if reads is None else reads(equation)
            rows.update({position[n]: equation.writers[0].channel for n in nodes})
    return rows, whole


def run_alongside(
    fused: Steps,
    parents: Sequence[Parent],
    found: Mapping[Node, Equation],
    correct: Callable[[Equation], None],
    *,
    reads: Callable[[Equation], Iterable[Node]] | None = None,
    runs_fused: bool = True,
) -> None:
    """Record the parents, then run the fused network operation by operation.

    `correct` may change the fused network's tensors, before it computes the operations of an equation. `reads` are the values of
    an equation that it wants of the parents; see `read_by`.
    """
    wanted = read_by(found.values(), fused.position, reads)
    for parent in parents:
        parent.recording.record(*wanted)
    if not runs_fused:
        for node in sorted(found, key=fused.position.__getitem__):
            correct(found[node])
        return
    waiting = {node for e in found.values() for node in e.between}
    for equation in found.values():
        at = fused.position[equation.at]
        fused.keep((r for n in equation.between for r in n.all_input_nodes), at)
        fused.keep((w.end for w in equation.writers), at)
    for k, node in enumerate(fused.nodes):
        if node in found:
            correct(found[node])
            for n in found[node].between:
                fused.run(n)
        elif node not in waiting:
            fused.run(node)
        fused.forget(k)
