"""Recurrent layers as affine maps: the gates of every step, of input and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.functional import linear

from ..layers.operations import operation
from ..layers.recurrent import CELL_KINDS
from .recording import Recording
from .runner import Runner

__all__ = ["Cell", "GateBlock", "Sequences", "cells_of", "levels"]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class GateBlock:
    """Gates that are one affine map of input and state, of either, or of both; from row `start` to `stop` of all."""

    start: int
    stop: int
    reads_input: bool
    reads_state: bool

    @property
    def rows(self) -> slice:
        """The part's rows."""
        return slice(self.start, self.stop)


@dataclass(eq=False)
class Cell:
    """One level and direction of a recurrent layer; sequences have shape (steps, batch, features), backwards ones reversed.

    Attributes
    ----------
    kind : {"rnn_tanh", "rnn_relu", "lstm", "gru"}
    w_ih, w_hh : str
    b_ih, b_hh, w_hr : str or None
    level, slot : int
        `slot` counts levels and directions.
    reverse : bool
    """

    kind: str
    w_ih: str
    w_hh: str
    b_ih: str | None
    b_hh: str | None
    w_hr: str | None
    level: int
    slot: int
    reverse: bool

    @property
    def names(self) -> list[str]:
        """Its tensors, in the order of the operation."""
        return [n for n in (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr) if n is not None]

    def run(self, state: State, x: Tensor, initial: Sequence[Tensor]) -> Tensor:
        """The states after each step, as the network computes them."""
        start = self.start(initial)
        hidden = start if self.kind == "lstm" else start[0]
        function = getattr(torch.ops.aten, self.kind).input
        return function(x, hidden, [state[n] for n in self.names], self.b_ih is not None, 1, 0.0, False, False, False)[0]

    def start(self, initial: Sequence[Tensor]) -> list[Tensor]:
        """The states before the first step, shape (1, batch, units)."""
        return [s[self.slot : self.slot + 1].contiguous() for s in initial]

    def before(self, states: Tensor, initial: Sequence[Tensor]) -> Tensor:
        """The state that each step starts from."""
        return torch.cat([self.start(initial)[0].expand(1, *states.shape[1:]), states[:-1]])

    def halves(self, state: State, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """What input and state each contribute to the gates, biases included."""
        b_ih, b_hh = (None if name is None else state[name] for name in (self.b_ih, self.b_hh))
        return linear(x, state[self.w_ih], b_ih), linear(h, state[self.w_hh], b_hh)

    def gates(self, from_input: Tensor, from_state: Tensor) -> Tensor:
        """All gates' rows; both halves of a GRU's candidate apart, since its reset gate stands between them."""
        if self.kind != "gru":
            return from_input + from_state
        n = from_input.shape[-1] // 3 * 2
        return torch.cat([from_input[..., :n] + from_state[..., :n], from_input[..., n:], from_state[..., n:]], -1)

    def parts(self, rows: int) -> list[GateBlock]:
        """The affine maps that make up all rows of the gates."""
        if self.kind != "gru":
            return [GateBlock(0, rows, True, True)]
        n = rows // 4
        return [GateBlock(0, 2 * n, True, True), GateBlock(2 * n, 3 * n, True, False), GateBlock(3 * n, rows, False, True)]

    def states(self, state: State, gates: Tensor, initial: Sequence[Tensor]) -> Tensor:
        """The states that given gates lead to."""
        start = self.start(initial)
        h, c = (s[0].expand(gates.shape[1], -1) for s in (start[0], start[-1]))
        found = []
        for g in gates:
            if self.kind == "lstm":
                i, f, cell, o = g.chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * cell.tanh()
                h = o.sigmoid() * c.tanh()
                if self.w_hr is not None:
                    h = h @ state[self.w_hr].T
            elif self.kind == "gru":
                r, z, a, b = g.chunk(4, -1)
                h = torch.lerp((a + r.sigmoid() * b).tanh(), h, z.sigmoid())
            else:
                h = g.tanh() if self.kind == "rnn_tanh" else g.relu()
            found.append(h)
        return torch.stack(found)

    def change(self, state: dict[str, Tensor], part: GateBlock, matrix: Tensor, offset: Tensor | None) -> None:
        """Add to the weights and bias of a part; `matrix` has the columns of the input first, then those of the state."""
        rows, at = part.rows, 0
        if not part.reads_input:  # the half of a GRU's candidate that the state computes
            n = matrix.shape[0]
            rows = slice(2 * n, 3 * n)
        for name, is_read in ((self.w_ih, part.reads_input), (self.w_hh, part.reads_state)):
            if is_read:
                width = state[name].shape[1]
                _add(state, name, rows, matrix[:, at : at + width])
                at += width
        bias = self.b_ih if part.reads_input else self.b_hh
        if offset is not None and bias is not None:
            _add(state, bias, rows, offset)


def _add(state: dict[str, Tensor], name: str, rows: slice, value: Tensor) -> None:
    state[name] = state[name].clone()
    state[name][rows] += value


def cells_of(node: Node, parameters: Mapping[Node, str]) -> list[Cell]:
    """The cells of a recurrent operation, level by level; none of another operation, or if a weight is computed."""
    kind = operation(node)
    if kind not in CELL_KINDS or node.target._overloadname != "input":  # type: ignore[union-attr]
        return []
    arguments: tuple[Any, ...] = node.args
    weights, has_biases, levels, _, _, bidirectional = arguments[2:8]
    if any(w not in parameters for w in weights):
        return []
    directions = 2 if bidirectional else 1
    each = len(weights) // (levels * directions)
    cells = []
    for slot in range(levels * directions):
        names: list[Any] = [parameters[w] for w in weights[slot * each : (slot + 1) * each]]
        if not has_biases:
            names[2:2] = [None, None]
        w_ih, w_hh, b_ih, b_hh, w_hr = names + [None] * (5 - len(names))
        cells.append(Cell(kind, w_ih, w_hh, b_ih, b_hh, w_hr, slot // directions, slot, slot % directions == 1))
    return cells


def levels(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each level, one for each direction."""
    return [[c for c in cells if c.level == level] for level in range(cells[-1].level + 1)]


class Sequences:
    """What the cells of one recurrent operation of a network read, level by level.

    Parameters
    ----------
    node : Node
    steps : Steps or Recording
        One that holds what the operation reads.
    """

    def __init__(self, node: Node, runner: Runner | Recording):
        self.state, batch_first = runner.state, bool(node.args[-1])
        given = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
        self.inputs: list[Tensor] = []
        self.initial: list[list[Tensor]] = []
        for batch in range(runner.n_batches):
            x, starts = runner.read(node.args[0], batch), [runner.read(n, batch) for n in given]
            self.inputs.append(x.transpose(0, 1) if batch_first else x)
            self.initial.append(starts)

    def cut(self, rows: int) -> Sequences:
        """The same for so many sequences of each batch that all their steps are at most so many rows."""
        part = object.__new__(Sequences)
        runner, count = self.inputs[0].shape[0], len(self.inputs)
        kept = max(rows // (runner * count), 5)
        part.state = self.state
        part.inputs = [x[:, :kept].contiguous() for x in self.inputs]
        part.initial = [[s[:, :kept] for s in starts] for starts in self.initial]
        return part

    def read(self, cell: Cell) -> list[Tensor]:
        """The inputs in the order in which a cell takes them, batch by batch."""
        return [x.flip(0) for x in self.inputs] if cell.reverse else self.inputs

    def run(self, cell: Cell, state: State | None = None) -> list[Tensor]:
        """The states after each step, with other tensors if given."""
        own = self.state if state is None else state
        return [cell.run(own, x, start) for x, start in zip(self.read(cell), self.initial, strict=True)]

    def forced(self, cell: Cell) -> list[tuple[Tensor, Tensor]]:
        """The input of each step, and the state that it starts from."""
        runs = zip(self.read(cell), self.run(cell), self.initial, strict=True)
        return [(x, cell.before(states, start)) for x, states, start in runs]

    def advance(self, level: Sequence[Cell]) -> None:
        """To the next level."""
        outs = [[h.flip(0) for h in self.run(c)] if c.reverse else self.run(c) for c in level]
        self.inputs = [torch.cat(parts, 2) for parts in zip(*outs, strict=True)]
