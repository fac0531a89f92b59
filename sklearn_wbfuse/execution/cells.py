"""The cells of recurrent layers, whose gates are affine maps of input and state at every step."""

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
from ..network.types import State
from .recording import Recording
from .runner import Runner

__all__ = ["Cell", "GateBlock", "Sequences", "cells_of", "levels"]


@dataclass(frozen=True)
class GateBlock:
    """Gates that are one affine map of the input, of the state, or of both: the rows from `start` to `stop` of all gates."""

    start: int
    stop: int
    reads_input: bool
    reads_state: bool

    @property
    def rows(self) -> slice:
        """The rows of the block."""
        return slice(self.start, self.stop)


@dataclass(eq=False)
class Cell:
    """One level and direction of a recurrent layer. Sequences have shape (steps, batch, features), reversed for `reverse`.

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
        """The names of its tensors, in the order of the operation's arguments."""
        return [n for n in (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr) if n is not None]

    def run(self, state: State, x: Tensor, initial: Sequence[Tensor]) -> Tensor:
        """Compute the states after each step, as the network does."""
        start = self.start(initial)
        hidden = start if self.kind == "lstm" else start[0]
        function = getattr(torch.ops.aten, self.kind).input
        return function(x, hidden, [state[n] for n in self.names], self.b_ih is not None, 1, 0.0, False, False, False)[0]

    def start(self, initial: Sequence[Tensor]) -> list[Tensor]:
        """Return the states before the first step, of shape (1, batch, units)."""
        return [s[self.slot : self.slot + 1].contiguous() for s in initial]

    def before(self, states: Tensor, initial: Sequence[Tensor]) -> Tensor:
        """Return the state before each step."""
        return torch.cat([self.start(initial)[0].expand(1, *states.shape[1:]), states[:-1]])

    def halves(self, state: State, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contributions of input and state to the gates, biases included."""
        b_ih, b_hh = (None if name is None else state[name] for name in (self.b_ih, self.b_hh))
        return linear(x, state[self.w_ih], b_ih), linear(h, state[self.w_hh], b_hh)

    def gates(self, from_input: Tensor, from_state: Tensor) -> Tensor:
        """Return the rows of all gates; both halves of a GRU's candidate separately, since the reset gate multiplies one."""
        if self.kind != "gru":
            return from_input + from_state
        n = from_input.shape[-1] // 3 * 2
        return torch.cat([from_input[..., :n] + from_state[..., :n], from_input[..., n:], from_state[..., n:]], -1)

    def blocks(self, rows: int) -> list[GateBlock]:
        """Return the affine maps of which the rows of the gates consist."""
        if self.kind != "gru":
            return [GateBlock(0, rows, True, True)]
        n = rows // 4
        return [GateBlock(0, 2 * n, True, True), GateBlock(2 * n, 3 * n, True, False), GateBlock(3 * n, rows, False, True)]

    def states(self, state: State, gates: Tensor, initial: Sequence[Tensor]) -> Tensor:
        """Compute the states that follow from gates."""
        start = self.start(initial)
        h, c = (s[0].expand(gates.shape[1], -1) for s in (start[0], start[-1]))
        states = []
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
            states.append(h)
        return torch.stack(states)

    def change(self, state: dict[str, Tensor], block: GateBlock, matrix: Tensor, offset: Tensor | None) -> None:
        """Add to the weights and bias of a block; `matrix` has the columns of the input first, then those of the state."""
        rows, column = block.rows, 0
        if not block.reads_input:  # the half of a GRU's candidate that depends on the state
            n = matrix.shape[0]
            rows = slice(2 * n, 3 * n)
        for name, is_read in ((self.w_ih, block.reads_input), (self.w_hh, block.reads_state)):
            if is_read:
                width = state[name].shape[1]
                _add(state, name, rows, matrix[:, column : column + width])
                column += width
        bias = self.b_ih if block.reads_input else self.b_hh
        if offset is not None and bias is not None:
            _add(state, bias, rows, offset)


def _add(state: dict[str, Tensor], name: str, rows: slice, value: Tensor) -> None:
    state[name] = state[name].clone()
    state[name][rows] += value


def cells_of(node: Node, parameters: Mapping[Node, str]) -> list[Cell]:
    """Return the cells of a recurrent operation, level by level; none for other operations, or if a weight is computed."""
    kind = operation(node)
    if kind not in CELL_KINDS or node.target._overloadname != "input":  # type: ignore[union-attr]
        return []
    arguments: tuple[Any, ...] = node.args
    weights, has_biases, levels, _, _, bidirectional = arguments[2:8]
    if any(w not in parameters for w in weights):
        return []
    directions = 2 if bidirectional else 1
    n_tensors = len(weights) // (levels * directions)
    cells = []
    for slot in range(levels * directions):
        names: list[Any] = [parameters[w] for w in weights[slot * n_tensors : (slot + 1) * n_tensors]]
        if not has_biases:
            names[2:2] = [None, None]
        w_ih, w_hh, b_ih, b_hh, w_hr = names + [None] * (5 - len(names))
        cells.append(Cell(kind, w_ih, w_hh, b_ih, b_hh, w_hr, slot // directions, slot, slot % directions == 1))
    return cells


def levels(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells of each level, one for each direction."""
    return [[c for c in cells if c.level == level] for level in range(cells[-1].level + 1)]


class Sequences:
    """The inputs of the cells of one recurrent operation of a network, level by level.

    Parameters
    ----------
    node : Node
    runner : Runner or Recording
        One that holds the operands of the operation.
    """

    def __init__(self, node: Node, runner: Runner | Recording):
        self.state, batch_first = runner.state, bool(node.args[-1])
        initial_nodes = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
        self.inputs: list[Tensor] = []
        self.initial: list[list[Tensor]] = []
        for batch in range(runner.n_batches):
            x, starts = runner.read(node.args[0], batch), [runner.read(n, batch) for n in initial_nodes]
            self.inputs.append(x.transpose(0, 1) if batch_first else x)
            self.initial.append(starts)

    def cut(self, rows: int) -> Sequences:
        """Return the first sequences of each batch, such that all their steps are at most `rows` rows."""
        result = object.__new__(Sequences)
        n_steps, n_batches = self.inputs[0].shape[0], len(self.inputs)
        n_sequences = max(rows // (n_steps * n_batches), 5)
        result.state = self.state
        result.inputs = [x[:, :n_sequences].contiguous() for x in self.inputs]
        result.initial = [[s[:, :n_sequences] for s in starts] for starts in self.initial]
        return result

    def read(self, cell: Cell) -> list[Tensor]:
        """Return the inputs in the order in which a cell reads them, batch by batch."""
        return [x.flip(0) for x in self.inputs] if cell.reverse else self.inputs

    def run(self, cell: Cell, state: State | None = None) -> list[Tensor]:
        """Compute the states after each step, optionally with other tensors."""
        state = self.state if state is None else state
        return [cell.run(state, x, start) for x, start in zip(self.read(cell), self.initial, strict=True)]

    def forced(self, cell: Cell) -> list[tuple[Tensor, Tensor]]:
        """Return the input of each step, and the state before it."""
        runs = zip(self.read(cell), self.run(cell), self.initial, strict=True)
        return [(x, cell.before(states, start)) for x, states, start in runs]

    def advance(self, level: Sequence[Cell]) -> None:
        """Advance to the next level."""
        outs = [[h.flip(0) for h in self.run(c)] if c.reverse else self.run(c) for c in level]
        self.inputs = [torch.cat(parts, 2) for parts in zip(*outs, strict=True)]
