"""Recurrent layers and cells: groups, packed sequences, signs, recurrent weights, biases, widths."""

import copy
import dataclasses
import functools
import threading

import numpy as np
import pytest
import torch
from conformance.adapters import AdapterConformance, Case
from networks import Recurrent, disguised, randomised
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from sklearn_wbfuse import FusionInput, WassersteinFusion, discover
from sklearn_wbfuse.exceptions import DiscoveryError, FusionWarning, WidthError
from sklearn_wbfuse.layers import recurrent, registry


def memory(state):
    """The state that is returned, and the memory (the same but for an LSTM)."""
    return state if isinstance(state, tuple) else (state, state)


class Layers(nn.Module):
    """A recurrent layer of 4 units; a linear layer reads every step's output, or all last states side by side."""

    def __init__(self, layer, readout, width, **options):
        super().__init__()
        self.rnn, self.fc = layer(3, 4, **options), nn.Linear(width, 2)
        self.readout = readout

    def forward(self, x):
        out, state = self.rnn(x)
        h, c = memory(state)
        return self.fc(out if self.readout == "output" else torch.cat([*(c if self.readout == "c_n" else h)], -1))


def layers(layer, groups, readout="output", width=4, shape=(2, 3, 3), scalable=(), signable=None, **options):
    sizes = {f"rnn.{name}": 3 if name.endswith("_proj") else 4 for name in groups.split()}
    return Case(
        functools.partial(Layers, layer, readout, width, **options),
        shape,
        sizes,
        {f"rnn.{name}" for name in scalable},
        set(sizes) if signable is None else set(signable),
    )


class TestLayers(AdapterConformance):
    cases = {
        "tanh, both directions": layers(nn.RNN, "l0 l0_reverse", "h_n", 8, bidirectional=True),
        "relu, two layers, no bias": layers(
            nn.RNN, "l0 l1", scalable=["l0", "l1"], signable=[], num_layers=2, bias=False, nonlinearity="relu", batch_first=True
        ),
        "lstm, two layers, both directions, its memory": layers(
            nn.LSTM, "l0 l0_reverse l1 l1_reverse", "c_n", 16, num_layers=2, bidirectional=True
        ),
        "projections, two layers, both directions, no bias": layers(
            nn.LSTM,
            "l0 l0_proj l0_reverse l0_reverse_proj l1 l1_proj l1_reverse l1_reverse_proj",
            "h_n",
            width=12,
            scalable=["l0_proj", "l0_reverse_proj", "l1_proj", "l1_reverse_proj"],
            num_layers=2,
            proj_size=3,
            bidirectional=True,
            bias=False,
        ),
        "gru, two layers, no batch": layers(nn.GRU, "l0 l1", "h_n", 8, (3, 3), num_layers=2),
    }


class Loop(nn.Module):
    """Cells on top of each other in a loop, from no state, or from one that is filled with a number; two heads."""

    def __init__(self, cells, start=None, readout="h", **options):
        super().__init__()
        self.cells = nn.ModuleList(cell(4 if level else 3, 4, **options) for level, cell in enumerate(cells))
        self.fc, self.aux = nn.Linear(4, 2), nn.Linear(4, 1)
        self.start, self.readout = start, readout

    def first_state(self, cell, x):
        if self.start is None:
            return None
        h = torch.full((len(x), cell.hidden_size), self.start).to(x)
        return (h, x.new_zeros(len(x), cell.hidden_size)) if isinstance(cell, nn.LSTMCell) else h

    def forward(self, x):
        states = [self.first_state(cell, x) for cell in self.cells]
        for t in range(x.shape[1]):
            h = x[:, t]
            for level, cell in enumerate(self.cells):
                states[level] = cell(h, states[level])
                h, c = memory(states[level])
        h = c if self.readout == "c" else h
        return torch.cat([self.fc(h), self.aux(h)], 1)


def loop(cells, start=None, readout="h", relu=False, rigid=False, **options):
    names = {f"cells.{level}" for level in range(len(cells))}
    return Case(
        functools.partial(Loop, cells, start, readout, **options),
        (2, 3, 3),
        dict.fromkeys(names, 4),
        names if relu else set(),
        set() if relu or rigid else names,
    )


class TestCells(AdapterConformance):
    cases = {
        "relu": loop([nn.RNNCell], relu=True, nonlinearity="relu"),
        "lstm from zeros, its memory, no bias": loop([nn.LSTMCell], 0.0, "c", bias=False),
        "gru on an lstm": loop([nn.LSTMCell, nn.GRUCell]),
        "tanh from ones": loop([nn.RNNCell], 1.0, rigid=True),
    }


class Tokens(nn.Module):
    """An embedding in front of an LSTM whose initial state a layer computes; two heads."""

    def __init__(self, trained=True):
        super().__init__()
        self.table, self.first = nn.Embedding(7, 5), nn.Linear(5, 4)
        self.table.weight.requires_grad_(trained)
        self.rnn, self.fc, self.aux = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x):
        x = self.table(x)
        h = torch.tanh(self.first(x.mean(1)))[None]
        out, (h, _) = self.rnn(x, (h, torch.zeros_like(h)))
        return torch.cat([self.fc(h[0]), self.aux(out.mean(1))], 1)


class Translator(nn.Module):
    """A decoder that starts from the encoder's last state, and reads the sequence backwards."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = (nn.GRU(3, 4, num_layers=2, batch_first=True) for _ in range(2))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        _, state = self.encoder(x)
        return self.fc(self.decoder(x.flip(1), state)[0])


class AffineLayer(nn.Module):
    """A decoder cell that reads its own last output."""

    def __init__(self):
        super().__init__()
        self.encoder, self.cell, self.fc = nn.LSTM(3, 4), nn.LSTMCell(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        h, c = (state[-1] for state in self.encoder(x)[1])
        y = self.fc(h)
        for _ in range(2):
            h, c = self.cell(y, (h, c))
            y = self.fc(h)
        return y


class Learned(nn.Module):
    """Learned initial states: one tensor for both layers of the first GRU, one for each layer of the second."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.GRU(3, 4, 2, batch_first=True), nn.GRU(4, 4, 2, batch_first=True)
        self.both, self.low, self.high = (nn.Parameter(torch.randn(shape)) for shape in [(2, 1, 4), (4,), (4,)])
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        out, _ = self.a(x, self.both.expand(-1, len(x), -1))
        return self.fc(self.b(out, torch.stack([s.expand(len(x), -1) for s in (self.low, self.high)]))[0])


def states(build, *groups):
    return Case(build, (2, 3, 3), dict.fromkeys(groups, 4), set(), set(groups))


class TestNetworks(AdapterConformance):
    cases = {
        "embedding, computed state": Case(Tokens, (2, 3), {"table": 5, "first": 4}, {"table"}, {"table", "first"}, integers=7),
        "encoder and decoder": states(Translator, "encoder.l0", "encoder.l1"),
        "encoder and cell": states(AffineLayer, "encoder.l0"),
        "learned states": states(Learned, "a.l0", "b.l0", "b.l1"),
    }


def test_an_embedding_that_all_parents_share_stays_in_place():
    models = [Tokens(trained=False) for _ in range(2)]
    models[1].table = copy.deepcopy(models[0].table)
    inputs = torch.randint(0, 7, (2, 3))
    fusion = WassersteinFusion(example_inputs=(inputs,), correction=None).fit(models)
    np.testing.assert_array_equal(fusion.couplings_[1]["table"], np.eye(5) / 5)
    table = fusion.fused_model_.table.weight
    torch.testing.assert_close(table, models[0].table.weight)
    assert not table.requires_grad and fusion.fused_model_.rnn.weight_hh_l0.requires_grad
    assert (fusion.couplings_[1]["first"] != np.eye(4) / 4).any()


class Packed(Recurrent):
    """A recurrent network of sequences of several lengths, packed."""

    def __init__(self, kind, *, enforce_sorted=True, total_length=None, padding_value=0.0, readout="mean", **options):
        super().__init__(kind, 5, readout=readout, **options)
        self.enforce_sorted, self.total_length, self.padding_value = enforce_sorted, total_length, padding_value

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, self.batch_first, self.enforce_sorted)
        out, state = self.rnn(packed)
        out, own = pad_packed_sequence(out, self.batch_first, self.padding_value, self.total_length)
        out = out if self.batch_first else out.transpose(0, 1)
        h = out.sum(1) / own[:, None] if self.readout == "mean" else torch.cat([*memory(state)[0]], 1)
        return torch.cat([self.fc(h), self.aux(h)], 1)


FALLING, MIXED = torch.tensor([5, 4, 4, 3, 2, 1]), torch.tensor([2, 4, 1, 4, 3, 4])  # sequences are padded to 5 steps


class TestPacked:
    @pytest.mark.parametrize(
        ("options", "lengths"),
        [
            ({"kind": "rnn_tanh", "batch_first": False, "total_length": 5}, FALLING.clamp(max=4)),
            ({"kind": "lstm", "enforce_sorted": False, "projection": 3}, MIXED),
            ({"kind": "lstm", "readout": "state", "bidirectional": True}, FALLING),
            ({"kind": "gru", "batch_first": False, "enforce_sorted": False, "total_length": 5}, MIXED),
        ],
        ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
    )
    def test_copies_fuse_back(self, options, lengths):
        rng = np.random.default_rng(0)
        model = randomised(Packed(**options), rng)
        inputs = model.example, lengths
        spec = discover(model, inputs)
        assert spec.sizes == model.truth.sizes
        assert {n: g.signable for n, g in spec.groups.items()} == model.truth.signable
        fused = (
            WassersteinFusion(example_inputs=inputs, correction=None)
            .fit([model, disguised(model, rng, scales=True)])
            .fused_model_
        )
        torch.testing.assert_close(fused(*inputs), model(*inputs))
        shorter = model.example, torch.ones_like(lengths)  # real packing: what is padded does not count
        torch.testing.assert_close(fused(*shorter), model(*shorter))
        assert not torch.allclose(model(*shorter), model(*inputs))

    def test_torchs_functions_are_what_they_were(self):
        class Branching(Packed):
            def forward(self, x, lengths):
                y = super().forward(x, lengths)
                return y if y.sum() > 0 else 2 * y

        x = torch.randn(3, 5, 4)

        def real():
            packed = pack_padded_sequence(x, torch.tensor([5, 3, 1]), batch_first=True)
            return *packed[:2], *pad_packed_sequence(packed, batch_first=True, total_length=6, padding_value=2.0)

        before, codes = real(), (pack_padded_sequence.__code__, pad_packed_sequence.__code__)
        assert before[0].shape == (9, 4) and before[1].tolist() == [3, 2, 2, 1, 1]
        discover(Packed("gru"), (torch.randn(6, 5, 4), FALLING))
        with pytest.raises(DiscoveryError, match="can't be traced"):
            discover(Branching("gru"), (torch.randn(6, 5, 4), FALLING))
        assert (pack_padded_sequence.__code__, pad_packed_sequence.__code__) == codes
        for a, b in zip(before, real(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_other_threads_pack_while_a_network_is_traced(self):
        x, lengths, found, done = torch.randn(6, 5, 4), FALLING, [], threading.Event()

        def pack():
            while not done.is_set():
                found.append(type(pack_padded_sequence(x, lengths, batch_first=True)))

        thread = threading.Thread(target=pack)
        thread.start()
        try:
            discover(Packed("gru"), (x, lengths))
        finally:
            done.set()
            thread.join()
        assert set(found) == {PackedSequence}

    @pytest.mark.parametrize("lengths", [FALLING, torch.full((6,), 5)], ids=["mixed", "full"])
    def test_padding_that_is_not_zero_allows_no_signs_whatever_the_example_lengths(self, lengths):
        model = randomised(Packed("gru", padding_value=1.0), np.random.default_rng(0))
        assert not discover(model, (model.example, lengths)).groups["rnn.l0"].signable

    def test_a_total_length_beyond_the_padded_sequences(self):
        class Flat(Packed):
            def __init__(self):
                super().__init__("gru", total_length=7)
                self.fc, self.aux = nn.Linear(7 * 5, 3), None

            def forward(self, x, lengths):
                out, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
                return self.fc(pad_packed_sequence(out, batch_first=True, total_length=7)[0].flatten(1))

        assert discover(Flat(), (torch.randn(6, 5, 4), FALLING)).sizes == {"rnn.l0": 5}


class LastStep(nn.Module):
    """The output at each sequence's last real step, picked by computed indices."""

    def __init__(self):
        super().__init__()
        self.rnn, self.fc = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x, lengths):
        return self.fc(self.rnn(x)[0][torch.arange(len(x)), lengths - 1])


def test_steps_picked_by_computed_indices_leave_units_free():
    spec = discover(LastStep(), (torch.randn(3, 5, 4), torch.tensor([5, 2, 4])))
    assert spec.sizes == {"rnn.l0": 5} and not spec.frozen


class TestSymmetry:
    @pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
    def test_auto_recovers_signed_copies_exactly(self, kind):
        rng = np.random.default_rng(0)
        model = randomised(Recurrent(kind, 6), rng)
        models = FusionInput([model, disguised(model, rng, scales=True)], model.example)
        fusion = WassersteinFusion(correction=None).fit(models)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(fusion.fused_model_.state_dict()[name], value)
        plan = fusion.couplings_[1]["rnn.l0"]
        assert (plan < 0).any() and fusion.couplings_[1].coupling("rnn.l0").is_permutation
        plain = WassersteinFusion(symmetry="permutation", correction=None).fit(models)
        assert fusion.energy_ < 1e-9 and plain.energy_ > 0.1

    @pytest.mark.parametrize("sizes", [(6, 6), (6, 4)])
    def test_permutation_allows_no_negative_entries(self, sizes):
        parents = [randomised(Recurrent("gru", n), np.random.default_rng(seed)) for seed, n in enumerate(sizes)]
        models = FusionInput(parents, parents[0].example)
        plain, auto = (
            WassersteinFusion(symmetry=s, random_state=0, correction=None).fit(models) for s in ("permutation", "auto")
        )
        assert (plain.couplings_[1]["rnn.l0"] >= 0).all() and (auto.couplings_[1]["rnn.l0"] < 0).any()

    @pytest.mark.parametrize(("kind", "gate"), [("lstm", 3), ("gru", 0)])
    def test_a_wrong_claim_is_refuted(self, monkeypatch, kind, gate):
        """The sign of a unit does not go with a sigmoid gate."""
        model = randomised(Recurrent(kind, 4), np.random.default_rng(0))
        monkeypatch.setitem(registry.RULES, f"aten::{kind}", None)
        monkeypatch.setitem(recurrent.CELL_KINDS, kind, dataclasses.replace(recurrent.CELL_KINDS[kind], writer=gate))
        recurrent.register_layer(kind)
        with pytest.warns(FusionWarning, match=r"signs of groups \['rnn.l0'\] change the output"):
            spec = discover(model, (model.example,))
        assert not spec.groups["rnn.l0"].signable
        assert not any(span.odd for _, _, span in spec.axes("rnn.l0"))


class TestAlphaH:
    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"kind": "lstm", "projection": 3, "levels": 2}, ["rnn.weight_hh_l0", "rnn.weight_hh_l1"]),
            (
                {"kind": "gru", "bidirectional": True, "readout": "mean"},
                ["rnn.weight_hh_l0", "rnn.weight_hh_l0_reverse"],
            ),
            ({"kind": "rnn_tanh", "loop": True}, ["rnn.weight_hh"]),
        ],
        ids=["lstm", "gru", "cell"],
    )
    def test_weighs_the_recurrent_tensors_alone(self, options, names):
        rng = np.random.default_rng(0)
        model = randomised(Recurrent(hidden=5, **options), rng)
        twin = copy.deepcopy(model)  # two parents that differ in these alone: E = alpha_h |difference|^2 / 4
        quarter = 0.0
        for name in names:
            difference = 0.01 * torch.as_tensor(rng.normal(size=twin.get_parameter(name).shape))
            twin.get_parameter(name).data += difference
            quarter += float(difference.pow(2).sum()) / 4
        models = FusionInput([model, twin], model.example)
        for alpha_h in (0.0, 1.0, 3.0):
            fusion = WassersteinFusion(alpha_h=alpha_h, symmetry="permutation", correction=None).fit(models)
            assert fusion.energy_ == pytest.approx(alpha_h * quarter, rel=1e-6, abs=1e-12)
            assert [n for n, t in fusion.graph_.tensors.items() if t.recurrent] == names


class TestBiases:
    @pytest.mark.parametrize(("kind", "gates", "loop"), [("rnn_tanh", 1, True), ("lstm", 4, False), ("gru", 2, True)])
    def test_only_their_sum_counts(self, kind, gates, loop):
        rng = np.random.default_rng(0)
        models = [randomised(Recurrent(kind, 5, loop=loop), rng) for _ in range(2)]
        shifted = self.shifted(models[1], 5 * gates, rng)
        x = models[0].example
        torch.testing.assert_close(shifted(x), models[1](x))
        before, after = (
            WassersteinFusion(example_inputs=(x,), correction=None).fit([models[0], m]) for m in (models[1], shifted)
        )
        assert after.energy_ == pytest.approx(before.energy_, rel=1e-9)
        for name, plan in before.couplings_[1].items():
            np.testing.assert_array_equal(after.couplings_[1][name], plan)
        torch.testing.assert_close(after.fused_model_(x), before.fused_model_(x))

    def test_the_candidate_of_a_gru_sees_them_apart(self):
        rng = np.random.default_rng(0)
        model = randomised(Recurrent("gru", 5), rng)
        shifted = self.shifted(model, 15, rng)
        assert not torch.allclose(shifted(model.example), model(model.example))
        assert WassersteinFusion(example_inputs=(model.example,), correction=None).fit([model, shifted]).energy_ > 0.1

    @staticmethod
    def shifted(model, rows, rng):
        """A copy with constants moved from one bias to the other in the first rows."""
        twin = copy.deepcopy(model)
        suffix = "" if model.loop else "_l0"
        constant = torch.as_tensor(rng.normal(size=rows))
        twin.get_parameter(f"rnn.bias_ih{suffix}").data[:rows] += constant
        twin.get_parameter(f"rnn.bias_hh{suffix}").data[:rows] -= constant
        return twin


class TestWidths:
    @pytest.mark.parametrize(
        ("options", "widths", "attributes"),
        [
            (
                {"kind": "lstm", "levels": 2, "projection": 3, "tokens": 7},
                {"table": 8, "rnn.l0": 12, "rnn.l0_proj": 6, "rnn.l1": 12, "rnn.l1_proj": 6},
                (8, 12, 6),
            ),
            ({"kind": "lstm", "loop": True, "tokens": 7}, {"table": 12, "rnn": 8}, (12, 8, 0)),
        ],
        ids=["layer", "cell"],
    )
    def test_attributes_follow(self, options, widths, attributes):
        model = randomised(Recurrent(hidden=4, **options), np.random.default_rng(0))
        fused = WassersteinFusion(widths, example_inputs=(model.example,), correction=None).fit([model]).fused_model_
        rnn = fused.rnn
        assert (rnn.input_size, rnn.hidden_size, getattr(rnn, "proj_size", 0)) == attributes
        if not model.loop:
            rnn.flatten_parameters()
            assert list(map(id, rnn._flat_weights)) == list(map(id, rnn.parameters()))
        torch.testing.assert_close(fused(model.example), model(model.example))

    @pytest.mark.parametrize(("kind", "loop"), [("lstm", True), ("gru", False)])
    def test_parents_of_different_sizes(self, kind, loop):
        small, large = (randomised(Recurrent(kind, n, loop=loop), np.random.default_rng(n)) for n in (4, 6))
        fusion = WassersteinFusion(random_state=0, correction=None).fit(FusionInput([small, large], small.example))
        assert fusion.fused_model_.rnn.hidden_size == 6 and fusion.fused_model_(small.example).shape == (6, 5)
        for plan, n in zip(fusion.couplings_, (4, 6), strict=True):
            (mass,) = (plan.coupling(name).mass for name in plan)
            np.testing.assert_allclose(mass.sum(0), 1 / n)
            np.testing.assert_allclose(mass.sum(1), 1 / 6)
        moved = fusion.transform([large])[0]  # of the target's size, so nothing is lost
        torch.testing.assert_close(moved(small.example), large(small.example))

    def test_a_wider_copy_fuses_back(self):
        rng = np.random.default_rng(0)
        small = randomised(Recurrent("lstm", 3), rng)
        wide = WassersteinFusion(2.0, example_inputs=(small.example,), correction=None).fit([small]).fused_model_
        fused = WassersteinFusion(example_inputs=(small.example,), correction=None).fit([wide, disguised(small, rng)])
        torch.testing.assert_close(fused.fused_model_(small.example), small(small.example))

    def test_levels_of_one_layer_have_one_width(self):
        model = randomised(Recurrent("lstm", 4, levels=2), np.random.default_rng(0))
        with pytest.raises(WidthError, match=r"one hidden size\. Got .*: 6.* in the LSTM .rnn."):
            WassersteinFusion({"rnn.l1": 6}, example_inputs=(model.example,)).fit([model])
