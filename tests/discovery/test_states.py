"""Recurrent states that a network takes from its caller and returns."""

import numpy as np
import pytest
import torch
from networks import Recurrent, disguised, randomised
from torch import nn

from sklearn_wbfuse import WassersteinFusion, declare, discover
from sklearn_wbfuse.exceptions import DiscoveryError, FusionWarning


class Undeclared(Recurrent):
    """A recurrent network, its states in and out; the heads read every step."""

    def forward(self, x, state):
        if self.loop:
            outputs = []
            for t in range(x.shape[1]):
                state = self.rnn(x[:, t], state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            out = torch.stack(outputs, 1)
        else:
            out, state = self.rnn(x, state)
        return torch.cat([self.fc(out), self.aux(out)], -1), state


class Stateful(Undeclared):
    """The same, and it says so."""


class Apart(Undeclared):
    """An LSTM whose two states are arguments of their own, in front of the sequence."""

    def forward(self, h, c, x):
        y, state = super().forward(x, (h, c))
        return *state, y


declare(Stateful, state_inputs=("state",), state_outputs=(1,))
declare(Apart, state_inputs=("h", "c"), state_outputs=(0, 1))


def first_state(model, batch=6):
    """Zeros, in the sizes of the model's own layer."""
    rnn = model.rnn
    slots = () if model.loop else (rnn.num_layers * (1 + rnn.bidirectional),)
    sizes = [getattr(rnn, "proj_size", 0) or rnn.hidden_size, rnn.hidden_size]
    h, c = (torch.zeros(*slots, batch, size, dtype=torch.float64) for size in sizes)
    return (h, c) if isinstance(rnn, (nn.LSTM, nn.LSTMCell)) else h


def inputs_of(model, state=None):
    x, state = model.example[:, :2], first_state(model) if state is None else state
    return (*state, x) if isinstance(model, Apart) else (x, state)


def run(model, x):
    """One step after the other, each from the state that the last one returned."""
    state, outputs = first_state(model, len(x)), []
    for t in range(x.shape[1]):
        if isinstance(model, Apart):
            *state, y = model(*state, x[:, t : t + 1])
        else:
            y, state = model(x[:, t : t + 1], state)
        outputs.append(y)
    return torch.cat(outputs, 1)


def build(cls=Stateful, seed=0, hidden=5, **options):
    return randomised(cls(hidden=hidden, **options), np.random.default_rng(seed))


CASES = {
    "gru": {"kind": "gru"},
    "lstm of two layers": {"kind": "lstm", "levels": 2},
    "both directions": {"kind": "rnn_tanh", "bidirectional": True},
    "projections": {"kind": "lstm", "projection": 3},
    "arguments of their own": {"cls": Apart, "kind": "lstm"},
    "relu cell": {"kind": "rnn_relu", "loop": True},
    "lstm cell": {"kind": "lstm", "loop": True},
}
cases = pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))


class TestDeclared:
    @cases
    def test_copies_fuse_back_and_go_on_from_their_own_states(self, options):
        model = build(**options)
        models = [model, disguised(model, np.random.default_rng(1), scales=True)]
        fusion = WassersteinFusion(example_inputs=inputs_of(model), correction=None).fit(models)
        assert fusion.graph_.sizes == model.truth.sizes
        assert {n: g.signable for n, g in fusion.graph_.groups.items()} == model.truth.signable
        expected = run(model, model.example)
        for network in [fusion.fused_model_, *fusion.transform(models)]:
            torch.testing.assert_close(run(network, model.example), expected)

    @pytest.mark.parametrize("name", ["lstm of two layers", "lstm cell"])
    def test_twice_the_widths_compute_the_same(self, name):
        model = build(**CASES[name])
        wide = WassersteinFusion(2.0, example_inputs=inputs_of(model), correction=None).fit([model]).fused_model_
        assert wide.rnn.hidden_size == 10
        torch.testing.assert_close(run(wide, model.example), run(model, model.example))

    def test_different_parents_keep_their_functions(self):
        """What returns goes back to where it came from: the neuron order of the fused network, for good."""
        models = [build(kind="gru", seed=seed) for seed in range(2)]
        fusion = WassersteinFusion(example_inputs=inputs_of(models[0]), correction=None).fit(models)
        assert not np.array_equal(fusion.couplings_[1]["rnn.l0"], np.eye(5) / 5)
        moved = fusion.transform(models)[1]
        x = models[1].example
        torch.testing.assert_close(run(moved, x), run(models[1], x))
        _, state = models[1](x, first_state(models[1]))
        assert not torch.allclose(moved(x, state)[0], models[1](x, state)[0])  # another network's state means nothing to it

    def test_parents_of_different_sizes(self):
        models = [build(kind="gru", seed=n, hidden=n) for n in (5, 4)]
        fused = WassersteinFusion(example_inputs=inputs_of(models[0]), random_state=0, correction=None).fit(models).fused_model_
        assert run(fused, models[0].example).shape == (6, 5, 5)

    def test_a_hand_written_step(self):
        """The state that returns is the one that is given next: one group, though each step alone would allow two."""

        class Elman(nn.Module):
            def __init__(self):
                super().__init__()
                self.i, self.h, self.o = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

            def forward(self, x, h):
                h = torch.tanh(self.i(x) + self.h(h))
                return self.o(h), h

        declare(Elman, state_inputs=("h",), state_outputs=(1,))
        torch.manual_seed(0)
        models, x, h = [Elman().double() for _ in range(2)], torch.randn(2, 3).double(), torch.zeros(2, 5).double()
        moved = WassersteinFusion(example_inputs=(x, h), correction=None).fit(models).transform(models)[1]
        (_, state), (_, theirs) = models[1](x, h), moved(x, h)
        torch.testing.assert_close(moved(x, theirs)[0], models[1](x, state)[0])

    def test_an_output_that_does_not_exist(self):
        class Wrong(Stateful):
            pass

        declare(Wrong, state_inputs=("state",), state_outputs=(5,))
        model = build(Wrong, kind="gru")
        with pytest.raises(DiscoveryError, match=r"Got positions \(5,\), but the network returns 2"):
            discover(model, inputs_of(model))

    def test_an_output_that_is_no_state(self):
        class Mistaken(Stateful):
            pass

        declare(Mistaken, state_inputs=("state",), state_outputs=(0,))
        model = build(Mistaken, kind="gru")
        with pytest.raises(DiscoveryError, match="Got no input for output 0 of shape"):
            discover(model, inputs_of(model))

    def test_batches_in_front_of_layers(self):
        class Transposed(Stateful):
            def forward(self, x, state):
                y, state = super().forward(x, state.transpose(0, 1).contiguous())
                return y, state.transpose(0, 1)

        declare(Transposed, state_inputs="state", state_outputs=1)
        model = build(Transposed, kind="gru", levels=2)
        x, state = inputs_of(model)
        with pytest.raises(DiscoveryError, match=r"must have shape \(layers, batch, units\)"):
            discover(model, (x, state.transpose(0, 1)))

    def test_negative_positions(self):
        with pytest.raises(ValueError, match="must be nonnegative positions"):
            declare(Stateful, state_outputs=(-1,))


class TestUndeclared:
    @pytest.mark.parametrize("name", ["lstm of two layers", "relu cell"])
    def test_given_states_stay_in_place(self, name):
        models = [build(**{**CASES[name], "cls": Undeclared, "seed": seed}) for seed in range(2)]
        parameters = [n for n in models[0].state_dict() if "weight_ih" in n]
        with pytest.warns(FusionWarning) as caught:
            fusion = WassersteinFusion(example_inputs=inputs_of(models[0]), correction=None).fit(models)
        (message,) = {str(w.message) for w in caught}
        for parameter in parameters:
            assert f"{parameter}: an initial state that is given by the caller" in message
        assert fusion.graph_.sizes == {} and [n for n, _ in fusion.graph_.frozen] == parameters
        for name, value in fusion.fused_model_.state_dict().items():
            torch.testing.assert_close(value, (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2)
        assert run(fusion.fused_model_, models[0].example).shape == (6, 5, 5)

    def test_returned_states_stay_in_place(self):
        class Encoder(Undeclared):
            def forward(self, x):
                return super().forward(x, None)

        model = build(Encoder, kind="gru")
        with pytest.warns(FusionWarning, match=r"rnn.weight_ih_l0: a state that is returned to the caller"):
            assert discover(model, (model.example,)).sizes == {}

    def test_only_half_declared(self):
        class Half(Undeclared):
            pass

        declare(Half, state_inputs=("state",))
        model = build(Half, kind="gru")
        with pytest.warns(FusionWarning, match=r"rnn.weight_ih_l0: a state that is returned to the caller"):
            assert discover(model, inputs_of(model)).sizes == {}


class TestWrongDeclarations:
    def test_an_argument_that_forward_does_not_have(self):
        class Misspelt(Undeclared):
            pass

        declare(Misspelt, state_inputs=("hidden",), state_outputs=(1,))
        model = build(Misspelt, kind="gru")
        with pytest.raises(DiscoveryError, match=r"Got \['x', 'state'\] without the state 'hidden' of Misspelt"):
            discover(model, inputs_of(model))

    def test_inputs_that_leave_the_state_out(self):
        class Optional(Undeclared):
            def forward(self, x, state=None):
                return super().forward(x, state)

        declare(Optional, state_inputs=("state",), state_outputs=(1,))
        model = build(Optional, kind="gru")
        with pytest.raises(DiscoveryError, match=r"Got \['x'\] without the state 'state' of Optional"):
            discover(model, (model.example,))
        assert discover(model, inputs_of(model)).sizes == {"rnn.l0": 5}

    def test_a_state_that_is_none(self):
        """The declared state starts from nothing: what is returned is free all the same."""
        model = build(kind="gru")
        assert discover(model, (model.example, None)).sizes == {"rnn.l0": 5}
