"""A fused network and its parents run side by side: at every layer, what the fused one reads and what it should compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..graph import Steps
from .affine import Writer, channels_last, operation
from .equations import Equation

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
    steps : Steps
    weight : float
        Its proportion.
    carry_map : callable
        From the name of a tensor and an axis to the matrix that carries activations along that axis.
    """

    steps: Steps
    weight: float
    carry_map: Callable[[str, int], Tensor]
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
    cap : int
        Largest number of rows over all batches; positions are drawn at random where there are more.
    generator : Generator

    Attributes
    ----------
    chosen : list of Tensor
        For each batch the positions taken, among samples and space or time.
    sample : list of Tensor
        The sample that each belongs to, counted over all batches; where the first dimension of the value holds but a few, each
        row is one.
    """

    def __init__(self, equation: Equation, fused: Steps, parents: Sequence[Parent], cap: int, generator: torch.Generator):
        self.equation, self.fused, self.parents = equation, fused, parents
        self.channel = equation.writers[0].channel
        self.others = [n for n in _terms(equation) if n not in equation.between]
        self.chosen: list[Tensor] = []
        self.sample: list[Tensor] = []
        first = parents[0].steps
        values = first.values[first.nodes[fused.position[equation.at]]]
        for value in values:
            n = value.numel() // value.shape[self.channel]
            chosen = torch.arange(n)
            if n * len(values) > cap:
                chosen = torch.randperm(n, generator=generator)[: -(-cap // len(values))].sort().values
            self.chosen.append(chosen.to(value.device))
            self.sample.append(chosen.to(value.device) * len(value) // n + len(self.sample) * len(value))
        if sum(len(value) for value in values) < _FEW:
            self.sample = list(torch.arange(sum(map(len, self.chosen))).to(self.chosen[0]).split([len(c) for c in self.chosen]))

    def of(self, steps: Steps, node: Node, batch: int, taken: Any = ...) -> Tensor:
        """A network's value at the positions taken, shape (positions, channels); `node` is the fused network's."""
        value = steps.read(steps.nodes[self.fused.position[node]], batch)
        return channels_last(value, self.channel)[self.chosen[batch][taken]]

    @property
    def rectified(self) -> bool:
        """Whether nothing but ReLUs reads the value."""
        users = self.equation.at.users
        return bool(users) and all(operation(u) in ("relu", "relu_") for u in users)

    def target(self, batch: int, taken: Any = ...) -> tuple[Tensor, Tensor | float]:
        """What the writers should compute, and what comes into the sum from elsewhere, shape (positions, channels).

        Together they are the weighted mean of the parents' aligned values; `taken` are some of the positions.
        """
        labelled, rest = self.equation.writers[0].labelled, 0.0
        total: Any = 0.0
        for parent in self.parents:
            total = total + parent.weight * parent.carried(self.of(parent.steps, self.equation.at, batch, taken), labelled)
        for node in self.others:
            rest = rest + self.of(self.fused, node, batch, taken)  # type: ignore[assignment]
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


def run_alongside(
    fused: Steps,
    parents: Sequence[Parent],
    found: Mapping[Node, Equation],
    correct: Callable[[Equation], None],
    *,
    runs_fused: bool = True,
) -> None:
    """Run all networks operation by operation.

    `correct` may change the fused one's tensors, before it computes the operations of an equation. The parents may run alone.
    """
    waiting = {node for e in found.values() for node in e.between}
    for equation in found.values():
        at = fused.position[equation.at]
        fused.keep((r for n in equation.between for r in n.all_input_nodes), at)
        written = {n for w in equation.writers for n in ((w.end,) if runs_fused else (w.node, w.end))}
        for parent in parents:
            parent.steps.keep((parent.steps.nodes[fused.position[n]] for n in written), at)
    for k, node in enumerate(fused.nodes):
        for parent in parents:
            parent.steps.run(parent.steps.nodes[k])
        if node in found:
            correct(found[node])
            for n in found[node].between if runs_fused else ():
                fused.run(n)
        elif runs_fused and node not in waiting:
            fused.run(node)
        for steps in (fused, *(p.steps for p in parents)):
            steps.forget(k)
