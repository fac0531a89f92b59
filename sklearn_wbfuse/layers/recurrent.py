"""Recurrent layers and cells: RNN (tanh, relu), LSTM (with and without projections), GRU.

All gates of a unit move together; the recurrent weight W_hh carries the group on both axes. Signs go with the gate that
writes the state through a tanh (the only gate of an RNN, the cell gate of an LSTM, the candidate of a GRU), with the columns
of W_hh and with the readers; sigmoid gates keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..network.spec import RedundantBiasPair
from .elementwise import is_zero, varies
from .labels import Constraints, LabelMap, Value
from .linear import opaque, read
from .registry import register_rule, register_sizes

__all__: list[str] = []


@dataclass(frozen=True)
class Kind:
    """A recurrent cell: how many gates it has, which of them writes the state, through an odd function or a ReLU."""

    gates: int
    writer: int
    odd: bool = True
    cell: bool = False
    summed: int | None = None
    """The biases of so many gates are seen as sums b_ih + b_hh alone; all of them by default."""


KINDS = {
    "rnn_tanh": Kind(1, 0),
    "rnn_relu": Kind(1, 0, odd=False),
    "lstm": Kind(4, 2, cell=True),
    "gru": Kind(3, 2, summed=2),
}
for _layer, _gates in ((nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)):
    register_sizes(
        _layer,
        input_size=("weight_ih_l0", 1),
        hidden_size=("weight_ih_l0", 0, _gates),
        proj_size=("weight_hr_l0", 0),
    )
for _module in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
    register_sizes(_module, input_size=("weight_ih", 1), hidden_size=("weight_hh", 1))


@dataclass(frozen=True, eq=False)
class Weights:
    """The parameters of one cell."""

    w_ih: Value
    w_hh: Value
    b_ih: Value | None = None
    b_hh: Value | None = None
    w_hr: Value | None = None

    @property
    def given(self) -> list[Value]:
        """All that there are."""
        return [v for v in (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr) if v is not None]


def _cell(
    constraints: Constraints, kind: Kind, x: Value, weights: Weights, initial: Sequence[Value], slot: int = 0
) -> tuple[Tensor, Tensor] | None:
    """Labels of the units of the state that is returned and of the memory, or None if the weights have no labels."""
    axes = {id(v): v.layer(0) for v in weights.given}
    if any(layer is None for layer in axes.values()) or any(v.layer(1) is None for v in weights.given if len(v.shape) == 2):
        opaque(constraints, "a recurrent layer with constant weights", x, *weights.given, *initial)
        return None
    kept = read(constraints, x, -1, weights.w_ih, 1)
    constraints.freeze(kept, "a recurrent layer along units")
    units: Tensor = weights.w_ih.layer(0).vector(0).chunk(kind.gates)[kind.writer]  # type: ignore[union-attr]
    (constraints.no_scale if kind.odd else constraints.no_sign)(LabelMap(units))
    for value in weights.given[: 4 if weights.b_ih is not None else 2]:
        rows = value.layer(0).vector(0)  # type: ignore[union-attr]
        constraints.produces(rows)
        for gate, labels in enumerate(rows.chunk(kind.gates)):
            constraints.unite(units, labels)
            if gate == kind.writer:
                constraints.same_factor(units, labels)
            else:
                constraints.rigid(LabelMap(labels))
    state = units
    if weights.w_hr is not None:
        _read_by(constraints, units, weights.w_hr)
        state = weights.w_hr.layer(0).vector(0)  # type: ignore[union-attr]
        constraints.produces(state)
    _read_by(constraints, state, weights.w_hh)
    _remember(constraints, kind, weights, len(units))
    constraints.states += [units.numpy(), state.numpy()]
    for given, labels in zip(initial, (state, units), strict=False):
        _start_from(constraints, given, slot, labels)
    return state, units


def _name_groups(constraints: Constraints, weights: Weights, level: str) -> None:
    """The groups of one level are called "rnn.l0", "rnn.l0_reverse", and what a projection computes "rnn.l0_proj"."""
    if weights.w_ih.name:
        constraints.suffixes[weights.w_ih.name] = level
    if weights.w_hr is not None and weights.w_hr.name:
        constraints.suffixes[weights.w_hr.name] = f"{level}_proj"


def _read_by(constraints: Constraints, units: Tensor, weight: Value) -> None:
    columns = weight.layer(1).vector(1)  # type: ignore[union-attr]
    constraints.unite(units, columns)
    constraints.opposite_factor(units, columns)
    constraints.consumes(columns)


def _remember(constraints: Constraints, kind: Kind, weights: Weights, size: int) -> None:
    """Which tensor is recurrent, and which biases are seen as sums."""
    if weights.w_hh.name:
        constraints.recurrent.add(weights.w_hh.name)
    if weights.b_ih is not None and weights.b_hh is not None and weights.b_ih.name and weights.b_hh.name:
        gates = kind.gates if kind.summed is None else kind.summed
        pair = RedundantBiasPair(weights.b_ih.name, weights.b_hh.name, np.arange(gates * size))
        if not any((s.kept, s.other) == (pair.kept, pair.other) for s in constraints.bias_pairs):
            constraints.bias_pairs.append(pair)


def _start_from(constraints: Constraints, given: Value, slot: int, units: Tensor) -> None:
    """The initial state of one cell: zeros, a parameter, computed by the network, or given by the caller."""
    last = len(given.shape) - 1
    found = False
    for layer in given.layers:
        if last in layer.dims or (given.shape[last] == 1 and layer is given.layer(last)):
            if set(layer.dims) - {0, last} or (0 in layer.dims and last == 1):
                constraints.freeze([layer, LabelMap(units)], "an initial state that varies along more than its units")
            else:
                labels = layer.ids[slot, 0] if last == 2 else layer.ids[0]
                constraints.unite(labels, units)
                constraints.same_factor(labels, units)
            found = True
        elif given.is_weight:
            constraints.fix(layer)
    if found or is_zero(given):
        return
    if varies([given], (last,), given.shape):
        constant = given.constant is not None
        why = "an initial state that is constant and not zero" if constant else "an initial state that is given by the caller"
        constraints.freeze([LabelMap(units)], why)
    else:
        constraints.rigid(LabelMap(units))


def _sequence(name: str) -> None:
    kind = KINDS[name]

    def layer(
        constraints: Constraints,
        x: Value,
        initial: Value | Sequence[Value],
        parameters: Sequence[Value],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Value | tuple[Value, ...]:
        """Level after level, forwards and backwards: the gates of a unit move together."""
        states = [initial] if isinstance(initial, Value) else list(initial)
        directions = 2 if bidirectional else 1
        each = len(parameters) // (num_layers * directions)
        finals: list[list[Tensor]] = [[], []]
        for level in range(num_layers):
            outputs = []
            for direction in range(directions):
                slot = level * directions + direction
                own: list[Value | None] = list(parameters[slot * each : (slot + 1) * each])
                if not has_biases:
                    own[2:2] = [None, None]
                weights = Weights(*own)  # type: ignore[arg-type]
                _name_groups(constraints, weights, f"l{level}" + "_reverse" * direction)
                cell = _cell(constraints, kind, x, weights, states, slot)
                if cell is None:
                    return Value(())
                for k in (0, 1):
                    finals[k].append(cell[k])
                outputs.append(cell[0])
            labels = torch.cat(outputs)
            shape = (*x.shape[:-1], len(labels))
            x = Value(shape, (LabelMap.along(labels, len(shape) - 1, shape),))
        return x, *(_final(ids, given) for ids, given in zip(finals, states, strict=False))

    register_rule(f"aten::{name}")(layer)


def _final(ids: Sequence[Tensor], given: Value) -> Value:
    """The state after the last step: one row of units per layer and direction."""
    labels = torch.stack(list(ids))
    if len(given.shape) == 3:
        labels = labels[:, None]
    return Value(given.shape, (LabelMap(labels.expand(given.shape)),))


def _step(name: str) -> None:
    kind = KINDS[name]

    def step(
        constraints: Constraints,
        x: Value,
        initial: Value | Sequence[Value],
        w_ih: Value,
        w_hh: Value,
        b_ih: Value | None = None,
        b_hh: Value | None = None,
    ) -> Value | tuple[Value, ...]:
        """One step of a cell: the gates of a unit move together."""
        states = [initial] if isinstance(initial, Value) else list(initial)
        cell = _cell(constraints, kind, x, Weights(w_ih, w_hh, b_ih, b_hh), states)
        if cell is None:
            return Value(())
        shape = (*x.shape[:-1], len(cell[0]))
        out = Value(shape, (LabelMap.along(cell[0], len(shape) - 1, shape),))
        return (out, Value(shape, out.layers)) if kind.cell else out

    register_rule(f"aten::{name}_cell")(step)


for _name in KINDS:
    _sequence(_name)
    _step(_name)
