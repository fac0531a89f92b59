"""`compare`: what the fits get to see, and corrections without alignment beside them."""

import numpy as np
import pytest
import safetensors.torch
import torch
from comparing import NAME, PLAIN, Other, by_name, data, family
from sklearn.base import BaseEstimator
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, VanillaAveraging, WassersteinFusion, compare
from sklearn_wbfuse.correction import Probe
from sklearn_wbfuse.exceptions import FusionError
from sklearn_wbfuse.model_selection import comparison


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
        ((fusion, fitted_on),) = Other.fitted
        assert fitted_on == models and fusion.example_inputs[0].shape == (2, 5)
        assert not torch.isin(fusion.example_inputs[0], torch.as_tensor(X)).any()

    def test_rows_for_the_fits(self, recorder):
        models = family()
        X, y, _ = data(models)
        compare(models, X[:60], y[:60], [Aligned(), Aligned(probe="data")], X_fit=X[60:], verbose=False)
        for fusion, fitted_on in recorder.fitted:
            assert isinstance(fitted_on, FusionInput) and fitted_on.models == models
            np.testing.assert_array_equal(fitted_on.arrays[0], X[60:])
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
        inputs = (torch.ones(3, 5, dtype=torch.float64),)
        fusions = [make(Aligned()), make(Aligned(probe="data", example_inputs=inputs)), make(Aligned(probe=Probe("data")))]
        compare(models, X, y, fusions, verbose=False)
        (auto, first), (named, second), (probed, third) = recorder.fitted[1:]
        assert auto.probe == "noise" and len(first) == 2 and auto.example_inputs is None
        assert second == third == models and named.probe == "data" and probed.probe.kind == "data"
        assert torch.equal(named.example_inputs[0], inputs[0])
        del recorder.fitted[:]
        compare(models, X[:60], y[:60], make(Aligned()), X_fit=X[60:], verbose=False)
        fusion, fitted_on = recorder.fitted[-1]
        assert (fusion.probe, fusion.example_inputs) == ("auto", None)
        np.testing.assert_array_equal(fitted_on.arrays[0], X[60:])

    def test_example_inputs_of_an_estimator_stay(self, recorder):
        models = family()
        X, y, _ = data(models)
        inputs = (torch.ones(3, 5, dtype=torch.float64),)
        compare(models, X, y, [Aligned(example_inputs=inputs)], verbose=False)
        assert torch.equal(recorder.fitted[-1][0].example_inputs[0], inputs[0])

    @pytest.mark.parametrize("with_data", [False, True])
    def test_nothing_given_is_changed(self, with_data):
        models = family()
        models[0].train()
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
        X, y, _ = data(models)
        fusion = WassersteinFusion(random_state=0)
        parameters, rows_before, state = fusion.get_params(), X.copy(), torch.random.get_rng_state()
        compare(models, X[:60], y[:60], [fusion], X_fit=X[60:] if with_data else None, verbose=False)
        assert fusion.get_params() == parameters and not hasattr(fusion, "fused_model_")
        assert models[0].training and not models[1].training
        assert all(torch.equal(old[k], v) for m, old in zip(models, before, strict=True) for k, v in m.state_dict().items())
        assert np.array_equal(X, rows_before) and torch.equal(torch.random.get_rng_state(), state)


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
        fusions = [WassersteinFusion(correction="repair", example_inputs=example) for example in inputs]
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


@pytest.mark.parametrize("kind", ["array", "tensor", "bfloat16", "tensor and array"])
def test_rows_for_the_fits_share_no_memory_with_those_scored(kind):
    models = family()
    X, y, _ = data(models)
    held = X if kind == "array" else torch.as_tensor(X).to(torch.bfloat16 if kind == "bfloat16" else torch.float64)

    def fused(scored, X_fit):
        X_fit = X_fit.numpy() if kind == "tensor and array" else X_fit
        return compare(models, scored, y[: len(scored)], [], X_fit=X_fit, verbose=False)

    for scored, overlapping in ((held, held[:10]), (held, held[:]), (held[:50], held[49:]), (held[::2], held[::3])):
        with pytest.raises(FusionError, match="share memory with X"):
            fused(scored, overlapping)
    for scored, other in ((held[:50], held[50:]), (held[::2], held[1::2])):
        assert fused(scored, other)[-1]["score"] is not None


def test_predictors_run_on_as_many_rows_as_they_say():
    seen = []

    class Counting(nn.Sequential):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    parents = [Counting(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(2)]
    (*_, row) = compare(parents, torch.randn(50, 4), np.arange(50) % 3, FusionClassifier(PLAIN, batch_size=7), verbose=False)
    assert row["score"] is not None and seen[-8:] == [*(7 * [7]), 1]


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
