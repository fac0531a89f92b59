"""Fusing recurrent networks: what each option means for W_hh."""

import copy

import numpy as np
import pytest
import torch
from networks import Recurrent, disguised, randomised
from sklearn.model_selection import GridSearchCV, ShuffleSplit

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.exceptions import ArchitectureMismatchError, FusionWarning


@pytest.fixture
def pair(device):
    """Two or more networks of a kind, with random weights."""

    def draw(kind="rnn_tanh", hidden=(7, 7), **options):
        models = [randomised(Recurrent(kind, h, **options), np.random.default_rng(seed)) for seed, h in enumerate(hidden)]
        for model in models:
            model.to(device).example = model.example.to(device)
        return models

    return draw


def fit(models, **options):
    options = {"correction": None, "example_inputs": (models[0].example,), "random_state": 0, **options}
    return WassersteinFusion(**options).fit(models)


def assert_same_couplings(first, second):
    for one, two in zip(first.couplings_, second.couplings_, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


KINDS = ["rnn_tanh", "rnn_relu", "lstm", "gru"]


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_h_of_zero_does_not_look_at_recurrent_weights(pair, kind):
    models = pair(kind)
    other = copy.deepcopy(models)
    with torch.no_grad():
        for model, seed in zip(other, (5, 6), strict=True):
            for name, parameter in model.named_parameters():
                if "weight_hh" in name:
                    parameter.copy_(torch.as_tensor(np.random.default_rng(seed).normal(size=parameter.shape)))
    # a ReLU network's scales do depend on W_hh
    options = {"alpha_h": 0.0, "symmetry": "permutation" if kind == "rnn_relu" else "auto"}
    assert_same_couplings(fit(models, **options), fit(other, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_the_energy_is_linear_in_alpha_h_with_the_recurrent_weights_as_its_slope(pair, kind):
    """At couplings that do not move: copies whose units stay where they are, with noise on W_hh."""
    model = pair(kind)[0]
    twin = copy.deepcopy(model)
    difference = 0.0
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "weight_hh" in name:
                noise = 1e-3 * torch.as_tensor(np.random.default_rng(0).normal(size=parameter.shape)).to(parameter)
                parameter += noise
                difference += float((noise**2).sum()) / 4  # each of two models is half of it away from the mean
    for alpha_h in (0.5, 2.0):
        fusion = fit([model, twin], alpha_h=alpha_h, symmetry="permutation")
        assert fusion.energy_ == pytest.approx(alpha_h * difference, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_layerwise_looks_at_incoming_weights_alone_and_joint_at_the_heads(pair, kind):
    models = pair(kind, hidden=(8, 8))
    other = copy.deepcopy(models)
    with torch.no_grad():
        for model, seed in zip(other, (5, 6), strict=True):
            for head in (model.fc, model.aux):
                head.weight.copy_(torch.as_tensor(np.random.default_rng(seed).normal(size=head.weight.shape)) * 20)
    options = {"symmetry": "permutation"}
    assert_same_couplings(fit(models, schedule="layerwise", **options), fit(other, schedule="layerwise", **options))
    plans = [f.couplings_[1]["rnn.l0"] for f in (fit(models, **options), fit(other, **options))]
    assert np.abs(plans[0] - plans[1]).sum() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_sweeps_over_all_weights_never_raise_the_energy(pair, kind):
    models = pair(kind, hidden=(8, 8, 8), levels=2)
    layerwise, joint = (fit(models, schedule=s) for s in ("layerwise", "joint"))
    assert joint.energy_ <= layerwise.energy_ * (1 + 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_are_recorded_and_the_lowest_energy_is_kept(pair, kind):
    models = pair(kind, hidden=(16, 16))
    single, many = fit(models, n_init=1), fit(models, n_init=6)
    assert len(single.history_) == 1 and len(many.history_) == 6
    assert many.history_[0] == single.history_[0]
    assert many.energy_ == pytest.approx(min(min(h) for h in many.history_))
    assert many.energy_ <= single.energy_
    again = fit(models, n_init=6)
    assert again.history_ == many.history_
    assert_same_couplings(again, many)
    assert fit(models, n_init=6, random_state=1).history_[2:] != many.history_[2:]


@pytest.mark.parametrize("schedule", ["layerwise", "joint"])
@pytest.mark.parametrize("kind", KINDS)
def test_entropic_plans_have_their_marginals(pair, kind, schedule):
    models = pair(kind, hidden=(6, 8))
    fusion = fit(models, reg=0.05, schedule=schedule)
    for couplings, model in zip(fusion.couplings_, models, strict=True):
        coupling = couplings.coupling("rnn.l0")
        assert coupling.shape == (8, model.rnn.hidden_size)
        reference = schedule == "joint" and model is models[1]  # of the target's size: it keeps its neurons
        assert coupling.is_permutation == reference
        assert coupling.marginal_error() < 1e-9
    assert torch.isfinite(fusion.fused_model_(models[0].example)).all()


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "lstm" else pytest.mark.slow) for k in KINDS])
def test_other_hidden_sizes(pair, kind):
    models = pair(kind, hidden=(5, 8), levels=2, bidirectional=True)
    for widths, size in ((None, 8), (0.75, 6), (2.0, 16)):
        fused = fit(models, target_widths=widths, merge="all").fused_model_
        assert fused.rnn.hidden_size == size and fused.fc.in_features == 2 * size
        fused.rnn.flatten_parameters()
        assert fused(models[0].example).shape == models[0](models[0].example).shape


def test_signed_plans_couple_neurons_with_their_negatives(pair):
    model = pair("gru", hidden=(6,))[0]
    twin = disguised(model, np.random.default_rng(3), scales=True)
    signed, unsigned = fit([model, twin]), fit([model, twin], symmetry="permutation")
    plan = signed.couplings_[1]["rnn.l0"]
    assert (plan < 0).any() and np.abs(plan).sum() == pytest.approx(1)
    assert signed.energy_ < 1e-12 < unsigned.energy_
    assert all((c["rnn.l0"] >= 0).all() for c in unsigned.couplings_)


def test_a_twice_as_wide_network_narrows_back(pair):
    model = pair("gru", hidden=(5,))[0]
    wide = fit([model], target_widths=2.0).fused_model_
    narrow = fit([wide], target_widths=0.5).fused_model_
    torch.testing.assert_close(narrow(model.example), model(model.example), rtol=1e-8, atol=1e-8)


def test_grid_search_over_alpha_h_and_reg(pair):
    models = [m.float() for m in pair("lstm", hidden=(6, 6))]
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5, 4)).astype(np.float32), rng.integers(0, 5, 40)
    grid = {"alpha_h": [0.0, 1.0], "reg": [0.0, 0.01]}
    search = GridSearchCV(WassersteinFusion(), grid, cv=ShuffleSplit(1, random_state=0), error_score="raise")
    search.fit(FusionInput(models, X), y)
    assert set(search.best_params_) == {"alpha_h", "reg"}


def test_a_cell_of_another_kind_is_named():
    models = [randomised(Recurrent(kind, 4), np.random.default_rng(0)) for kind in ("lstm", "gru")]
    with pytest.raises(ArchitectureMismatchError, match="'rnn' is LSTM in the first and GRU in the other"):
        fit(models)


@pytest.mark.parametrize("init", [0, 1])
def test_the_parent_that_the_start_takes_its_order_from_stays_in_place(pair, init):
    fusion = fit(pair("gru"), init=init)
    np.testing.assert_array_equal(fusion.couplings_[init]["rnn.l0"], np.eye(7) / 7)


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_a_model_of_weight_zero_is_matched_as_one_of_little_weight(pair, weights):
    models = pair("lstm", hidden=(8, 8), levels=2)
    none, little = fit(models, weights=weights), fit(models, weights=[max(w, 1e-6) for w in weights])
    other = weights.index(0.0)
    for name in none.couplings_[other]:
        np.testing.assert_array_equal(none.couplings_[other][name], little.couplings_[other][name])


def test_an_orthogonal_parametrization_that_can_not_hold_the_mean_says_so(pair):
    models = pair("rnn_tanh", hidden=(5, 5))
    for model in models:
        torch.nn.utils.parametrizations.orthogonal(model.rnn, "weight_hh_l0")
    with pytest.warns(FusionWarning, match=r"parametrization of 'rnn.weight_hh_l0' can't hold the fused tensor"):
        fit(models)
