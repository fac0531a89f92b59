"""What displays take, and how they read the outputs of networks."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.connectivity.evaluation import Evaluator, fitted
from sklearn_wbfuse.exceptions import FusionError, FusionWarning
from sklearn_wbfuse.inspection import CouplingDisplay, InterpolationDisplay, LossPlaneDisplay

pytest.importorskip("matplotlib")

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Hidden(nn.Sequential):
    """Probabilities by a formula that does not tell."""

    def forward(self, x):
        z = super().forward(x)
        return z.exp() / z.exp().cumsum(1)[:, -1:] if z.shape[1] > 1 else (1 + z / (1 + z.abs())) / 2


def networks(kind, n_outputs, count=3):
    torch.manual_seed(0)
    networks = [kind(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, n_outputs)).eval() for _ in range(count)]
    for model in networks:  # both classes occur
        model[2].bias.data -= nn.Sequential(*model)(X).mean(0)
    return networks


def losses(models):
    """Cross-entropy of probabilities, by hand."""
    with torch.no_grad():
        outputs_of_models = [m(X) for m in models]
    return [float(-torch.log(torch.where(Y == 1, p[:, -1], 1 - p[:, -1])).mean()) for p in outputs_of_models]


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_probabilities_that_are_said_to_be_such(n_outputs):
    models = networks(Hidden, n_outputs)
    display = InterpolationDisplay.from_models(*models[:2], X, Y, n_points=2, metric="loss", outputs="probabilities")
    np.testing.assert_allclose(display.loss_before, losses(models[:2]), rtol=1e-5)
    plane = LossPlaneDisplay.from_models(*models, X, Y, n_points=2, outputs="probabilities")
    np.testing.assert_allclose([*plane.point_values.values()][:3], losses(models), rtol=1e-5)
    classifier = FusionClassifier(outputs="probabilities").fit(models[:2])
    drawn = InterpolationDisplay.from_estimator(classifier, models[:2], X, Y, n_points=2)
    np.testing.assert_allclose(drawn.loss_before, display.loss_before)
    error = 100 * (1 - FusionClassifier(outputs="probabilities").fit(models[:1]).score(X, Y))
    assert drawn.before[0] == pytest.approx(error) and 0 < error < 100


@pytest.mark.parametrize("end", [nn.Sigmoid, lambda: nn.Softmax(1)])
def test_probabilities_by_the_last_operation(end):
    models = [nn.Sequential(*m, end()) for m in networks(nn.Sequential, 1 if end is nn.Sigmoid else 2, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusionWarning)
        display = InterpolationDisplay.from_models(*models, X, Y, n_points=2, metric="loss")
    np.testing.assert_allclose(display.loss_before, losses(models), rtol=1e-5)
    with pytest.warns(FusionWarning, match="look like probabilities"):
        other = InterpolationDisplay.from_models(*models, X, Y, n_points=2, outputs="logits")
    assert abs(other.loss_before - display.loss_before).min() > 1e-3


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_outputs_that_look_like_probabilities_are_told_of_once(n_outputs):
    models = networks(Hidden, n_outputs, 2)
    with pytest.warns(FusionWarning, match="look like probabilities.*outputs='probabilities'") as told:
        InterpolationDisplay.from_models(*models, X, Y, n_points=5)
    assert len([w for w in told if "look like" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusionWarning)
        InterpolationDisplay.from_models(*networks(nn.Sequential, n_outputs, 2), X, Y, n_points=2)
        if n_outputs == 1:  # small logits of one sign
            Evaluator(X, torch.ones(60))(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid(), nn.Hardtanh(0.1, 0.4)))


def test_outputs_is_one_of_three():
    with pytest.raises(FusionError, match="Did you mean 'logits'"):
        InterpolationDisplay.from_models(*networks(nn.Sequential, 2, 2), X, Y, outputs="logit")


def test_what_can_not_be_traced_counts_as_logits():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > -1e9 else -x)

    torch.manual_seed(0)
    models = [Branching(3, 2) for _ in range(2)]
    display = InterpolationDisplay.from_models(*models, X, Y, n_points=2)
    with torch.no_grad():
        assert display.loss_before[0] == pytest.approx(float(nn.functional.cross_entropy(models[0](X), Y)), rel=1e-5)


@pytest.mark.parametrize("kind", [WassersteinFusion, FusionClassifier])
def test_searches_stand_for_what_they_found(kind):
    models = networks(nn.Sequential, 2, 2)
    rows = FusionInput(models, X)
    search = GridSearchCV(kind(), {("fusion__" if kind is FusionClassifier else "") + "reg": [0.0]}, cv=2).fit(rows, Y.numpy())
    estimator, fusion = fitted(search)
    assert type(estimator) is kind and fusion is getattr(estimator, "fusion_", estimator) and "0" in fusion.couplings_[0]
    assert CouplingDisplay.from_estimator(search).group == "0"
    assert InterpolationDisplay.from_estimator(search, models, X, Y, n_points=2).after is not None
    assert LossPlaneDisplay.from_estimator(search, models, X, Y, n_points=2).values.shape == (2, 2)


DRAW = {
    "coupling": lambda f, models: CouplingDisplay.from_estimator(f),
    "line": lambda f, models: InterpolationDisplay.from_estimator(f, models, X, Y),
    "plane": lambda f, models: LossPlaneDisplay.from_estimator(f, models, X, Y),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=list(DRAW))
def test_what_is_no_fitted_fusion_is_named(draw):
    models = networks(nn.Sequential, 2, 2)
    for unfitted in (WassersteinFusion(), FusionClassifier(), GridSearchCV(WassersteinFusion(), {"reg": [0.0]})):
        with pytest.raises(NotFittedError):
            draw(unfitted, models)
    search = GridSearchCV(VanillaAveraging(), {"weights": [None]}, cv=2, refit=False).fit(FusionInput(models, X), Y.numpy())
    line = Ridge().fit(X, Y)
    for wrong, message in ((search, "refit=True"), (line, "Ridge"), (models[0], "Sequential"), (WassersteinFusion, "class")):
        with pytest.raises(FusionError, match=f"(?s)A fitted fusion .* is needed.*{message}"):
            draw(wrong, models)


def test_estimators_of_users_that_align():
    class Own(BaseEstimator):
        def fit(self, models, y=None):
            self.fused_model_ = models[0]
            return self

        def transform(self, models):
            return list(models)

    models = networks(nn.Sequential, 2, 2)
    display = InterpolationDisplay.from_estimator(Own().fit(models), models, X, Y, n_points=3)
    np.testing.assert_array_equal(display.before, display.after)
    for draw in (DRAW["coupling"], DRAW["plane"]):
        with pytest.raises(FusionError, match="Got Own"):
            draw(Own().fit(models), models)


def test_labels_in_a_column():
    model = networks(nn.Sequential, 2, 1)[0]
    assert Evaluator(X, Y[:, None])(model) == Evaluator(X, Y)(model)
