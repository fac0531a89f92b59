"""The defaults: a correction that never stands in the way, what it may cost, and the choice among starts."""

import ast
import contextlib
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from conformance.fusers import assert_same, values
from hypothesis import given
from hypothesis import strategies as st
from networks import CNN, MLP, disguised, randomised
from torch import nn

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.correction import Probe
from sklearn_wbfuse.exceptions import FusionWarning, PoorFusionWarning
from sklearn_wbfuse.execution.sizing import CAP, sized_probe, work_of


def two(make, seed=0):
    torch.manual_seed(seed)
    return [make().eval() for _ in range(2)]


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@contextlib.contextmanager
def told():
    """The warnings that a fusion was not corrected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        uncorrected = []
        yield uncorrected
    uncorrected += [w for w in caught if "not corrected" in str(w.message)]


@dataclass(eq=False)
class Given:
    """What of an architecture says how large it is."""

    plain: nn.Module
    inputs: Any


class Costly(nn.Module):
    """Multiplies each row by a matrix that is not there, so that only its cost counts."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        torch.empty(len(x), self.width, device="meta") @ torch.empty(self.width, self.width, device="meta")
        return x


class Whole(nn.Module):
    """Reads whole numbers as numbers."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x.float() / 255)


class Picky(nn.Module):
    """Runs on few samples alone, and says so late."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        if len(x) > 4:
            raise RuntimeError("no more than 4 samples")
        return self.body(x)


def rows(n, bad=None):
    x = np.random.default_rng(0).normal(size=(n, 6)).astype("f4")
    if bad is not None:
        x[bad] = np.nan
    return x


CASES = {
    "few rows": (mlp, lambda models: FusionInput(models, rows(4)), {}, "Got 4; give more rows"),
    "NaN": (mlp, lambda models: FusionInput(models, rows(40, bad=20)), {}, "NaN"),
    "NaN in the first row": (mlp, lambda models: FusionInput(models, rows(40, bad=0)), {}, "NaN"),
    "whole numbers": (
        Whole,
        lambda models: models,
        {"example_inputs": torch.randint(255, (2, 6))},
        "or tokens",
    ),
    "data without data": (mlp, lambda models: models, {"probe": "data"}, "needs rows"),
    "other batch sizes": (Picky, lambda models: FusionInput(models, rows(40)), {}, "4 samples"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n_init", [1, 2])
def test_it_fits_where_no_correction_would_and_says_so_once(name, n_init):
    make, make_input, options, message = CASES[name]
    models = two(make)
    options = {"random_state": 0, "n_init": n_init, **options}
    plain = WassersteinFusion(correction=None, cost="weight", **options).fit(make_input(models))
    with told() as caught_warnings:
        fusion = WassersteinFusion(**options).fit(make_input(models))
    (warning,) = caught_warnings
    assert issubclass(warning.category, FusionWarning) and message in str(warning.message)
    assert "correction=None" in str(warning.message) and warning.filename == __file__
    assert_same(values(fusion.fused_model_), values(plain.fused_model_))
    with pytest.raises(Exception, match=message):
        WassersteinFusion(correction="regression", **options).fit(make_input(models))


def test_a_correction_that_fails_leaves_the_mean(monkeypatch):
    def fail(*arguments, **options):
        raise torch.linalg.LinAlgError("singular")

    models = two(mlp)
    plain = WassersteinFusion(correction=None, cost="weight", random_state=0, n_init=3).fit(models)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", fail)
    with told() as caught_warnings:
        fusion = WassersteinFusion(random_state=0, n_init=3, probe=Probe(n_samples=64)).fit(models)
    assert len(caught_warnings) == 1 and "singular" in str(caught_warnings[0].message) and caught_warnings[0].filename == __file__
    assert fusion.energy_ in [h[-1] for h in plain.history_]


def test_a_cost_of_activations_that_was_asked_for_still_raises():
    with pytest.raises(ValueError, match="needs rows"):
        WassersteinFusion(cost=0.5, probe="data").fit(two(mlp))


def test_what_corrections_are_called():
    with pytest.raises(ValueError, match="'auto'"):
        WassersteinFusion(correction="autos").fit(two(mlp))
    models = two(mlp)
    fused = [VanillaAveraging(correction=c, random_state=0).fit(models).fused_model_ for c in ("auto", "regression")]
    assert_same(values(fused[0]), values(fused[1]))


class First(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize(
    ("make", "shape", "count"),
    [
        (lambda: nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 8, 6), 2 * 8 * 6 * 4 * 3 * 9),
        (lambda: nn.Conv2d(4, 4, 3, stride=2, groups=4, padding=1), (2, 4, 8, 8), 2 * 4 * 4 * 4 * 9),
        (lambda: nn.Conv1d(3, 4, 3), (2, 3, 10), 2 * 8 * 4 * 3 * 3),
        (lambda: nn.LSTM(3, 4), (7, 2, 3), 7 * 2 * (3 + 4) * 16),
        (lambda: nn.GRU(3, 4, batch_first=True), (2, 7, 3), 7 * 2 * (3 + 4) * 12),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 7, 8),
         2 * 7 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + 2 * 2 * 7 * 7 * 8),
    ],
)  # fmt: skip
def test_multiply_adds_are_those_by_hand(make, shape, count):
    model, x = First(make()), torch.randn(shape)
    before = torch.random.get_rng_state()
    flags = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    assert work_of(model, (x,))[0] == count
    assert model.training and (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()) == flags
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("width", "expected"), [(1, 2000), (10**4, None), (10**6, 64)], ids=["cheap", "between", "huge"])
def test_samples_are_capped_by_what_they_cost(width, expected):
    probe = Probe(n_samples=2000, n_steps=4)
    sized = sized_probe(probe, 2 * [Given(plain=Costly(width), inputs=(torch.zeros(3, 5),))], capped=True)
    if expected is None:  # each parent once, 4 steps of half of the samples at three times the cost, and the fused network
        expected = int(CAP / (width**2 * (2 * (1 + 4 * 3 / 2) + 1)))
    assert sized.n_samples == expected and sized.batch_size <= sized.n_samples
    assert probe.n_samples == 2000 and sized.n_steps == 4


def conv():
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("make", "example", "samples", "share"),
    [
        (conv, torch.rand(2, 2, 6, 6), None, 0.5),
        (mlp, torch.rand(2, 6), None, 0.0),
        (mlp, None, rows(30), 0.5),
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3)),
         torch.zeros(2, 6).long(), None, 0.0),
    ],
    ids=["images", "noise", "rows", "tokens"],
)  # fmt: skip
def test_the_cost_goes_by_what_the_probe_says(make, example, samples, share):
    """The default is the mix, or the weights alone, and nothing between."""
    models, probe = two(make), Probe(n_samples=60, n_mixed=0)
    fit_input = models if samples is None else FusionInput(models, samples)
    options = {"example_inputs": example, "random_state": 0, "probe": probe, "correction": "regression"}
    energies = [WassersteinFusion(cost=c, **options).fit(fit_input).energy_ for c in ("auto", share, 0.5 - share)]
    assert energies[0] == energies[1] != energies[2]


def test_without_a_correction_the_cost_is_that_of_weights():
    models = FusionInput(two(mlp), rows(30))
    auto, weight = (WassersteinFusion(correction=None, cost=c).fit(models).energy_ for c in ("auto", "weight"))
    assert auto == weight


@given(
    network=st.one_of(
        st.builds(MLP, st.lists(st.integers(2, 7), min_size=3, max_size=4), norm=st.sampled_from([None, "affine"])),
        st.builds(CNN, st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), norm=st.sampled_from([None, "affine"])),
    ),
    seed=st.integers(0, 99),
)
def test_permuted_copies_fuse_back_under_the_defaults(network, seed):
    rng = np.random.default_rng(seed)
    model = randomised(network, rng)
    copies = [model, disguised(model, rng, scales=True)]
    probe = Probe(n_samples=60, batch_size=30)
    with warnings.catch_warnings(action="error", category=FusionWarning):
        fusion = WassersteinFusion(example_inputs=(model.example,), random_state=0, probe=probe).fit(copies)
    x = torch.randn(5, *model.example.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fusion.fused_model_(x), model(x), rtol=1e-7, atol=1e-7)


def test_the_start_of_highest_agreement_is_kept(caplog):
    caplog.set_level(logging.INFO, "sklearn_wbfuse")
    models = two(lambda: nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)))
    options = {"n_init": 3, "init": "random", "probe": Probe("noise", n_samples=60), "cost": "weight"}
    positions = set()
    for seed in range(12):
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PoorFusionWarning)
            fusion = WassersteinFusion(random_state=seed, **options).fit(models)
        (message,) = (r.getMessage() for r in caplog.records if "agreement with the parents by start" in r.getMessage())
        shares = ast.literal_eval(message.partition(": ")[2])
        assert len(shares) == len(fusion.history_) == 3 and fusion.agreement_.mean == pytest.approx(max(shares), abs=1e-4)
        assert fusion.energy_ == sorted(h[-1] for h in fusion.history_)[shares.index(max(shares))]
        positions.add(shares.index(max(shares)))
    assert positions == {0, 1, 2}
    carried = fusion.transform(models)  # couplings are those of the start that was kept
    assert_same(values(carried[0]), values(fusion.transform([models[0]])[0]))


def test_without_a_correction_the_start_of_least_energy_is_kept():
    models = two(mlp)
    fusion = WassersteinFusion(correction=None, n_init=4, init="random", random_state=0).fit(models)
    assert fusion.energy_ == min(h[-1] for h in fusion.history_)


def test_batches_are_sized_by_activations_not_by_weights():
    model, x = nn.Sequential(nn.Linear(50, 400), nn.ReLU(), nn.Linear(400, 2)), torch.randn(2, 50)
    assert work_of(model, (x,))[1] == 2 * 400 * 4
    architecture = Given(plain=model, inputs=(x,))
    sizes = [sized_probe(Probe(working_memory=m), [architecture], capped=False).batch_size for m in (1, 0.1, 0)]
    assert sizes == [2**20 // (6 * 1600), int(0.1 * 2**20 / (6 * 1600)), 1]
