"""Recurrent layers and cells: RNN (tanh, relu), LSTM (with and without projections), GRU.

All gates of a unit move together; both axes of the recurrent weight W_hh belong to its group. Signs pass through the gate that
writes the state by a tanh (the only gate of an RNN, the cell gate of an LSTM, the candidate of a GRU), through the columns of
W_hh and through the readers; sigmoid gates do not change sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..network.spec import RedundantBiasPair
from .constraints import Constraints
from .elementwise import is_zero, varies
from .labels import LabelMap, Value
from .linear import opaque, read
from .registry import register_rule, register_sizes

__all__ = ["CELL_KINDS", "register_layer"]


@dataclass(frozen=True)
class CellKind:
    """The kind of a recurrent cell.

    Attributes
    ----------
    gates : int
        Number of gates.
    writer : int
        The gate that writes the state.
    odd : bool
        Whether it does so through an odd function; otherwise through a ReLU.
    has_memory : bool
        Whether there is a memory cell besides the state.
    summed : int or None
        Number of gates whose biases enter as the sum b_ih + b_hh; None for all.
    """

    gates: int
    writer: int
    odd: bool = True
    has_memory: bool = False
    summed: int | None = None


CELL_KINDS = {
    "rnn_tanh": CellKind(1, 0),
    "rnn_relu": CellKind(1, 0, odd=False),
    "lstm": CellKind(4, 2, has_memory=True),
    "gru": CellKind(3, 2, summed=2),
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
    """The parameters of one cell; None for those that it does not have."""

    w_ih: Value
    w_hh: Value
    b_ih: Value | None = None
    b_hh: Value | None = None
    w_hr: Value | None = None

    @property
    def present(self) -> list[Value]:
        """All parameters that are not None."""
        return [v for v in (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr) if v is not None]


def _cell(
    constraints: Constraints, kind: CellKind, x: Value, weights: Weights, initial: Sequence[Value], layer_index: int = 0
) -> tuple[Tensor, Tensor] | None:
    """Constrain one cell, and return the labels of its new state and memory, or None if the weights have no labels."""
    axes = {id(v): v.label_map(0) for v in weights.present}
    if any(label_map is None for label_map in axes.values()) or any(
        v.label_map(1) is None for v in weights.present if len(v.shape) == 2
    ):
        opaque(constraints, "a recurrent layer with constant weights", x, *weights.present, *initial)
        return None
    constraints.freeze(read(constraints, x, -1, weights.w_ih, 1), "a recurrent layer along units")
    units: Tensor = weights.w_ih.label_map(0).vector(0).chunk(kind.gates)[kind.writer]  # type: ignore[union-attr]
    (constraints.no_scale if kind.odd else constraints.no_sign)(LabelMap(units))
    for value in weights.present[: 4 if weights.b_ih is not None else 2]:
        rows = value.label_map(0).vector(0)  # type: ignore[union-attr]
        constraints.produces(rows)
        for gate, labels in enumerate(rows.chunk(kind.gates)):
            constraints.unite(units, labels)
            if gate == kind.writer:
                constraints.same_factor(units, labels)
            else:
                constraints.rigid(LabelMap(labels))
    state = units
    if weights.w_hr is not None:
        _unite_columns(constraints, units, weights.w_hr)
        state = weights.w_hr.label_map(0).vector(0)  # type: ignore[union-attr]
        constraints.produces(state)
    _unite_columns(constraints, state, weights.w_hh)
    _record_weights(constraints, kind, weights, len(units))
    constraints.state_units += [units.numpy(), state.numpy()]
    for initial_state, labels in zip(initial, (state, units), strict=False):
        _unite_initial(constraints, initial_state, layer_index, labels)
    return state, units


def _name_groups(constraints: Constraints, weights: Weights, level: str) -> None:
    """Name the groups of one level "rnn.l0" or "rnn.l0_reverse", and those of its projection "rnn.l0_proj"."""
    if weights.w_ih.name:
        constraints.group_suffixes[weights.w_ih.name] = level
    if weights.w_hr is not None and weights.w_hr.name:
        constraints.group_suffixes[weights.w_hr.name] = f"{level}_proj"


def _unite_columns(constraints: Constraints, units: Tensor, weight: Value) -> None:
    """Unite units with the columns of a weight that reads them."""
    columns = weight.label_map(1).vector(1)  # type: ignore[union-attr]
    constraints.unite(units, columns)
    constraints.opposite_factor(units, columns)
    constraints.consumes(columns)


def _record_weights(constraints: Constraints, kind: CellKind, weights: Weights, size: int) -> None:
    """Record the recurrent tensor, and the biases that enter as sums."""
    if weights.w_hh.name:
        constraints.recurrent_tensors.add(weights.w_hh.name)
    if weights.b_ih is not None and weights.b_hh is not None and weights.b_ih.name and weights.b_hh.name:
        gates = kind.gates if kind.summed is None else kind.summed
        pair = RedundantBiasPair(weights.b_ih.name, weights.b_hh.name, np.arange(gates * size))
        if not any((p.bias, p.redundant_bias) == (pair.bias, pair.redundant_bias) for p in constraints.bias_pairs):
            constraints.bias_pairs.append(pair)


def _unite_initial(constraints: Constraints, state: Value, layer_index: int, units: Tensor) -> None:
    """Unite units with those of an initial state: zeros, a parameter, a computed value or an input of the network."""
    last = len(state.shape) - 1
    has_units = False
    for label_map in state.label_maps:
        if last in label_map.dims or (state.shape[last] == 1 and label_map is state.label_map(last)):
            if set(label_map.dims) - {0, last} or (0 in label_map.dims and last == 1):
                constraints.freeze([label_map, LabelMap(units)], "an initial state that varies along more than its units")
            else:
                labels = label_map.ids[layer_index, 0] if last == 2 else label_map.ids[0]
                constraints.unite(labels, units)
                constraints.same_factor(labels, units)
            has_units = True
        elif state.is_weight:
            constraints.fix(label_map)
    if has_units or is_zero(state):
        return
    if varies([state], (last,), state.shape):
        constant = state.constant is not None
        why = "an initial state that is constant and not zero" if constant else "an initial state that is given by the caller"
        constraints.freeze([LabelMap(units)], why)
    else:
        constraints.rigid(LabelMap(units))


def register_layer(name: str) -> None:
    """Register the rule of a recurrent layer."""
    kind = CELL_KINDS[name]

    def run_levels(
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
        """Run level after level, forwards and backwards: the gates of a unit move together."""
        states = [initial] if isinstance(initial, Value) else list(initial)
        directions = 2 if bidirectional else 1
        n_weights = len(parameters) // (num_layers * directions)
        finals: list[list[Tensor]] = [[], []]
        for level in range(num_layers):
            outputs = []
            for direction in range(directions):
                layer_index = level * directions + direction
                cell_weights: list[Value | None] = list(parameters[layer_index * n_weights : (layer_index + 1) * n_weights])
                if not has_biases:
                    cell_weights[2:2] = [None, None]
                weights = Weights(*cell_weights)  # type: ignore[arg-type]
                _name_groups(constraints, weights, f"l{level}" + "_reverse" * direction)
                cell = _cell(constraints, kind, x, weights, states, layer_index)
                if cell is None:
                    return Value(())
                for labels, final in zip(cell, finals, strict=True):
                    final.append(labels)
                outputs.append(cell[0])
            labels = torch.cat(outputs)
            shape = (*x.shape[:-1], len(labels))
            x = Value(shape, (LabelMap.along(labels, len(shape) - 1, shape),))
        return x, *(_final(ids, state) for ids, state in zip(finals, states, strict=False))

    register_rule(f"aten::{name}")(run_levels)


def _final(ids: Sequence[Tensor], initial: Value) -> Value:
    """Return the state after the last step: one row of units per layer and direction."""
    labels = torch.stack(list(ids))
    if len(initial.shape) == 3:
        labels = labels[:, None]
    return Value(initial.shape, (LabelMap(labels.expand(initial.shape)),))


def _register_cell(name: str) -> None:
    """Register the rule of a recurrent cell."""
    kind = CELL_KINDS[name]

    def step(
        constraints: Constraints,
        x: Value,
        initial: Value | Sequence[Value],
        w_ih: Value,
        w_hh: Value,
        b_ih: Value | None = None,
        b_hh: Value | None = None,
    ) -> Value | tuple[Value, ...]:
        """Run one step of a cell: the gates of a unit move together."""
        states = [initial] if isinstance(initial, Value) else list(initial)
        cell = _cell(constraints, kind, x, Weights(w_ih, w_hh, b_ih, b_hh), states)
        if cell is None:
            return Value(())
        shape = (*x.shape[:-1], len(cell[0]))
        out = Value(shape, (LabelMap.along(cell[0], len(shape) - 1, shape),))
        return (out, Value(shape, out.label_maps)) if kind.has_memory else out

    register_rule(f"aten::{name}_cell")(step)


for _name in CELL_KINDS:
    register_layer(_name)
    _register_cell(_name)
