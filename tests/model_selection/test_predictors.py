"""FusionClassifier and FusionRegressor: they predict what the fused network computes, in scikit-learn's conventions."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import MLP, Recurrent, disguised, randomised
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import cross_val_predict
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, VanillaAveraging, WassersteinFusion, compare, load
from sklearn_wbfuse.data.scores import outputs, score_outputs
from sklearn_wbfuse.exceptions import FusionError, FusionWarning

N = 40


def pair(outputs=3, seed=0):
    """Networks that are permuted copies of one another, and rows; the fused network is the first."""
    rng = np.random.default_rng(seed)
    model = randomised(MLP([5, 7, 6, outputs]), rng)
    return [model, disguised(model, rng)], rng.normal(size=(N, 5))


class Foreign(BaseEstimator):
    """A fusion of somebody else: it has a fused network after fit and nothing more."""

    def fit(self, models, y=None):
        self.fused_model_ = copy.deepcopy((models.models if isinstance(models, FusionInput) else models)[0])
        return self


def logits(model, X):
    with torch.no_grad():
        return model(torch.as_tensor(X)).numpy()


@given(st.integers(0, 2**31 - 1), st.integers(2, 5), st.integers(1, N + 1))
def test_predictions_are_those_of_the_network_whatever_the_batches(seed, outputs, batch_size):
    models, X = pair(outputs, seed)
    z = logits(models[0], X)
    classifier = FusionClassifier(batch_size=batch_size).fit(FusionInput(models, X), z.argmax(1))
    np.testing.assert_array_equal(classifier.predict(X), z.argmax(1))
    np.testing.assert_allclose(classifier.predict_proba(X), softmax(z, axis=1), atol=1e-8)
    np.testing.assert_allclose(classifier.predict_log_proba(X), np.log(softmax(z, axis=1)), atol=1e-7)
    decision = z[:, 1] - z[:, 0] if outputs == 2 else z
    np.testing.assert_allclose(classifier.decision_function(X), decision, atol=1e-8)
    assert classifier.score(X, z.argmax(1)) == 1.0
    regressor = FusionRegressor(batch_size=batch_size).fit(FusionInput(models, X), z)
    np.testing.assert_allclose(regressor.predict(FusionInput([], X)), z, atol=1e-8)
    assert regressor.score(X, z) == pytest.approx(1.0)


@given(st.integers(0, 2**31 - 1), st.permutations(["ant", "bee", "cat", "dog"]))
def test_columns_follow_the_sorted_labels_whatever_the_order_of_the_outputs(seed, classes):
    models, X = pair(4, seed)
    z, names = logits(models[0], X), np.array(classes)
    y = names[z.argmax(1)]
    classifier = FusionClassifier(classes=classes).fit(FusionInput(models, X), y)
    assert classifier.classes_.tolist() == ["ant", "bee", "cat", "dog"]
    np.testing.assert_array_equal(classifier.predict(X), y)
    np.testing.assert_array_equal(classifier.classes_[classifier.predict_proba(X).argmax(1)], y)
    for column, name in enumerate(classifier.classes_):
        np.testing.assert_allclose(classifier.decision_function(X)[:, column], z[:, classes.index(name)], atol=1e-8)
    assert classifier.score(X, y) == 1.0 and classifier.score(X, np.roll(y, 1)) == np.mean(y == np.roll(y, 1))


@pytest.mark.parametrize("make", [FusionClassifier, FusionRegressor])
def test_the_network_sees_no_more_rows_at_a_time_than_batch_size(make):
    models, X = pair(3)
    fitted, seen = make(batch_size=7).fit(FusionInput(models, X)), []
    fitted.fused_model_.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    fitted.predict(X)
    assert seen == [7] * (N // 7) + [N % 7]


@given(st.permutations([0, 1, 2, 3]), st.sampled_from([0, 1, 2]), st.sets(st.sampled_from([0, 1, 2, 3]), min_size=1))
def test_labels_are_positions_only_where_they_are_no_labels(classes, offset, present):
    models, X = pair(4)
    classes = [c + offset for c in classes]
    classifier = FusionClassifier(classes=classes)
    best = np.array(classes)[logits(models[0], X).argmax(1)]
    y = np.resize(sorted(present), N)
    positions = not set(y) <= set(classes)
    if positions and 3 not in present:  # they may be shifted
        with pytest.raises(FusionError, match="may be missing"):
            classifier.fit(FusionInput(models, X), y)
        return
    classifier.fit(FusionInput(models, X), y)
    assert classifier.classes_.tolist() == ([0, 1, 2, 3] if positions else sorted(classes))
    np.testing.assert_array_equal(classifier.predict(X), best - offset if positions else best)


TOOLS = {
    "hard vote": lambda c, data, y: VotingClassifier([("a", c), ("b", c)]).fit(data, y).predict(data),
    "soft vote": lambda c, data, y: VotingClassifier([("a", c), ("b", c)], voting="soft").fit(data, y).predict(data),
    "probabilities of folds": lambda c, data, y: np.unique(y)[cross_val_predict(c, data, y, method="predict_proba").argmax(1)],
    "stack": lambda c, data, y: StackingClassifier([("a", c)], LogisticRegression(C=1e4)).fit(data, y).predict(data),
    "calibration": lambda c, data, y: CalibratedClassifierCV(c, ensemble=False).fit(data, y).predict(data),
}


@pytest.mark.parametrize("missing", [None, 0, 1, 2])
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_that_number_labels_need_all_of_them(tool, missing):
    models, X = pair(3)
    best = logits(models[0], X).argmax(1)
    keep = best != (-1 if missing is None else missing)
    classifier, data, y = (
        FusionClassifier(classes=["a", "b", "c"]),
        FusionInput(models, X[keep]),
        np.array(["a", "b", "c"])[best[keep]],
    )
    if missing is None:
        assert np.mean(TOOLS[tool](classifier, data, y) == y) > 0.6
    else:
        with pytest.raises(FusionError, match=r"labels, \['a', 'b', 'c'\].*2 is not among them.*with all classes"):
            TOOLS[tool](classifier, data, y)


@pytest.mark.parametrize("classes", [None, ["no", "yes"], ["yes", "no"]])
@pytest.mark.parametrize("flat", [False, True])
def test_a_single_logit_tells_two_classes(classes, flat):
    models, X = pair(1)
    if flat:
        models = [nn.Sequential(m, nn.Flatten(0)) for m in models]
    z = logits(models[0], X).reshape(-1)
    names = np.array([0, 1] if classes is None else classes)
    y = names[(z > 0).astype(int)]
    classifier = FusionClassifier(classes=classes).fit(FusionInput(models, X), y)
    np.testing.assert_array_equal(classifier.predict(X), y)
    positive = 1 / (1 + np.exp(-z)) if classifier.classes_[1] == names[1] else 1 / (1 + np.exp(z))
    np.testing.assert_allclose(classifier.predict_proba(X)[:, 1], positive, atol=1e-8)
    assert classifier.decision_function(X).shape == (N,)
    np.testing.assert_array_equal(classifier.decision_function(X) > 0, y == classifier.classes_[1])


@pytest.mark.parametrize("outputs", [3, 2, 1])
def test_networks_that_end_in_probabilities(outputs):
    models, X = pair(outputs)
    z = logits(models[0], X)
    last = nn.Softmax(1) if outputs > 1 else nn.Sequential(nn.Sigmoid(), nn.Flatten(0))
    expected = softmax(z if outputs > 1 else np.column_stack([np.zeros(N), z]), axis=1)
    data = FusionInput([nn.Sequential(m, last) for m in models], X)
    classifier = FusionClassifier().fit(data)
    np.testing.assert_allclose(classifier.predict_proba(X), expected, atol=1e-8)
    np.testing.assert_allclose(classifier.predict_log_proba(X), np.log(expected), atol=1e-7)
    np.testing.assert_array_equal(classifier.predict(X), expected.argmax(1))
    y = np.random.default_rng(0).integers(0, expected.shape[1], N)
    assert classifier.score(X, y) == np.mean(expected.argmax(1) == y) == WassersteinFusion().fit(data).score(X, y)
    other = FusionClassifier(outputs="logits").fit(data)
    assert np.abs(other.predict_proba(X) - expected).max() > 0.05
    assert [row["score"] for row in compare(data.models, X, y, verbose=False)[:1]] == [classifier.score(X, y)]


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Identity()])
def test_logits_and_log_probabilities(last):
    models, X = pair(3)
    classifier = FusionClassifier().fit(FusionInput([nn.Sequential(m, last) for m in models], X))
    np.testing.assert_allclose(classifier.predict_proba(X), softmax(logits(models[0], X), axis=1), atol=1e-8)
    positive_classifier = FusionClassifier(outputs="probabilities").fit(
        FusionInput([nn.Sequential(m, nn.Softplus()) for m in models], X)
    )
    positive = np.log1p(np.exp(logits(models[0], X)))
    positive /= positive.sum(1, keepdims=True)
    np.testing.assert_allclose(positive_classifier.predict_proba(X), positive, atol=1e-8)
    np.testing.assert_allclose(positive_classifier.predict_log_proba(X), np.log(positive), atol=1e-7)


class Shares(nn.Softmax):
    """A softmax that operations do not tell."""

    def forward(self, z):
        return z.exp() / z.exp().cumsum(1)[:, -1:]


@pytest.mark.parametrize(
    "last",
    [
        nn.Sequential(nn.Softmax(1), nn.Dropout(0.5)),
        nn.Sequential(nn.Flatten(0), nn.Sigmoid(), nn.Unflatten(0, (-1, 3)), nn.Hardtanh(1e-7, 1 - 1e-7)),
    ],
)
def test_what_follows_a_softmax_does_not_hide_it(last):
    models, X = pair(3)
    networks = [nn.Sequential(m, last) for m in models]
    expected = networks[0].eval()(torch.as_tensor(X)).detach().numpy()
    expected /= expected.sum(1, keepdims=True)
    for fusion in (WassersteinFusion(), Foreign()):
        fitted = FusionClassifier(fusion).fit(FusionInput(networks, X))
        np.testing.assert_allclose(fitted.predict_proba(X), expected, atol=1e-7)


def test_fusions_of_others_have_no_inputs_of_a_discovery():
    models, X = pair(3)
    alone = FusionClassifier(Foreign()).fit(models)
    np.testing.assert_array_equal(
        alone.predict_proba(X), FusionClassifier(Foreign()).fit(FusionInput(models, X)).predict_proba(X)
    )
    assert FusionRegressor(Foreign()).fit(iter(models)).predict(X).shape == (N, 3)
    convolutions = [nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten()) for _ in range(2)]
    with pytest.raises(FusionError, match=r"Foreign has no inputs .* fit\(FusionInput\(models, X\)\)"):
        FusionClassifier(Foreign()).fit(convolutions)


def test_inputs_that_are_no_tensors():
    class Flagged(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, times=1, twice=False):
            return self.network(x) * times * (2 if twice else 1)

    models, X = pair(3)
    fusion = WassersteinFusion(example_inputs={"x": torch.as_tensor(X[:2]), "twice": False})
    fitted = FusionClassifier(fusion).fit(list(map(Flagged, models)))
    np.testing.assert_allclose(fitted.decision_function(X), logits(models[0], X), atol=1e-8)


def test_probabilities_that_operations_do_not_tell_are_told_of():
    models, X = pair(3)
    data = FusionInput([nn.Sequential(m, Shares(1)) for m in models], X)
    with pytest.warns(FusionWarning, match="look like probabilities.*outputs='probabilities'"):
        FusionClassifier().fit(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusionWarning)
        FusionClassifier(outputs="logits").fit(data)
        FusionClassifier().fit(FusionInput(models, X))


def test_rows_whose_probabilities_are_all_0_count_as_undecided():
    model = nn.Sequential(nn.Linear(2, 3), nn.Hardsigmoid())
    model[0].weight.data[:], model[0].bias.data[:] = -100.0, 0.0
    probabilities = FusionClassifier(VanillaAveraging()).fit([model, model]).predict_proba(np.ones((4, 2)))
    np.testing.assert_allclose(probabilities, np.full((4, 3), 1 / 3), rtol=1e-6)


def test_the_logarithm_of_a_probability_of_0_is_silent():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Softmax(1))
    model[2].weight.data.mul_(1e6)
    logarithms = FusionClassifier().fit([model, model]).predict_log_proba(np.eye(2))
    assert np.isneginf(logarithms.min(1)).all() and not logarithms.max(1).any()


def test_a_row_does_not_depend_on_the_others():
    class SumsToOne(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            z = self.net(x)
            return torch.cat([z, 1 - z], 1)

    models, X = pair(1)
    classifier = FusionClassifier().fit(FusionInput([SumsToOne(m) for m in models], X))
    alone = np.vstack([classifier.predict_proba(row[None]) for row in X])
    np.testing.assert_allclose(classifier.predict_proba(X), alone, atol=1e-12)


def test_one_target_gives_one_dimension():
    models, X = pair(1)
    regressor = FusionRegressor().fit(FusionInput(models, X))
    assert regressor.predict(X).shape == (N,)
    for y in (logits(models[0], X), logits(models[0], X)[:, 0]):
        assert regressor.score(X, y) == pytest.approx(1.0)


def test_scores_are_scikit_learns_and_those_of_the_fusion():
    models, X = pair(3)
    models[1] = randomised(MLP([5, 7, 6, 3]), np.random.default_rng(1))
    rng = np.random.default_rng(2)
    y, targets, weights = rng.integers(0, 3, N), rng.normal(size=(N, 3)), rng.uniform(size=N)
    classifier = FusionClassifier(VanillaAveraging()).fit(FusionInput(models, X), y)
    regressor = FusionRegressor(VanillaAveraging()).fit(FusionInput(models, X), targets)
    fusion = VanillaAveraging().fit(models)
    for w in (None, weights):
        hits = accuracy_score(y, classifier.predict(X), sample_weight=w)
        assert classifier.score(X, y, w) == pytest.approx(hits) == fusion.score(X, y, w)
        explained = r2_score(targets, regressor.predict(X), sample_weight=w)
        assert regressor.score(X, targets, w) == pytest.approx(explained) == fusion.score(X, targets, w)


@pytest.mark.parametrize(
    ("outputs", "y", "message"),
    [
        (1, np.ones((N, 3)) / 3, r"targets of shape \(40, 3\), but the outputs of the network have shape \(40, 1\)"),
        (3, np.ones(N) / 3, r"targets of shape \(40,\), but the outputs of the network have shape \(40, 3\)"),
        (3, np.eye(3)[np.arange(N) % 3], r"y has shape \(40, 3\); give one class per row, y.argmax\(1\) for one-hot labels"),
        (3, np.arange(3 * N).reshape(N, 3), "give one class per row.* whole-number targets are for FusionRegressor"),
        (1, np.arange(N), r"classes 0 to 1, but y holds \[2, .*; relabel y. Whole-number targets are for FusionRegressor, .* R2"),
        (3, np.arange(N), r"classes 0 to 2, but y holds \[3, 4, 5, 6, 7\]; relabel y.$"),
    ],
)
def test_the_score_of_a_fusion_says_which_labels_it_takes(outputs, y, message):
    models, X = pair(outputs)
    with pytest.raises(FusionError, match=f"(?i){message}"):
        VanillaAveraging().fit(models).score(X, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given_as", ["float64", "float32", "tensor", "list"])
def test_rows_are_cast_and_sent_to_the_network(dtype, given_as, device):
    models, X = pair(3)
    models = [m.to(device, dtype) for m in models]
    rows = {"float64": X, "float32": X.astype("float32"), "tensor": torch.as_tensor(X), "list": X.tolist()}[given_as]
    classifier = FusionClassifier().fit(FusionInput(models, rows), np.zeros(N, dtype=int))
    assert next(classifier.fused_model_.parameters()).dtype == dtype
    assert next(classifier.fused_model_.parameters()).device.type == device.type
    assert classifier.predict_proba(rows).dtype == (np.float64 if dtype == torch.float64 else np.float32)
    expected = models[0].double()(torch.as_tensor(X, device=device)).softmax(1).detach().cpu().numpy()
    np.testing.assert_allclose(classifier.predict_proba(rows), expected, atol=0.2 if dtype == torch.bfloat16 else 1e-4)


class Counting(nn.Linear):
    """Its first parameter is an integer."""

    def __init__(self):
        super().__init__(4, 4)
        weight = self._parameters.pop("weight")
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)
        self.weight = weight


@pytest.mark.parametrize(("network", "dtype"), [(nn.Flatten(), np.float32), (Counting().double(), np.float64)])
def test_rows_take_the_dtype_of_the_first_floating_parameter_if_any(network, dtype):
    assert outputs(network, FusionInput([], np.ones((3, 4)))).dtype == dtype


def test_a_score_needs_as_many_targets_as_rows():
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[4, 2\]"):
        score_outputs(np.zeros((4, 1)), np.array([[0.1, 0.2], [0.3, 0.4]]))


def test_the_mode_of_every_module_is_put_back():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    network[1].eval()
    outputs(network, FusionInput([], np.ones((3, 4))))
    assert [module.training for module in network.modules()] == [True, True, False]


def test_models_alone_and_without_labels():
    models, X = pair(3)
    alone = FusionClassifier().fit(models)
    unlabelled = FusionClassifier().fit(FusionInput(models, X))
    np.testing.assert_array_equal(alone.predict_proba(X), unlabelled.predict_proba(X))
    recurrent = randomised(Recurrent("lstm", 4), np.random.default_rng(0), torch.float32)
    assert FusionClassifier().fit([recurrent, recurrent]).classes_.tolist() == [0, 1, 2, 3, 4]


def test_the_fusion_is_cloned_and_models_and_labels_are_left_alone():
    models, X = pair(3)
    state, y = copy.deepcopy(models[0].state_dict()), np.zeros(N, dtype=int)
    fusion = WassersteinFusion(reg=1e-3)
    classifier = FusionClassifier(fusion).fit(FusionInput(models, X), y)
    assert not hasattr(fusion, "fused_model_") and classifier.fusion is fusion
    assert classifier.fusion_.reg == 1e-3 and classifier.fused_model_ is classifier.fusion_.fused_model_
    assert all(torch.equal(t, state[name]) for name, t in models[0].state_dict().items())
    assert not y.any()


@pytest.mark.parametrize("make", [FusionClassifier, FusionRegressor])
def test_parameters_reach_the_default_fusion(make):
    estimator = make()
    assert estimator.get_params()["fusion__reg"] == 0.0 and estimator.fusion is None
    twin = clone(estimator.set_params(fusion__reg=1e-3, batch_size=7))
    assert (twin.fusion.reg, twin.batch_size) == (1e-3, 7)
    assert make().get_params()["fusion__reg"] == 0.0  # nothing is shared between instances
    assert make().set_params(fusion=VanillaAveraging(), fusion__weights=[1, 0]).fusion.weights == [1, 0]
    assert make(WassersteinFusion(reg=0.2)).set_params(fusion=None, fusion__alpha_h=0.5).fusion.get_params()["reg"] == 0.0


def test_pickle_and_kinds():
    models, X = pair(3)
    classifier = FusionClassifier(classes=["a", "b", "c"]).fit(FusionInput(models, X))
    loaded = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
    assert is_classifier(classifier) and is_regressor(FusionRegressor())
    assert not hasattr(clone(classifier), "classes_")


@pytest.mark.parametrize("labels", [["a", "b", "c"], np.array(["c", "b", "a"]), [2, 5, 3], None])
def test_saved_and_loaded(labels, tmp_path):
    models, X = pair(3)
    classifier = FusionClassifier(WassersteinFusion(reg=1e-3, random_state=0), classes=labels).fit(FusionInput(models, X))
    classifier.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", model=models[1])
    assert type(loaded) is FusionClassifier and repr(loaded) == repr(classifier)
    np.testing.assert_array_equal(loaded.classes_, classifier.classes_)
    np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
    np.testing.assert_array_equal(loaded.predict_proba(X), classifier.predict_proba(X))
    regressor = FusionRegressor().fit(models)
    regressor.save(tmp_path / "other")
    np.testing.assert_array_equal(load(tmp_path / "other", model=models[0]).predict(X), regressor.predict(X))


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
def test_not_fitted(method):
    with pytest.raises(NotFittedError, match="FusionClassifier"):
        getattr(FusionClassifier(), method)(np.zeros((2, 5)))


def test_documentation_and_html():
    for estimator in (FusionClassifier(), WassersteinFusion()):
        link = estimator._get_doc_link()
        assert link.endswith(f"/generated/sklearn_wbfuse.{type(estimator).__name__}.html") and link in estimator._repr_html_()
    assert "sk-nested" in FusionClassifier(VanillaAveraging())._repr_html_() or "VanillaAveraging" in repr(
        FusionClassifier(VanillaAveraging())
    )
