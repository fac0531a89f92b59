"""`compare`: predictors, labels, and outputs of any kind."""

import logging

import numpy as np
import pytest
import torch
from comparing import NAME, PLAIN, ROWS, data, family, scaled, silent
from networks import CNN, randomised
from scipy.special import softmax
from sklearn.metrics import r2_score
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionRegressor, VanillaAveraging, WassersteinFusion, compare
from sklearn_wbfuse.base import label_of
from sklearn_wbfuse.exceptions import FusionError


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
        scores = self.scores(models, X, names[y], [FusionClassifier(PLAIN, classes=names.tolist()), PLAIN, averaging])
        for name, score in scores.items():
            same = "plain average" if "Vanilla" in name else NAME if "Classifier" in name else name
            assert score == plain[same]["score"]
        assert len(scores) == 9

    def test_whole_numbers_in_another_order(self):
        models = family()
        X, y, _ = data(models)
        expected = silent(models, X, y)["parent 0"]["score"]
        scores = self.scores(models, X, np.array([2, 0, 1])[y], [FusionClassifier(classes=[2, 0, 1])])
        assert scores["parent 0"] == expected != silent(models, X, np.array([2, 0, 1])[y])["parent 0"]["score"]

    @pytest.mark.parametrize("classes", [None, ["no", "yes"], ["yes", "no"]])
    def test_a_single_logit(self, classes):
        models = family((5, 8, 6, 1))
        X, _, _ = data(family())
        y = np.random.default_rng(0).integers(0, 2, ROWS)
        labels = y if classes is None else np.array(classes)[y]
        scores = self.scores(models, X, labels, [FusionClassifier(classes=classes)])
        logits = [m(torch.as_tensor(X)).detach().numpy()[:, 0] for m in models]
        assert scores["parent 1"] == np.mean((logits[1] > 0) == y)
        assert scores["ensemble"] == np.mean((sum(logits) > 0) == y)

    def test_ties_go_to_the_first_of_the_sorted_classes(self):
        models = [nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double() for _ in range(2)]
        with torch.no_grad():
            for model in models:
                model[2].weight.zero_()
                model[2].bias.zero_()
        scores = self.scores(models, np.eye(2), ["no", "no"], [FusionClassifier(classes=["yes", "no"])])
        assert set(scores.values()) == {1.0}

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
        scores = self.scores(models, X, y, [FusionClassifier(PLAIN, outputs="probabilities"), PLAIN])
        assert scores["parent 0"] == 1 and scores["parent 1"] == np.mean((p[1] > 0.5) == y)
        assert scores["ensemble"] == np.mean((p.mean(0) > 0.5) == y)
        assert scores[NAME] == scores[label_of(FusionClassifier(PLAIN, outputs="probabilities"))]
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
        scores = self.scores(models, X, y, [FusionRegressor(PLAIN, batch_size=7), PLAIN])
        predicted = models[1](torch.as_tensor(X)).detach().numpy()
        assert scores["parent 1"] == pytest.approx(r2_score(y, predicted))
        assert scores[NAME] == pytest.approx(scores[label_of(FusionRegressor(PLAIN, batch_size=7))])
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
            (
                [FusionClassifier(classes=["a", "b", "c"])],
                np.resize(["a", "d"], ROWS),
                r"labels among .* Got \['d'\]",
            ),
            ([FusionClassifier(classes=["a", "b"])], np.resize(["a", "b"], ROWS), "each of the network's 3 classes. Got 2"),
            ([FusionClassifier()], np.linspace(0.1, 1, ROWS), r"Got \[0.1, .* FusionClassifier\(classes="),
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


def test_a_classifier_does_not_take_targets():
    parents = [nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(2)]
    with pytest.raises(FusionError, match="must hold labels among"):
        compare(parents, torch.randn(50, 4), np.linspace(0, 2, 50), FusionClassifier(), verbose=False)


def test_targets_of_any_shape_and_numbers_alone():
    parents = [nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))) for _ in range(2)]
    X = torch.randn(20, 4)
    rows = compare(parents, X, parents[1](X).detach(), VanillaAveraging(), verbose=False)
    assert rows[1]["score"] == 1.0
    with pytest.raises(FusionError, match="numbers in y"):
        compare(parents, X, np.repeat(["a", "b"], 10), FusionRegressor(), verbose=False)
    with pytest.raises(FusionError, match=r"FusionClassifier\(classes="):
        compare(family(), np.zeros((4, 5)), list("abab"), verbose=False)
