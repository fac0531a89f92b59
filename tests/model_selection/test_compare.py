"""`compare`: the rows of its table, what the fits get to see, errors, and how the table is printed."""

import copy
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from networks import CNN, MLP, Recurrent, disguised, randomised
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import accuracy_score, r2_score
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, VanillaAveraging, WassersteinFusion, compare
from sklearn_wbfuse.base import label_of
from sklearn_wbfuse.correction import Probe
from sklearn_wbfuse.exceptions import ArchitectureMismatchError, FusionError, InvalidModelError, PoorFusionWarning
from sklearn_wbfuse.model_selection import comparison
from sklearn_wbfuse.model_selection.table import Comparison

ROWS = 80
PLAIN = WassersteinFusion(correction=None)
NAME = label_of(PLAIN)
"""The pure barycenter: scores do not depend on what a probe draws, and no control with the same correction is added."""


def family(widths=(5, 8, 6, 3), seeds=(0, 1)):
    return [randomised(MLP(list(widths)), np.random.default_rng(seed)) for seed in seeds]


def data(models, noise=0.5):
    """Rows, labels that the mean of the networks gives after some noise, and continuous targets."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(ROWS, 5))
    with torch.no_grad():
        mean = sum(m(torch.as_tensor(X)) for m in models).numpy() / len(models)
    targets = mean + noise * rng.normal(size=mean.shape)
    return X, targets.argmax(1), targets


def by_name(table):
    return {row["name"]: row for row in table}


def silent(*arguments, **options):
    return by_name(compare(*arguments, verbose=False, **options))


class Recorder(VanillaAveraging):
    """Parameters of a plain average with a correction; averages without one and remembers what it was fitted on."""

    fitted = []

    def __init__(self, *, correction=None, probe="auto", weights=None, example_inputs=None, device=None, verbose=0):
        super().__init__(weights=weights, example_inputs=example_inputs, device=device, verbose=verbose)
        self.correction, self.probe = correction, probe

    def fit(self, models, y=None):
        Recorder.fitted.append((self, models))
        average = VanillaAveraging(weights=self.weights, example_inputs=self.example_inputs).fit(models)
        self.fused_model_ = average.fused_model_
        return self


class Aligned(Recorder):
    """Any other fusion with a correction."""

    def __init__(self, *, reg=0.0, correction=None, probe="auto", weights=None, example_inputs=None):
        super().__init__(correction=correction, probe=probe, weights=weights, example_inputs=example_inputs)
        self.reg = reg


@pytest.fixture
def recorder(monkeypatch):
    """Corrections, whether plain averages have them by now or not."""
    monkeypatch.setattr(Recorder, "fitted", [])
    monkeypatch.setattr(comparison, "VanillaAveraging", Recorder)
    return Recorder


class Other(BaseEstimator):
    """A fusion that is none of this library: the first model, or an error."""

    fitted = []

    def __init__(self, error=None, example_inputs=None):
        self.error, self.example_inputs = error, example_inputs

    def fit(self, models):
        if self.error is not None:
            raise self.error
        Other.fitted.append((self, models))
        self.fused_model_ = models[0]


def test_rows_scores_and_sizes_of_classes():
    models = family(seeds=(0, 1, 2))
    X, y, _ = data(models)
    narrow = WassersteinFusion(0.5, correction=None)
    table = compare(models, X, y, [PLAIN, narrow], verbose=False)
    assert [row["name"] for row in table] == [
        *("parent 0", "parent 1", "parent 2", "parents, mean", "best parent", "ensemble", "finding the neuron groups"),
        *("plain average", NAME, label_of(narrow)),
    ]
    rows = by_name(table)
    logits = [m(torch.as_tensor(X)).detach().numpy() for m in models]
    parents = [accuracy_score(y, own.argmax(1)) for own in logits]
    assert [rows[f"parent {i}"]["score"] for i in range(3)] == parents
    assert len(set(parents)) == 3
    assert rows["parents, mean"]["score"] == pytest.approx(np.mean(parents))
    best = rows["best parent"]
    assert (best["score"], best["note"]) == (max(parents), f"parent {np.argmax(parents)}")
    inputs = (torch.as_tensor(X[:2]),)
    for name, fusion in (("plain average", VanillaAveraging()), (NAME, clone(PLAIN))):
        assert rows[name]["score"] == fusion.set_params(example_inputs=inputs).fit(models).score(X, y)
    size = 5 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3
    sizes = [row["parameters"] for row in table]
    assert sizes == [size] * 3 + [None, size, 3 * size, None, size, size, 5 * 4 + 4 + 4 * 3 + 3 + 3 * 3 + 3]
    for row in table:
        if row["score"] is not None:
            assert row["to_parents"] == pytest.approx(row["score"] - np.mean(parents))
    assert [row["seconds"] is not None for row in table] == [False] * 6 + [True] * 4


@pytest.mark.parametrize("kind", ["classes", "targets", "tensor of classes", "tensor of targets"])
def test_values_are_plain(kind):
    models = family()
    X, y, targets = data(models)
    y = y if "classes" in kind else targets
    y = torch.as_tensor(y).requires_grad_("targets" in kind) if "tensor" in kind else y
    for row in compare(models, X, y, verbose=False):
        assert list(row) == ["name", "score", "to_parents", "agreement", "parameters", "seconds", "note", "estimator"]
        fused = row.pop("estimator")
        assert (fused is None) == (row["seconds"] is None or row["parameters"] is None)
        assert [type(value) for value in row.values() if value is not None] == [
            t for t, value in zip((str, float, float, float, int, float, str), row.values(), strict=True) if value is not None
        ]


def scaled(models):
    """The second network is much surer, which the mean of logits hears and that of softmax outputs does not."""
    with torch.no_grad():
        for tensor in models[1].linears[-1].parameters():
            tensor *= 20
    return models


@pytest.mark.parametrize("classes", [2, 3])
def test_the_ensemble_of_classes_is_the_mean_of_softmax_outputs(classes):
    parents = family((5, 8, 6, classes), seeds=(0, 1, 2))
    X, y, _ = data(parents)
    models = scaled(parents)
    logits = np.stack([m(torch.as_tensor(X)).detach().numpy() for m in models])
    expected, other = (accuracy_score(y, mean.argmax(1)) for mean in (softmax(logits, 2).mean(0), logits.mean(0)))
    assert silent(models, X, y, [])["ensemble"]["score"] == expected != other


@pytest.mark.parametrize("flat", [False, True])
def test_the_ensemble_of_single_logits_is_the_mean_of_logits(flat):
    models = scaled(family((5, 8, 6, 1)))
    X = data(family())[0]
    with torch.no_grad():
        for model in models:
            model.linears[-1].bias -= model(torch.as_tensor(X)).median()
        logits = np.stack([m(torch.as_tensor(X)).numpy()[:, 0] for m in models])
    y = (logits.mean(0) > 0).astype(int)
    assert 20 < y.sum() < 60
    rows = silent([nn.Sequential(model, nn.Flatten(0)) for model in models] if flat else models, X, y, [])
    assert rows["ensemble"]["score"] == 1 > rows["parent 0"]["score"]


def test_regression_is_scored_by_r2():
    models = family()
    X, _, y = data(models)
    rows = silent(models, X, y, PLAIN)
    predicted = [m(torch.as_tensor(X)).detach().numpy() for m in models]
    assert rows["parent 1"]["score"] == pytest.approx(r2_score(y, predicted[1]), abs=1e-5)
    assert rows["ensemble"]["score"] == pytest.approx(r2_score(y, sum(predicted) / 2), abs=1e-5)
    fusion = WassersteinFusion(example_inputs=(torch.as_tensor(X[:2]),), correction=None).fit(models)
    assert rows[NAME]["score"] == fusion.score(X, y)


def test_a_fusion_says_so_if_it_loses_to_its_best_parent():
    model = family()[0]
    models = [model, disguised(model, np.random.default_rng(0))]
    X, y, _ = data([model], noise=0)
    rows = silent(models, X, y, [WassersteinFusion(), VanillaAveraging()])
    assert (rows["WassersteinFusion()"]["score"], rows["WassersteinFusion()"]["note"]) == (1, "")
    assert rows["VanillaAveraging()"]["score"] < 1
    assert rows["VanillaAveraging()"]["note"] == "below its best parent"
    assert rows["plain average"]["note"] == ""


def test_the_bar_is_the_best_parent_and_not_the_mean():
    models = family(seeds=(0, 1, 2))
    X, y, _ = data(models[:1], noise=0)
    rows = silent(models, X, y, [WassersteinFusion(weights=[0.7, 0.2, 0.1], correction=None)])
    (fused,) = [row for name, row in rows.items() if name.startswith("Wasserstein")]
    assert rows["parents, mean"]["score"] < fused["score"] < rows["best parent"]["score"]
    assert fused["note"] == "below its best parent"


class Lost(WassersteinFusion):
    """Predicts the first class, whatever it is given."""

    def fit(self, models, y=None):
        super().fit(models)
        self.fused_model_.linears[-1].bias.data[0] += 1e3
        return self


@pytest.mark.parametrize("correction", [None, "repair"])
@pytest.mark.parametrize("copies", ["as they stand", "permuted"])
def test_a_fusion_says_so_if_alignment_did_not_help(correction, copies):
    model = family()[0]
    models = [model, copy.deepcopy(model) if copies == "as they stand" else disguised(model, np.random.default_rng(0))]
    X, y, _ = data([model], noise=0)
    y = y if copies == "as they stand" else np.zeros_like(y)  # which the plain average does not predict
    fusions = [Lost(correction=correction), WassersteinFusion(correction=correction, cost=0.5)]
    rows = silent(models, X[20:], y[20:], fusions, X_fit=X[:20])
    lost, good = (next(row for name, row in rows.items() if name.startswith(kind)) for kind in ("Lost", "Wasser"))
    if copies == "as they stand":
        assert lost["note"] == "below its best parent; alignment did not help, try cost=0.5, n_init=4"
        again = silent(models, X, y, [Lost(correction=correction, cost=0.5, n_init=2)])
        note = next(row for name, row in again.items() if name.startswith("Lost"))["note"]
        assert note == "below its best parent; alignment did not help, try X_fit=..., cost='weight'"
    else:
        assert "alignment" not in lost["note"]
    assert "alignment" not in good["note"]


class Foreign(BaseEstimator):
    """A fusion that knows no agreement."""

    def fit(self, models, y=None):
        self.fused_model_ = models.models[0]
        return self


def test_what_fusions_agree_on_with_their_parents():
    model = family(seeds=[2])[0]
    models = [model, disguised(model, np.random.default_rng(0))]
    X, y, _ = data([model])
    fusions = [
        WassersteinFusion(),
        FusionClassifier(),
        WassersteinFusion(reg=10.0),
        Foreign(),
    ]
    table = compare(models, X[:60], y[:60], fusions, X_fit=X[60:], verbose=False)
    rows = by_name(table)
    assert rows["WassersteinFusion()"]["agreement"] == rows["FusionClassifier()"]["agreement"] == 1.0
    blurred = rows["WassersteinFusion(reg=10.0)"]
    assert blurred["agreement"] == blurred["estimator"].agreement_.mean < 1
    assert blurred["estimator"].agreement_.source == "rows"
    assert all(
        row["agreement"] is None for row in table if row["estimator"] is None or row["name"] in ("plain average", "Foreign()")
    )
    _, _, header, *lines = str(table).splitlines()
    assert "  agrees  " in header and any(" 100.0% " in line for line in lines)
    assert "agrees" not in str(compare(models, X, y, [], verbose=False))


def test_a_poor_fusion_warns_by_its_row_alone(recwarn):
    model = family(seeds=[2])[0]
    models = [model, disguised(model, np.random.default_rng(0))]
    X, y, _ = data([model], noise=0)
    compare(models, X, y, [VanillaAveraging(correction="repair")], verbose=False)
    assert not any(issubclass(w.category, PoorFusionWarning) for w in recwarn)
    with pytest.warns(PoorFusionWarning):
        VanillaAveraging(correction="repair", random_state=0).fit(FusionInput(models, X))


def test_parents_of_other_widths_have_no_plain_average_and_the_row_says_why():
    models = [*family(), *family((5, 10, 6, 3))]
    X, y, _ = data(models)
    rows = silent(models, X, y)
    average = rows["plain average"]
    assert [average[key] for key in ("score", "to_parents", "parameters", "seconds")] == [None] * 4
    assert average["note"].startswith("WidthError: Equal widths are needed. Group 'linears.0' has 8")
    assert rows["WassersteinFusion()"]["score"] is not None
    sizes = [rows[f"parent {i}"]["parameters"] for i in range(4)]
    assert rows["ensemble"]["parameters"] == sum(sizes) and len(set(sizes)) == 2


@pytest.mark.parametrize(
    ("fusion", "note"),
    [
        (WassersteinFusion([8], correction=None), "WidthError: target_widths has 1 entries"),
        (WassersteinFusion(weights=[1.0], correction=None), "FusionError: weights must have one entry per model: 2"),
        (Other(NotImplementedError("not built yet")), "NotImplementedError: not built yet"),
        (Other(FusionError("wrong")), "FusionError: wrong"),
    ],
)
def test_an_error_of_one_fusion_keeps_the_table(fusion, note):
    models = family()
    X, y, _ = data(models)
    table = compare(models, X, y, [fusion, PLAIN], verbose=False)
    assert table[-2]["note"].startswith(note) and table[-2]["score"] is None
    assert table[-1]["name"] == NAME and table[-1]["score"] is not None


@pytest.mark.parametrize(
    ("fusion", "error", "message"),
    [
        (Other(RuntimeError("bug")), RuntimeError, "bug"),
        (WassersteinFusion(reg=-1.0), ValueError, "'reg' parameter of WassersteinFusion"),
        (WassersteinFusion(schedule="greedy"), ValueError, "'schedule' parameter"),
    ],
)
def test_other_errors_are_raised(fusion, error, message):
    models = family()
    X, y, _ = data(models)
    with pytest.raises(error, match=message):
        compare(models, X, y, [fusion], verbose=False)


def test_an_estimator_without_a_fused_model_is_refused():
    class Empty(Other):
        def fit(self, models):
            return self

    models = family()
    X, y, _ = data(models)
    with pytest.raises(TypeError, match=r"Empty\(\) has no fused_model_ after fit"):
        compare(models, X, y, [Empty()], verbose=False)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_outputs_that_are_no_numbers_have_no_score_unless_they_rule_out_a_class(value):
    class Broken(Other):
        def fit(self, models):
            self.fused_model_ = copy.deepcopy(models[0])
            self.fused_model_.linears[-1].bias.data[0] = value

    models = family()
    X, classes, targets = data(models)
    for y in (classes, targets):
        row = silent(models, X, y, [Broken()])["Broken()"]
        assert row["seconds"] is not None
        if y is classes and value == -np.inf:
            assert row["score"] == accuracy_score(y, 1 + models[0](torch.as_tensor(X))[:, 1:].argmax(1))
        else:
            assert row["score"] is None
            assert row["note"] == "FusionError: The outputs of the fused network hold NaN or infinite values."


class TestWhatTheFitsSee:
    def test_without_data_models_and_example_inputs_alone(self, recorder):
        models = family()
        X, y, _ = data(models)
        compare(models, X, y, [Aligned(), Aligned(probe="noise"), Aligned(probe="data")], verbose=False)
        (_, average), (auto, first), (noise, second), (last, listed) = recorder.fitted
        assert average is first is second and isinstance(first, FusionInput) and len(first) == 2
        assert auto.probe == noise.probe == "noise"  # two rows are no data
        assert last.probe == "data" and listed == models
        np.testing.assert_array_equal(first.arrays[0], X[:2])
        assert auto.example_inputs is noise.example_inputs is None
        assert not torch.isin(last.example_inputs[0], torch.as_tensor(X)).any() and last.example_inputs[0].shape == (2, 5)

    def test_an_estimator_of_another_kind_gets_the_list_of_models(self, monkeypatch):
        monkeypatch.setattr(Other, "fitted", [])
        models = family()
        X, y, _ = data(models)
        compare(models, X, y, [Other()], verbose=False)
        ((fusion, given),) = Other.fitted
        assert given == models and fusion.example_inputs[0].shape == (2, 5)
        assert not torch.isin(fusion.example_inputs[0], torch.as_tensor(X)).any()

    def test_rows_for_the_fits(self, recorder):
        models = family()
        X, y, _ = data(models)
        compare(models, X[:60], y[:60], [Aligned(), Aligned(probe="data")], X_fit=X[60:], verbose=False)
        for fusion, given in recorder.fitted:
            assert isinstance(given, FusionInput) and given.models == models
            np.testing.assert_array_equal(given.arrays[0], X[60:])
            assert fusion.example_inputs is None
        assert [fusion.probe for fusion, _ in recorder.fitted] == ["auto", "auto", "data"]

    @pytest.mark.parametrize("with_data", [False, True])
    def test_the_groups_are_found_once(self, counts, with_data):
        models = family()
        X, y, _ = data(models)
        fusions = [WassersteinFusion(), WassersteinFusion(reg=1e-2), VanillaAveraging()]
        compare(models, X[:60], y[:60], fusions, X_fit=X[60:] if with_data else None, verbose=False)
        assert counts.traced.count(2) == 1  # on two rows, as discovery; corrections trace batches of a probe

    @pytest.mark.parametrize("with_data", [False, True])
    def test_nothing_else_is_shared(self, with_data):
        held = []

        class Watched(WassersteinFusion):
            def fit(self, models, y=None):
                held.append(list(models.cache))
                super().fit(models)
                assert len(models.cache) > len(held[-1])  # its couplings
                return self

        models = family()
        X, y, _ = data(models)
        fusions = [WassersteinFusion(), Watched(), Watched(reg=1e-2), Watched()]
        compare(models, X[:60], y[:60], fusions, X_fit=X[60:] if with_data else None, verbose=False)
        assert len(held) == 3 and held[0] == held[1] == held[2] and len(held[0]) == 1

    def test_a_probe_that_chooses_takes_noise(self, recorder):
        models = family()
        X, y, _ = data(models)
        compare(models, X, y, [Aligned(probe=Probe(n_samples=50)), Aligned(probe=Probe("data"))], verbose=False)
        (auto, rows), (wants, listed) = recorder.fitted[1:]
        assert (auto.probe.kind, auto.probe.n_samples, len(rows)) == ("noise", 50, 2)
        assert wants.probe.kind == "data" and listed == models

    @pytest.mark.parametrize("make", [FusionClassifier, FusionRegressor])
    def test_what_a_predictor_wraps_sees_no_more(self, recorder, make):
        models = family()
        X, y, targets = data(models)
        y = targets if make is FusionRegressor else y
        own = (torch.ones(3, 5, dtype=torch.float64),)
        fusions = [make(Aligned()), make(Aligned(probe="data", example_inputs=own)), make(Aligned(probe=Probe("data")))]
        compare(models, X, y, fusions, verbose=False)
        (auto, first), (named, second), (probed, third) = recorder.fitted[1:]
        assert auto.probe == "noise" and len(first) == 2 and auto.example_inputs is None
        assert second == third == models and named.probe == "data" and probed.probe.kind == "data"
        assert torch.equal(named.example_inputs[0], own[0])
        del recorder.fitted[:]
        compare(models, X[:60], y[:60], make(Aligned()), X_fit=X[60:], verbose=False)
        fusion, given = recorder.fitted[-1]
        assert (fusion.probe, fusion.example_inputs) == ("auto", None)
        np.testing.assert_array_equal(given.arrays[0], X[60:])

    def test_example_inputs_of_an_estimator_stay(self, recorder):
        models = family()
        X, y, _ = data(models)
        own = (torch.ones(3, 5, dtype=torch.float64),)
        compare(models, X, y, [Aligned(example_inputs=own)], verbose=False)
        assert torch.equal(recorder.fitted[-1][0].example_inputs[0], own[0])

    @pytest.mark.parametrize("with_data", [False, True])
    def test_nothing_given_is_changed(self, with_data):
        models = family()
        models[0].train()
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
        X, y, _ = data(models)
        fusion = WassersteinFusion(random_state=0)
        parameters, kept, state = fusion.get_params(), X.copy(), torch.random.get_rng_state()
        compare(models, X[:60], y[:60], [fusion], X_fit=X[60:] if with_data else None, verbose=False)
        assert fusion.get_params() == parameters and not hasattr(fusion, "fused_model_")
        assert models[0].training and not models[1].training
        assert all(torch.equal(old[k], v) for m, old in zip(models, before, strict=True) for k, v in m.state_dict().items())
        assert np.array_equal(X, kept) and torch.equal(torch.random.get_rng_state(), state)


class TestCorrectionsWithoutAlignment:
    def test_the_same_correction_with_what_both_have(self, recorder):
        models = family()
        X, y, _ = data(models)
        fusion = Aligned(reg=0.1, correction="repair", probe="noise", weights=[0.9, 0.1])
        table = compare(models, X, y, [fusion, PLAIN], verbose=False)
        name = "Recorder(correction='repair', probe='noise', weights=[0.9, 0.1])"
        names = [row["name"] for row in table[-4:]]
        assert names[1:] == [f"Aligned(reg=0.1, {name[9:]}", name, NAME]
        assert table[-2]["note"] == "the same correction without alignment" and table[-2]["score"] is not None
        control = recorder.fitted[-1][0]
        assert type(control) is Recorder and (control.correction, control.weights) == ("repair", [0.9, 0.1])

    def test_fitted_once_for_fusions_that_differ_in_their_alignment(self, recorder):
        models = family()
        X, y, _ = data(models)
        fusions = [Aligned(reg=reg, correction=correction) for correction in ("repair", "regression") for reg in (0.0, 0.1)]
        names = [row["name"] for row in compare(models, X, y, fusions, verbose=False)]
        assert [n for n in names if n.startswith("Recorder")] == [f"Recorder(correction={c!r})" for c in ("repair", "regression")]

    def test_equal_parameters_are_found_equal(self):
        models = family()
        X, y, _ = data(models)
        fusions = [
            WassersteinFusion(reg=reg, correction=tuple("repair regression".split()), random_state=int("1000"))
            for reg in (0.0, 0.1)
        ]
        names = [row["name"] for row in compare(models, X, y, fusions, verbose=False)]
        assert len([name for name in names if name.startswith("VanillaAveraging")]) == 1

    def test_one_for_each_of_different_inputs(self):
        models = family()
        X, y, _ = data(models)
        inputs = [(torch.full((2, 5), float(k), dtype=torch.float64),) for k in (0, 1)]
        fusions = [WassersteinFusion(correction="repair", example_inputs=own) for own in inputs]
        names = [row["name"] for row in compare(models, X, y, fusions, verbose=False)]
        assert len([name for name in names if name.startswith("VanillaAveraging")]) == 2

    def test_also_for_another_fusion_of_the_same_parameters(self, recorder):
        class Alike(Other):
            def __init__(self, *, correction=None, probe="auto", weights=None, example_inputs=None, device=None, verbose=0):
                super().__init__(example_inputs=example_inputs)
                self.correction, self.probe, self.weights, self.device, self.verbose = correction, probe, weights, device, verbose

        models = family()
        X, y, _ = data(models)
        names = [row["name"] for row in compare(models, X, y, [Alike(correction="repair")], verbose=False)]
        assert names[-2:] == ["Alike(correction='repair')", "Recorder(correction='repair')"]

    def test_none_for_a_plain_average_that_is_there_already(self, recorder):
        models = family()
        X, y, _ = data(models)
        fusions = [Recorder(correction="repair"), Aligned(correction="repair")]
        names = [row["name"] for row in compare(models, X, y, fusions, verbose=False)]
        assert names[-2:] == ["Recorder(correction='repair')", "Aligned(correction='repair')"]

    def test_of_the_fusion_that_a_predictor_wraps(self):
        models = family()
        X, y, _ = data(models)
        predictor = FusionClassifier(WassersteinFusion(correction="regression", random_state=0))
        table = compare(models, X, y, [predictor, predictor.fusion], verbose=False)
        assert [row["name"] for row in table[-4:]] == [
            "plain average",
            "FusionClassifier(fusion=WassersteinFusion(correction='regression', random_state=0))",
            "VanillaAveraging(correction='regression', random_state=0)",
            "WassersteinFusion(correction='regression', random_state=0)",
        ]
        assert table[-2]["note"] == "the same correction without alignment" and table[-2]["score"] is not None
        assert table[-3]["score"] == table[-1]["score"]
        names = by_name(compare(models, X, y, [FusionClassifier(VanillaAveraging(correction="repair"))], verbose=False))
        assert list(names)[-2:] == ["plain average", "FusionClassifier(fusion=VanillaAveraging(correction='repair'))"]

    def test_skipped_where_plain_averages_have_no_corrections(self, monkeypatch):
        class Without(VanillaAveraging):
            def __init__(self, *, weights=None, example_inputs=None, device=None, verbose=0):
                super().__init__(weights=weights, example_inputs=example_inputs, device=device, verbose=verbose)

        monkeypatch.setattr(comparison, "VanillaAveraging", Without)
        models = family()
        X, y, _ = data(models)
        names = [row["name"] for row in compare(models, X, y, [Aligned(correction="repair")], verbose=False)]
        assert names[-2:] == ["plain average", "Aligned(correction='repair')"]


def test_names_are_unique_short_and_show_what_is_not_default():
    models = family()
    X, y, _ = data(models)
    fusions = [
        WassersteinFusion(),
        WassersteinFusion(),
        WassersteinFusion(reg=0.0, alpha_h=2.0, schedule="layerwise"),
        WassersteinFusion(init=models[1], example_inputs=(torch.zeros(2, 5, dtype=torch.float64),), random_state=3),
    ]
    names = [row["name"] for row in compare(models, X, y, fusions, verbose=False)]
    names = [name for name in names if name.startswith("WassersteinFusion")]
    assert names[:3] == [
        "WassersteinFusion()",
        "WassersteinFusion() #2",
        "WassersteinFusion(alpha_h=2.0, schedule='layerwise')",
    ]
    assert names[3].startswith("WassersteinFusion(init=MLP(") and names[3].endswith("random_state=3)")
    assert len(names[3]) < 150 and "\n" not in names[3]


class TestPredictors:
    """They say how the outputs of all networks are read."""

    def scores(self, models, X, y, fusions):
        """Of the table by name, those of predictors checked against their own."""
        table = compare(models, X, y, fusions, verbose=False)
        for row in table:
            if isinstance(row["estimator"], (FusionClassifier, FusionRegressor)):
                assert row["score"] == row["estimator"].score(X, y)
        return {row["name"]: row["score"] for row in table if row["score"] is not None}

    def test_classes_are_the_labels_of_outputs(self):
        models, names = family(), np.array(["cat", "ant", "bee"])
        X, y, _ = data(models)
        plain = silent(models, X, y, PLAIN)
        averaging = FusionClassifier(VanillaAveraging(), classes=names)
        found = self.scores(models, X, names[y], [FusionClassifier(PLAIN, classes=names.tolist()), PLAIN, averaging])
        for name, score in found.items():
            same = "plain average" if "Vanilla" in name else NAME if "Classifier" in name else name
            assert score == plain[same]["score"]
        assert len(found) == 9

    def test_whole_numbers_in_another_order(self):
        models = family()
        X, y, _ = data(models)
        expected = silent(models, X, y)["parent 0"]["score"]
        found = self.scores(models, X, np.array([2, 0, 1])[y], [FusionClassifier(classes=[2, 0, 1])])
        assert found["parent 0"] == expected != silent(models, X, np.array([2, 0, 1])[y])["parent 0"]["score"]

    @pytest.mark.parametrize("classes", [None, ["no", "yes"], ["yes", "no"]])
    def test_a_single_logit(self, classes):
        models = family((5, 8, 6, 1))
        X, _, _ = data(family())
        y = np.random.default_rng(0).integers(0, 2, ROWS)
        labels = y if classes is None else np.array(classes)[y]
        found = self.scores(models, X, labels, [FusionClassifier(classes=classes)])
        logits = [m(torch.as_tensor(X)).detach().numpy()[:, 0] for m in models]
        assert found["parent 1"] == np.mean((logits[1] > 0) == y)
        assert found["ensemble"] == np.mean((sum(logits) > 0) == y)

    def test_ties_go_to_the_first_of_the_sorted_classes(self):
        models = [nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double() for _ in range(2)]
        with torch.no_grad():
            for model in models:
                model[2].weight.zero_()
                model[2].bias.zero_()
        found = self.scores(models, np.eye(2), ["no", "no"], [FusionClassifier(classes=["yes", "no"])])
        assert set(found.values()) == {1.0}

    def test_probabilities_that_the_code_hides(self):
        class Softsign(nn.Module):
            def __init__(self, network):
                super().__init__()
                self.network = network

            def forward(self, x):
                z = self.network(x)
                return (1 + z / (1 + z.abs())) / 2

        models = [Softsign(m) for m in scaled(family((5, 8, 6, 1)))]
        X, _, _ = data(family())
        p = np.stack([m(torch.as_tensor(X)).detach().numpy()[:, 0] for m in models])
        y = (p[0] > 0.5).astype(int)
        assert 0 < y.sum() < ROWS
        found = self.scores(models, X, y, [FusionClassifier(PLAIN, outputs="probabilities"), PLAIN])
        assert found["parent 0"] == 1 and found["parent 1"] == np.mean((p[1] > 0.5) == y)
        assert found["ensemble"] == np.mean((p.mean(0) > 0.5) == y)
        assert found[NAME] == found[label_of(FusionClassifier(PLAIN, outputs="probabilities"))]
        assert self.scores(models, X, y, [FusionClassifier()])["parent 0"] == y.mean()  # guessed to be logits

    def test_logits_said_of_probabilities(self):
        models = [nn.Sequential(m, nn.Sigmoid()) for m in family((5, 8, 6, 1))]
        X, y = data(family())[0], np.arange(ROWS) % 4 > 0
        assert set(self.scores(models, X, y, [FusionClassifier(outputs="logits")]).values()) == {0.75}

    @pytest.mark.parametrize("targets", [1, 3])
    def test_whole_number_targets_of_regressors(self, targets, capsys):
        models = family((5, 8, 6, targets))
        X, _, _ = data(family())
        y = np.stack([m(torch.as_tensor(X)).detach().numpy() for m in models]).mean(0)
        y = np.round(100 * y).astype(int)[:, 0] if targets == 1 else np.round(100 * y).astype(int)
        found = self.scores(models, X, y, [FusionRegressor(PLAIN, batch_size=7), PLAIN])
        predicted = models[1](torch.as_tensor(X)).detach().numpy()
        assert found["parent 1"] == pytest.approx(r2_score(y, predicted))
        assert found[NAME] == pytest.approx(found[label_of(FusionRegressor(PLAIN, batch_size=7))])
        compare(models, X, y, FusionRegressor())
        assert "R2 on 80 rows" in capsys.readouterr().out

    @pytest.mark.parametrize("make", [FusionClassifier, FusionRegressor])
    @pytest.mark.parametrize("fusion", [None, WassersteinFusion(), VanillaAveraging(correction="regression")])
    def test_convolutions(self, make, fusion):
        models = [randomised(CNN(3, 2, 4), np.random.default_rng(seed)) for seed in (0, 1)]
        X = np.random.default_rng(2).normal(size=(30, *models[0].example.shape[1:]))
        y = models[0](torch.as_tensor(X)).detach().numpy()
        y = y.argmax(1) if make is FusionClassifier else y
        rows = silent(models, X, y, [make(fusion)])
        assert list(rows.values())[-1]["score"] is not None

    @pytest.mark.parametrize(
        ("fusions", "y", "message"),
        [
            (
                [FusionClassifier(), FusionRegressor()],
                None,
                r"FusionClassifier\(\) and FusionRegressor\(\); compare",
            ),
            ([FusionClassifier(classes=["a", "b", "c"]), FusionClassifier()], None, r"agree on classes. .*'b'.* '0, 1, ...'"),
            ([FusionClassifier(outputs="probabilities"), FusionClassifier()], None, "agree on outputs. .*'prob.*'logits'"),
            ([FusionClassifier(classes=["a", "b", "c"])], np.resize(["a", "d"], ROWS), r"y holds \['d'\], but the classes are"),
            ([FusionClassifier(classes=["a", "b"])], np.resize(["a", "b"], ROWS), "2 labels, but the network tells 3"),
            ([FusionClassifier()], np.linspace(0.1, 1, ROWS), r"y holds \[0.1, .* FusionClassifier\(classes="),
            ([FusionClassifier()], np.eye(3, dtype=int)[np.arange(ROWS) % 3], "one class per row"),
            ([FusionRegressor()], np.arange(ROWS), r"shape \(80,\), but the outputs of parent 0 have shape \(80, 3\)"),
        ],
    )
    def test_errors_before_any_fit(self, caplog, fusions, y, message):
        caplog.set_level(logging.INFO, "sklearn_wbfuse")
        models = family()
        X, labels, _ = data(models)
        with pytest.raises(FusionError, match=message):
            compare(models, X, labels if y is None else y, [WassersteinFusion(), *fusions], verbose=False)
        assert not any("fusing" in record.getMessage() for record in caplog.records)

    def test_what_means_the_same_agrees(self):
        models = family()
        X, y, _ = data(models)
        same = [FusionClassifier(PLAIN, **options) for options in ({}, {"classes": np.arange(3)}, {"outputs": "logits"})]
        assert len(self.scores(models, X, y, same)) == 9
        models = [nn.Sequential(m, nn.Softmax(1)) for m in models]
        assert len(self.scores(models, X, y, [FusionClassifier(PLAIN), FusionClassifier(PLAIN, outputs="probabilities")])) == 8


@pytest.mark.parametrize("kind", ["array", "tensor", "bfloat16", "tensor and array"])
def test_rows_for_the_fits_share_no_memory_with_those_scored(kind):
    models = family()
    X, y, _ = data(models)
    held = X if kind == "array" else torch.as_tensor(X).to(torch.bfloat16 if kind == "bfloat16" else torch.float64)

    def fused(scored, X_fit):
        X_fit = X_fit.numpy() if kind == "tensor and array" else X_fit
        return compare(models, scored, y[: len(scored)], [], X_fit=X_fit, verbose=False)

    for scored, overlapping in ((held, held[:10]), (held, held[:]), (held[:50], held[49:]), (held[::2], held[::3])):
        with pytest.raises(FusionError, match="X_fit is X"):
            fused(scored, overlapping)
    for scored, other in ((held[:50], held[50:]), (held[::2], held[1::2])):
        assert fused(scored, other)[-1]["score"] is not None


@pytest.mark.parametrize("fusions", [WassersteinFusion(), [WassersteinFusion()], (WassersteinFusion(),), None])
def test_one_estimator_needs_no_list_and_is_the_default(fusions):
    models = family()
    X, y, _ = data(models)
    names = [row["name"] for row in compare(models, X, y, fusions, verbose=False)]
    assert names[names.index("plain average") + 1] == "WassersteinFusion()"


def test_no_fusion_gives_the_controls():
    models = family()
    X, y, _ = data(models)
    assert compare(models, X, y, [], verbose=False)[-1]["name"] == "plain average"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x, z):
        return self.head(torch.relu(self.left(x) + self.right(z)))


def test_several_inputs_are_a_tuple():
    torch.manual_seed(0)
    models = [TwoInputs(), TwoInputs()]
    X = (torch.randn(30, 4), np.random.default_rng(0).normal(size=(30, 3)).astype("float32"))
    y = models[0](X[0], torch.as_tensor(X[1])).argmax(1)
    rows = silent(models, tuple(a[:20] for a in X), y[:20])
    assert rows["parent 0"]["score"] == 1 and rows["WassersteinFusion()"]["score"] is not None
    rows = silent(models, tuple(a[:20] for a in X), y[:20], X_fit=tuple(a[20:] for a in X))
    assert rows["parent 0"]["score"] == 1 and rows["WassersteinFusion()"]["score"] is not None
    with pytest.raises(FusionError, match="X_fit is X"):
        compare(models, X, y, X_fit=(X[0].flip(0), X[1]), verbose=False)


def test_tokens_stay_whole_numbers():
    models = [randomised(Recurrent("gru", 6, tokens=9), np.random.default_rng(seed), torch.float32) for seed in (0, 1)]
    X = np.random.default_rng(2).integers(0, 9, (20, *models[0].example.shape[1:]))
    y = models[0](torch.as_tensor(X))
    y = (y[0] if isinstance(y, tuple) else y).argmax(-1)
    assert silent(models, X, y)["parent 0"]["score"] == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": "a model"}, InvalidModelError, "Put the models into a list"),
        ({"models": []}, InvalidModelError, "at least one model"),
        ({"models": "two depths"}, ArchitectureMismatchError, "different parameters"),
        ({"fusions": WassersteinFusion}, TypeError, r"fusions\[0\] .* the class WassersteinFusion; give an instance"),
        ({"fusions": [WassersteinFusion(), VanillaAveraging]}, TypeError, r"fusions\[1\] .* the class VanillaAveraging"),
        ({"fusions": nn.Sequential(nn.Linear(2, 2))}, TypeError, "a network, Sequential; networks go first"),
        ({"fusions": [nn.Linear(2, 2)]}, TypeError, "a network, Linear; networks go first"),
        ({"fusions": "wasserstein"}, TypeError, "Got str"),
        ({"fusions": ""}, TypeError, "Got str"),
        ({"fusions": SimpleNamespace(fit=None)}, TypeError, "Got SimpleNamespace"),
        ({"fusions": BaseEstimator()}, TypeError, "Got BaseEstimator"),
        ({"fusions": {"name": WassersteinFusion()}}, TypeError, "Got str"),
        ({"fusions": 3}, TypeError, "Got int"),
        ({"y": np.zeros(7, dtype=int)}, FusionError, "X has 80 rows but y has 7"),
        ({"y": None}, FusionError, "y is None; give one label per row"),
        ({"y": 3}, FusionError, "y is 3"),
        ({"y": np.full(ROWS, 5)}, FusionError, r"classes 0 to 2, but y holds \[5\]"),
        ({"y": np.array(["a"] * ROWS)}, FusionError, "relabel y"),
        ({"y": np.linspace(0.1, 1, ROWS)}, FusionError, r"shape \(80,\), but the outputs of parent 0 have shape \(80, 3\)"),
        ({"X": np.zeros((0, 5)), "y": []}, FusionError, "no rows to score on"),
        ({"X": [np.zeros((ROWS, 5)), np.zeros((ROWS, 5))]}, FusionError, "go into a tuple, not a list"),
        ({"X": np.zeros((ROWS, 4))}, FusionError, "example_inputs"),
        ({"X_fit": np.zeros((0, 5))}, FusionError, "X_fit has no rows"),
        ({"X_fit": "X"}, FusionError, "X_fit is X"),
    ],
)
def test_bad_input_has_its_error(change, error, message):
    models = family()
    X, y, _ = data(models)
    named = {"a model": models[0], "two depths": [models[0], *family((5, 8, 3))], "X": X}
    change = {key: named.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    given = {"models": models, "X": X, "y": y, **change}
    with pytest.raises(error, match=message):
        compare(**given, verbose=False)


class TestPrinting:
    def test_aligned_columns(self, capsys):
        models = family()
        X, y, _ = data(models)
        table = compare(models, X[:60], y[:60], [WassersteinFusion(), WassersteinFusion(schedule="layerwise")], X_fit=X[60:])
        title, empty, header, rule, *lines = capsys.readouterr().out.splitlines()
        assert title == "2 networks; accuracy on 60 rows. The fits saw 20 other rows, without labels."
        assert empty == "" and header.split("  ")[0] == "network" and set(rule) == {"-", " "}
        assert [name for name in header.split("  ") if name.strip()][-1] == "note"
        ends = [i for i, pair in enumerate(zip(rule, rule[1:] + " ", strict=True)) if pair == ("-", " ")]
        for row, line in zip(table, lines, strict=False):  # long notes follow
            assert line.startswith(row["name"] + " " * (row["note"] != "")) and line == line.rstrip()
            if row["score"] is not None:
                score = f"{100 * row['score']:.2f}%"
                assert line[: ends[1] + 1].endswith(score)
                assert line[: ends[2] + 1].endswith(f"{100 * row['to_parents']:+z.2f}")
            if row["agreement"] is not None:
                assert line[: ends[3] + 1].endswith(f" {row['agreement']:.1%}")
            if row["parameters"] is not None:
                assert line[: ends[4] + 1].endswith(f" {row['parameters']:,}")
            if row["seconds"] is not None:
                assert line[: ends[5] + 1].endswith(f" {row['seconds']:.2f}")
            if row["note"]:
                assert line[ends[5] + 3 :] == (row["note"] if len(row["note"]) <= 60 else "see below")

    def test_no_difference_has_no_minus(self):
        models = family()
        X, y, _ = data(models)
        table = compare(models, X, y, [], verbose=False)
        table[0]["to_parents"] = -1e-17  # from the rounding of a mean
        assert "+0.00" in str(Comparison(table[:1], "accuracy", ""))

    def test_r2_has_four_digits(self, capsys):
        models = family()
        X, _, y = data(models)
        table = compare(models, X, y)
        out = capsys.readouterr().out
        assert "R2 on 80 rows. The fits saw no data." in out and "%" not in out
        assert f"{table[0]['score']:.4f}" in out.splitlines()[4]

    def test_long_messages_are_below_in_full_and_once(self, capsys):
        models = [*family(), *family((5, 10, 6, 3))]
        X, y, _ = data(models)
        table = compare(models, X, y, [VanillaAveraging(), PLAIN])
        out = capsys.readouterr().out
        above, below = out.split("\n\n", 2)[1:]
        assert above.count("see below") == 2 and max(map(len, above.splitlines())) < 120
        note = next(row["note"] for row in table if row["name"] == "plain average")
        assert " ".join(below.split()) == f"plain average, VanillaAveraging(): {note}"

    def test_nothing_is_printed_unless_verbose(self, capsys):
        models = family()
        X, y, _ = data(models)
        compare(models, X, y, verbose=False)
        assert capsys.readouterr().out == ""


def test_an_ensemble_of_probabilities_is_their_mean():
    """Not that of their softmax, which is closer to a vote of equals."""
    X, rng = np.eye(4), np.random.default_rng(0)
    models = [nn.Sequential(nn.Linear(4, 4, bias=False), nn.Softmax(1)).double() for _ in range(3)]
    with torch.no_grad():
        for model in models:
            model[0].weight.copy_(torch.as_tensor(3 * rng.normal(size=(4, 4))))
        mean = sum(model(torch.as_tensor(X)) for model in models).numpy() / 3
        squashed = sum(softmax(model(torch.as_tensor(X)).numpy(), axis=1) for model in models)
    assert (mean.argmax(1) != squashed.argmax(1)).any()
    rows = silent(models, np.repeat(X, 3, 0), np.repeat(mean.argmax(1), 3))
    assert rows["ensemble"]["score"] == 1.0


def test_predictors_run_on_as_many_rows_as_they_say():
    seen = []

    class Counting(nn.Sequential):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    parents = [Counting(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(2)]
    (*_, row) = compare(parents, torch.randn(50, 4), np.arange(50) % 3, FusionClassifier(PLAIN, batch_size=7), verbose=False)
    assert row["score"] is not None and seen[-8:] == [*(7 * [7]), 1]


def test_a_classifier_does_not_take_targets():
    parents = [nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(2)]
    with pytest.raises(FusionError, match="but the classes are"):
        compare(parents, torch.randn(50, 4), np.linspace(0, 2, 50), FusionClassifier(), verbose=False)


def test_what_compare_fits_saves_no_row(tmp_path):
    models = family()
    X, y, _ = data(models)
    rows = compare(models, X, y, [WassersteinFusion(), FusionClassifier()], verbose=False)
    for name, row in enumerate(rows[-2:]):
        row["estimator"].save(tmp_path / str(name))
        stored = safetensors.torch.load_file(tmp_path / str(name) / "couplings.safetensors").values()
        values = torch.cat([t.double().flatten() for t in stored if t.numel()])
        assert len(values) and not torch.isin(values, torch.as_tensor(X).flatten()).any()


@pytest.mark.parametrize("batch_size", [None, "all"])
def test_batch_size_of_others_is_theirs(batch_size):
    class Own(BaseEstimator):
        def __init__(self, batch_size=batch_size):
            self.batch_size = batch_size

        def fit(self, models, y=None):
            self.fused_model_ = models[0]
            return self

    models = family()
    X, y, _ = data(models)
    assert compare(models, X, y, Own(), verbose=False)[-1]["score"] == compare(models, X, y, [], verbose=False)[0]["score"]


def test_targets_of_any_shape_and_numbers_alone():
    parents = [nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))) for _ in range(2)]
    X = torch.randn(20, 4)
    rows = compare(parents, X, parents[1](X).detach(), VanillaAveraging(), verbose=False)
    assert rows[1]["score"] == 1.0
    with pytest.raises(FusionError, match="numbers in y"):
        compare(parents, X, np.repeat(["a", "b"], 10), FusionRegressor(), verbose=False)
    with pytest.raises(FusionError, match=r"FusionClassifier\(classes="):
        compare(family(), np.zeros((4, 5)), list("abab"), verbose=False)


class TestComparison:
    """What `compare` returns is the list of rows, and knows what they are about."""

    @pytest.fixture(scope="class")
    def found(self):
        models = family()
        X, y, _ = data(models)
        return compare(models, X, y, [], verbose=False)

    def test_it_iterates_and_indexes_as_the_list_of_rows(self, found):
        assert isinstance(found, list) and found == list(found) and found[-1]["name"] == "plain average"
        assert [row["name"] for row in found[:2]] == ["parent 0", "parent 1"] and len(found) == len(list(found))

    def test_it_says_what_it_is_about(self, found, capsys):
        assert found.metric == "accuracy" and found.title.startswith("2 networks; accuracy on")
        assert str(found).startswith(f"{found.title}\n\nnetwork ") and repr(found) == f"Comparison({len(found)} rows, accuracy)"
        assert capsys.readouterr().out == ""

    def test_a_frame_is_made_by_pandas(self, found, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
        assert found.to_frame() == ("frame", list(found))
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="pip install pandas"):
            found.to_frame()
