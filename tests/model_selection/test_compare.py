"""`compare`: the rows of its table and what it says of each fusion."""

import copy

import numpy as np
import pytest
import torch
from comparing import NAME, PLAIN, Other, by_name, data, family, scaled, silent
from networks import disguised
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import accuracy_score, r2_score
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, VanillaAveraging, WassersteinFusion, compare
from sklearn_wbfuse.base import label_of
from sklearn_wbfuse.exceptions import FusionError, PoorFusionWarning


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
    parents = [accuracy_score(y, outputs.argmax(1)) for outputs in logits]
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
    assert average["note"].startswith("WidthError: All models must have equal widths. Got 8 neurons in group 'linears.0'")
    assert rows["WassersteinFusion()"]["score"] is not None
    sizes = [rows[f"parent {i}"]["parameters"] for i in range(4)]
    assert rows["ensemble"]["parameters"] == sum(sizes) and len(set(sizes)) == 2


@pytest.mark.parametrize(
    ("fusion", "note"),
    [
        (WassersteinFusion([8], correction=None), "WidthError: target_widths must have one entry per group"),
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
    with pytest.raises(TypeError, match=r"must have a fused_model_ after fit.* Empty\(\) has none"):
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
