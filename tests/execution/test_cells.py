"""Recurrent layers as affine maps: cells against the modules that they are of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import KINDS
from running import outputs, steps_of
from torch import nn
from torch.fx import Graph

from sklearn_wbfuse.execution.cells import Sequences, cells_of, levels

aten = torch.ops.aten


class Layer(nn.Module):
    """A recurrent layer that is given its states, or not, and returns all that it computes; inputs of two batches."""

    def __init__(self, kind, shape, batch_first, is_given, seed, **options):
        super().__init__()
        torch.manual_seed(seed)
        build, _, more, *_ = KINDS[kind]
        self.rnn = build(shape[-1], **options, **more, batch_first=batch_first).double().eval()
        batch = () if len(shape) == 2 else (shape[0 if batch_first else 1],)
        sizes = [options.get("proj_size") or options["hidden_size"], options["hidden_size"]][: 1 + (kind == "lstm")]
        slots = options["num_layers"] * (1 + options["bidirectional"])
        shapes = [shape, *((slots, *batch, size) for size in sizes if is_given)]
        self.batches = [tuple(torch.randn(*s, dtype=torch.float64) for s in shapes) for _ in range(2)]

    def forward(self, x, *states):
        return self.rnn(x, (states[0] if len(states) == 1 else states) if states else None)


@st.composite
def layers(draw, kind):
    """A layer with all options, and the shape of its input: a batch of sequences, or one sequence alone."""
    hidden = draw(st.integers(2, 4))
    shape = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    options = {"hidden_size": hidden, "num_layers": draw(st.integers(1, 3))}
    options |= {"bidirectional": draw(st.booleans()), "bias": draw(st.booleans())}
    if kind == "lstm" and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    return Layer(kind, shape, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 99)), **options)


def prepared(network, device):
    """All values of the layer, its cells, and their sequences."""
    runner = steps_of(network, network.batches, device)
    for node in runner.nodes:
        runner.run(node)
    (node_and_cells,) = ((node, cells) for node in runner.nodes if (cells := cells_of(node, runner.parameters)))
    return runner, node_and_cells[1], Sequences(node_and_cells[0], runner)


def assert_reproduced(runner, states, sequences, rnn):
    """What the module returns is the last of the sequences, and the last state of every cell."""
    for batch, sequence in enumerate(sequences.inputs):
        y, h, *_ = outputs(runner, batch)
        if y.dim() == 2:
            y, h = y[:, None], h[:, None]
        elif rnn.batch_first:
            y = y.transpose(0, 1)
        torch.testing.assert_close(sequence, y)
        torch.testing.assert_close(torch.stack([cell_states[batch][-1] for cell_states in states]), h)


def assert_gates_lead_to(states, cell, runner, sequences):
    for cell_states, (x, h), initial in zip(states, sequences.forced(cell), sequences.initial, strict=True):
        torch.testing.assert_close(h, torch.cat([initial[0][cell.slot][None], cell_states[:-1]]))
        gates = cell.gates(*cell.halves(runner.state, x, h))
        torch.testing.assert_close(cell.states(runner.state, gates, initial), cell_states)


def assert_changes(cell, runner, sequences, seed):
    """By a matrix of all that a part reads, and by an offset if one is given and there are biases."""
    rng, (x, h) = np.random.default_rng(seed), sequences.forced(cell)[0]
    gates = cell.gates(*cell.halves(runner.state, x, h))
    changed, state_before, added = dict(runner.state), {n: t.clone() for n, t in runner.state.items()}, torch.zeros_like(gates)
    parts = cell.blocks(gates.shape[-1])
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(gates.shape[-1]))
    for part in parts:
        read = torch.cat([t for t, is_read in ((x, part.reads_input), (h, part.reads_state)) if is_read], -1)
        matrix = torch.as_tensor(rng.normal(size=(part.stop - part.start, read.shape[-1]))).to(gates)
        offset = torch.as_tensor(rng.normal(size=len(matrix))).to(gates) if rng.random() < 0.7 else None
        cell.change(changed, part, matrix, offset)
        added[..., part.rows] = read @ matrix.T
        if offset is not None and cell.b_ih is not None:
            added[..., part.rows] += offset
    torch.testing.assert_close(cell.gates(*cell.halves(changed, x, h)), gates + added)
    for name, tensor in state_before.items():
        assert torch.equal(runner.state[name], tensor)


def assert_cells(kind, network, device):
    """Level by level the cells reproduce the module, their gates lead to their states, and change by what is added."""
    runner, cells, sequences = prepared(network, device)
    rnn, states = network.rnn, []
    assert [(c.kind, c.names) for c in cells] == [(kind, [f"rnn.{n}" for n in names]) for names in rnn._all_weights]
    for level in levels(cells):
        assert [cell.reverse for cell in level] == [False, True][: 1 + rnn.bidirectional]
        for cell in level:
            states.append(sequences.run(cell))
            assert_gates_lead_to(states[-1], cell, runner, sequences)
            assert_changes(cell, runner, sequences, cell.slot)
        sequences.advance(level)
    assert_reproduced(runner, states, sequences, rnn)


@pytest.mark.parametrize("kind", KINDS)
@given(drawn=st.data())
def test_cells(device, kind, drawn):
    assert_cells(kind, drawn.draw(layers(kind)), device)


def test_projections_without_biases(device):
    options = {"hidden_size": 3, "num_layers": 2, "bidirectional": True, "bias": False, "proj_size": 2}
    assert_cells("lstm", Layer("lstm", (2, 3, 4), True, True, 0, **options), device)


def test_other_tensors(device):
    """A cell runs with the tensors it is given, else with those that the network has at the time."""
    network = Layer("gru", (2, 3, 4), False, True, 0, hidden_size=3, num_layers=1, bidirectional=False)
    runner, (cell,), sequences = prepared(network, device)
    before, zeros = sequences.run(cell), {n: torch.zeros_like(t) for n, t in runner.state.items()}
    expected = [initial[0][0] / 2 for initial in sequences.initial]  # half of the state is kept, the candidate is 0
    torch.testing.assert_close([states[0] for states in sequences.run(cell, zeros)], expected)
    torch.testing.assert_close(sequences.run(cell), before)
    runner.state.update(zeros)
    torch.testing.assert_close([states[0] for states in sequences.run(cell)], expected)


def test_packed_sequences_and_computed_weights():
    spec = Graph()
    x, h, sizes, *weights = (spec.placeholder(n) for n in ("x", "h", "sizes", "w_ih", "w_hh"))
    options = (False, 1, 0.0, False, False)
    parameters = {w: w.name for w in weights}
    (cell,) = cells_of(spec.call_function(aten.gru.input, (x, h, weights, *options, False)), parameters)
    assert cell.names == ["w_ih", "w_hh"]
    assert cells_of(spec.call_function(aten.gru.data, (x, sizes, h, weights, *options)), parameters) == []
    assert cells_of(spec.call_function(aten.lstm.data, (x, sizes, [h, h], weights, *options)), parameters) == []
    computed = spec.call_function(aten.neg.default, (weights[0],))
    node = spec.call_function(aten.gru.input, (x, h, [computed, weights[1]], *options, False))
    assert cells_of(node, parameters) == []
    assert cells_of(computed, parameters) == []
