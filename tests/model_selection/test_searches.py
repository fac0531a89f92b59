"""scikit-learn's searches and what else it wraps around estimators, over fusions, predictors, and which fusion."""

import copy
import gc
import logging
import pickle
import weakref

import numpy as np
import pytest
import sklearn
import torch
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ParallelBackendBase
from networks import MLP, disguised, randomised
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    learning_curve,
    validation_curve,
)
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.correction import Probe
from sklearn_wbfuse.data.fusion_input import N_CACHES, N_RESULTS
from sklearn_wbfuse.exceptions import DiscoveryError

WHICH = [
    {"fusion": [WassersteinFusion(correction=None)], "fusion__reg": [0, 1e-3], "fusion__alpha_h": [1, 2, 4]},
    {"fusion": [VanillaAveraging()]},
]
FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def task():
    """A network and a permuted copy, and rows with the labels that it gives: fusions are right, averages are not."""
    rng = np.random.default_rng(0)
    model = randomised(MLP([5, 9, 8, 3]), rng)
    X = rng.normal(size=(120, 5))
    with torch.no_grad():
        model.linears[-1].bias -= model(torch.as_tensor(X)).mean(0)  # no class is rare
        y = model(torch.as_tensor(X)).argmax(1).numpy()
    return FusionInput([model, disguised(model, rng)], X), y


@pytest.fixture
def sweeps(caplog):
    """How many times couplings were swept for since the last call, by the log."""
    caplog.set_level(logging.INFO, "sklearn_wbfuse")

    def count():
        number = sum("joint sweep 1:" in record.getMessage() for record in caplog.records)
        caplog.clear()
        return number

    return count


def search(kind, task, grid=WHICH, estimator=None, **options):
    X, y = task
    return kind(estimator or FusionClassifier(), grid, error_score="raise", **{"cv": FOLDS, **options}).fit(X, y)


def test_a_grid_over_which_fusion(task):
    X, y = task
    searched = search(GridSearchCV, task)
    assert isinstance(searched.best_params_["fusion"], WassersteinFusion) and searched.best_score_ == 1.0
    average = searched.cv_results_["mean_test_score"][-1]
    assert average == pytest.approx(cross_val_score(VanillaAveraging(), X, y, cv=FOLDS).mean()) and average < 0.9
    np.testing.assert_array_equal(searched.predict(X.arrays[0]), y)
    assert searched.score(X, y) == 1.0 and searched.predict_proba(X).shape == (120, 3)


def test_randomised_and_halving_searches(task):
    assert search(RandomizedSearchCV, task, {"fusion__reg": [0, 1e-3, 1e-2]}, n_iter=2, random_state=0).best_score_ == 1.0
    halving = search(HalvingGridSearchCV, task, random_state=0, min_resources=30)
    assert halving.best_score_ == 1.0 and len(halving.n_resources_) > 1


def test_fusions_and_regressors_are_searched_too(task):
    X, _ = task
    assert search(GridSearchCV, task, {"reg": [0, 1e-3]}, WassersteinFusion()).best_score_ == 1.0
    with torch.no_grad():
        targets = X.models[0](torch.as_tensor(X.arrays[0])).numpy()
    searched = search(GridSearchCV, (X, targets), {"fusion__reg": [0, 0.5]}, FusionRegressor(), cv=KFold(3))
    assert searched.best_params_ == {"fusion__reg": 0} and searched.best_score_ == pytest.approx(1.0)


def test_parameters_of_the_default_fusion(task):
    assert search(GridSearchCV, task, {"fusion__reg": [0, 1e-3], "fusion__alpha_h": [1]}).best_params_["fusion__alpha_h"] == 1


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
@pytest.mark.parametrize("classes", [None, ["c", "a", "b"]])
def test_cross_val_predict(task, method, classes):
    X, y = task
    labels = y if classes is None else np.array(classes)[y]
    predicted = cross_val_predict(FusionClassifier(classes=classes), X, labels, cv=FOLDS, method=method)
    if method == "predict":
        np.testing.assert_array_equal(predicted, labels)
    else:
        np.testing.assert_array_equal(np.unique(labels)[predicted.argmax(1)], labels)


def test_curves_and_scorers(task):
    X, y = task
    _, scores = validation_curve(FusionClassifier(), X, y, param_name="fusion__reg", param_range=[0, 1e-3], cv=FOLDS)
    assert scores.shape == (2, 3) and (scores[0] == 1).all()
    assert learning_curve(FusionClassifier(), X, y, cv=FOLDS, train_sizes=[20, 40])[2].shape == (2, 3)
    for scoring in ("neg_log_loss", "roc_auc_ovr", "f1_macro", "balanced_accuracy"):
        assert np.isfinite(cross_val_score(FusionClassifier(), X, y, cv=FOLDS, scoring=scoring, error_score="raise")).all()


def test_sorted_folds_that_lack_a_class(task):
    X, y = task
    order = np.argsort(y)
    scores = cross_val_score(FusionClassifier(), X[order], y[order], cv=KFold(3), error_score="raise")
    assert (scores == 1).all()  # classes are the network's outputs, whatever a fold holds


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration(task, method):
    X, y = task
    fitted = FusionClassifier().fit(X, y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(fitted), method=method).fit(X, y)
    proba = calibrated.predict_proba(X.arrays[0])
    assert roc_auc_score(y, proba, multi_class="ovr") > 0.9
    np.testing.assert_allclose(proba, calibrated.predict_proba(X))


def test_metadata_is_routed(task):
    X, y = task
    weights = np.zeros(len(y))
    weights[:10] = 1
    with sklearn.config_context(enable_metadata_routing=True):
        for estimator, grid in ((FusionClassifier(VanillaAveraging()), {"batch_size": [7]}), (VanillaAveraging(), {})):
            requested = estimator.set_score_request(sample_weight=True)
            searched = GridSearchCV(requested, grid, cv=ShuffleSplit(2, random_state=0)).fit(X, y, sample_weight=weights)
            expected = []
            for _, test in ShuffleSplit(2, random_state=0).split(X):
                expected.append(clone(requested).fit(X).score(X[test], y[test], sample_weight=weights[test]))
            np.testing.assert_allclose(searched.cv_results_["mean_test_score"], np.mean(expected))


def test_candidates_and_folds_share_one_discovery_and_copy_no_model(task, counts, monkeypatch):
    X, y = task
    shared = FusionInput(X.models, X.arrays[0])
    assert search(GridSearchCV, (shared, y)).best_score_ == 1.0
    assert counts.traced.count(2) == 1  # on two rows, as discovery
    copies = []
    monkeypatch.setattr(MLP, "__deepcopy__", lambda self, memo: copies.append(self), raising=False)
    for estimator in (FusionClassifier(), search(GridSearchCV, (shared, y), {"batch_size": [5]}, FusionClassifier(Named()))):
        clone(estimator)
    shared[np.arange(5)]
    assert not copies


class Named(VanillaAveraging):
    """A fusion that only remembers how many models it was given."""

    def fit(self, models, y=None):
        self.n_models_in_ = len(models.models)
        self.fused_model_ = models.models[0]
        return self


def test_exact_couplings_are_found_once_for_all_reg(task, sweeps):
    X, _ = task
    shared = FusionInput(X.models, X.arrays[0])
    fits = [WassersteinFusion(reg=reg, random_state=0, correction=None).fit(shared) for reg in (0, 1e-3, 1e-2)]
    assert sweeps() == 1
    for fusion in fits:
        alone = WassersteinFusion(reg=fusion.reg, random_state=0, correction=None).fit(X.models)
        for ours, theirs in zip(fusion.couplings_, alone.couplings_, strict=True):
            assert all((ours[name] == theirs[name]).all() for name in theirs)
        assert fusion.history_ == alone.history_ and fusion.energy_ == alone.energy_
    sweeps()
    for changed in ({"alpha_h": 2.0}, {"weights": [1, 3]}, {"random_state": 1}, {"symmetry": "permutation"}, {"n_init": 2}):
        WassersteinFusion(**{"correction": None, "random_state": 0, **changed}).fit(shared)
    assert sweeps() == 6
    with torch.no_grad():
        trained = copy.deepcopy(X.models[1])
        shared.models[1].linears[0].weight.mul_(1.5)
    WassersteinFusion(random_state=0, correction=None).fit(shared)
    X.models[1].load_state_dict(trained.state_dict())
    assert sweeps() == 1  # weights that have changed are matched again


SHARING = [{"reg": 0.1}, {"correction": "repair"}, {"probe": "noise"}, {"example_inputs": (torch.zeros(2, 5).double(),)}]


@pytest.mark.parametrize("random_state", [None, 0])
@pytest.mark.parametrize("changed", [*SHARING, {"n_jobs": 1}, {"verbose": 1}])
def test_couplings_are_shared_by_fits_that_differ_in_other_things(task, sweeps, changed, random_state):
    shared = FusionInput(task[0].models, task[0].arrays[0])
    for options in ({}, changed):
        WassersteinFusion(**{"correction": None, "cost": "weight", "random_state": random_state, **options}).fit(shared)
    assert sweeps() == 1


def test_couplings_of_activations_are_shared_where_rows_are_the_same(task, sweeps):
    """The defaults compare activations on rows: other rows, probes or random states are other couplings."""
    shared = FusionInput(task[0].models, task[0].arrays[0])
    fits = [{}, {"reg": 0.1}, {"random_state": 1}, {"probe": Probe(n_samples=30)}, {"correction": None}, {"reg": 0.2}]
    fused = [WassersteinFusion(**{"random_state": 0, **options}).fit(shared).fused_model_ for options in fits]
    WassersteinFusion(random_state=0).fit(shared[:40])
    assert sweeps() == 5
    alone = WassersteinFusion(random_state=0, reg=0.2).fit(FusionInput(task[0].models, task[0].arrays[0])).fused_model_
    assert all(torch.equal(a, b) for a, b in zip(fused[-1].parameters(), alone.parameters(), strict=True))


class Counted(FusionInput):
    """Rows that say what was computed for them, not what was taken from the cache."""

    def __init__(self, models, X):
        super().__init__(models, X)
        self.computed = []

    def cached(self, key, compute):
        return super().cached(key, lambda: self.computed.append(str(key)) or compute())


def test_balanced_scales_are_found_once_for_all_fits(task):
    shared = Counted(task[0].models, task[0].arrays[0])
    for options in ({}, {"alpha_h": 2.0}, {"schedule": "layerwise"}, {"weights": [1, 3]}, {"cost": 0.5}, {"init": "random"}):
        WassersteinFusion(correction=None, **options).fit(shared)
    assert sum(key.startswith("(('scales'") for key in shared.computed) == 1


class Everything(dict):
    """A cache that never takes itself for full."""

    def __len__(self):
        return 0


@pytest.mark.parametrize("rows", [slice(0, 40), slice(40, None)])
def test_fits_that_share_an_input_are_those_of_inputs_of_their_own(task, rows):
    """Whatever was fitted before, on the same rows or on others."""
    models = [randomised(MLP([5, 9, 8, 3]), np.random.default_rng(seed)) for seed in (0, 1, 2)]
    start_network = randomised(MLP([5, 9, 8, 3]), np.random.default_rng(3))
    start_network.note = lambda: "can't be pickled"
    X, options = (
        task[0].arrays[0],
        [{"schedule": schedule, "reg": reg} for schedule in ("joint", "layerwise") for reg in (0.1, 0)],
    )
    options += [{"init": start} for start in (0, 2, "random", start_network)]
    options += [{"cost": "activation", "probe": "data"}, {"cost": 0.5, "probe": "data"}, {"symmetry": "permutation"}]
    options += [{"target_widths": widths} for widths in (0.5, [9, 4], [4, 8], {"linears.0": 5})]
    options += [{"weights": [1, 2, 3]}, {"weights": [3, 2, 1]}, {"max_iter": 1}, {"tol": 0.5}, {"n_init": 3}]
    shared = FusionInput(models, X)
    shared.cache = Everything()
    for o in options:
        fusion, alone = (WassersteinFusion(**{"correction": None, "random_state": 0, **o}) for _ in range(2))
        fusion.fit(shared[40:]).fit(shared[rows])
        alone.fit(FusionInput(models, X[rows]))
        assert fusion.history_ == alone.history_ and fusion.energy_ == alone.energy_
        for ours, theirs in zip(fusion.couplings_, alone.couplings_, strict=True):
            assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_the_start_of_least_energy_is_blurred_by_reg_but_for_its_reference(task):
    models = [randomised(MLP([5, 9, 8, 3]), np.random.default_rng(seed)) for seed in (0, 1, 2)]
    shared = FusionInput(models, task[0].arrays[0])
    options = {"random_state": 1, "init": "random", "n_init": 6, "weights": [2, 1, 3]}
    exact = WassersteinFusion(correction=None, **options).fit(shared)
    histories, largest = [list(h) for h in exact.history_], 1.0
    best = int(np.argmin([h[-1] for h in histories]))
    assert best > 0 and histories[best][-1] == exact.energy_
    for reg in (1e-3, 1e-2, 0.1):
        soft = WassersteinFusion(reg=reg, correction=None, **options).fit(shared)
        assert soft.history_ == [[*h, soft.energy_] if k == best else h for k, h in enumerate(histories)]
        coupled = [[plans.coupling(name) for name in plans] for plans in soft.couplings_]
        assert [all(c.is_permutation for c in plans) for plans in coupled] == [False, False, True]
        assert largest > (largest := max(len(c.plan) * c.plan.max() for plans in coupled[:2] for c in plans) - 1e-12)
        soft.history_[0].clear()  # the cache is not the user's


EDITS = {
    "widths": lambda m: m.linears.__setitem__(0, nn.Linear(5, 6).double()) or m.linears.__setitem__(1, nn.Linear(6, 8).double()),
    "no bias": lambda m: m.linears.__setitem__(0, nn.Linear(5, 9, bias=False).double()),
    "another activation": lambda m: setattr(m, "activation", torch.tanh),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("copied", [False, True])
def test_networks_whose_structure_has_changed_are_discovered_again(task, edit, copied):
    shared = FusionInput(copy.deepcopy(task[0].models), task[0].arrays[0])
    WassersteinFusion(correction=None).fit(shared)
    shared = copy.deepcopy(shared) if copied else shared
    for model in shared.models:
        torch.manual_seed(0)
        EDITS[edit](model)
    ours, fresh = WassersteinFusion(correction=None).fit(shared), WassersteinFusion(correction=None).fit(shared.models)
    assert str(ours.graph_) == str(fresh.graph_) and ours.energy_ == pytest.approx(fresh.energy_)


def test_private_attributes_are_structure():
    class Private(nn.Sequential):
        _act = staticmethod(torch.relu)

        def forward(self, x):
            return self[1](self._act(self[0](x)))

    torch.manual_seed(0)
    shared = FusionInput([Private(nn.Linear(5, 9), nn.Linear(9, 3)) for _ in range(2)], torch.randn(4, 5))
    before = WassersteinFusion(correction=None).fit(shared)
    for model in shared.models:
        model._act = torch.tanh
    after = WassersteinFusion(correction=None).fit(shared)
    assert after.energy_ == WassersteinFusion(correction=None).fit(shared.models).energy_ != before.energy_


def test_rows_of_another_width_are_seen(task):
    shared = FusionInput(task[0].models, task[0].arrays[0])
    WassersteinFusion(correction=None).fit(shared)
    shared.arrays = (shared.arrays[0][:, :4],)
    with pytest.raises(DiscoveryError, match="does not run on example inputs"):
        WassersteinFusion(correction=None).fit(shared)


def test_what_is_drawn_is_drawn_again_without_a_random_state(task):
    models = [randomised(MLP([5, 9, 8, 3]), np.random.default_rng(seed)) for seed in (0, 1)]
    shared = FusionInput(models, task[0].arrays[0])
    for options in ({"init": "random"}, {"target_widths": [3, 3]}, {"n_init": 4}):
        histories = {str(WassersteinFusion(max_iter=1, correction=None, **options).fit(shared).history_) for _ in range(5)}
        assert len(histories) > 1
        assert (
            len({str(WassersteinFusion(random_state=0, correction=None, **options).fit(shared).history_) for _ in range(2)}) == 1
        )


def test_hard_voting_with_labels(task):
    X, y = task
    for classes in ([1, 2, 3], ["c", "a", "b"]):
        labels = np.array(classes)[y]
        members = [(name, FusionClassifier(classes=classes)) for name in "ab"]
        np.testing.assert_array_equal(VotingClassifier(members).fit(X, labels).predict(X), labels)


@pytest.mark.parametrize(
    "change",
    [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.astype(">f4"), lambda a: a.astype(np.longdouble), np.asfortranarray],
)
def test_arrays_that_torch_does_not_take_as_they_are(change):
    model, array = nn.Linear(5, 3).double(), np.random.default_rng(0).normal(size=(6, 5))
    expected = model(torch.as_tensor(np.ascontiguousarray(change(array), dtype="float64"))).detach().numpy()
    outputs = FusionClassifier().fit([model, model]).decision_function(change(array))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    for rows in (array, torch.as_tensor(array)):
        backwards = FusionInput([model], rows)[::-1]
        np.testing.assert_array_equal(backwards.tensors(model)[0].numpy(), array[::-1])


def test_two_processes_give_the_same(task):
    one, two = (search(GridSearchCV, task, n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])


def test_threads_give_the_same_and_compute_once(task, sweeps):
    X, y = task
    shared = FusionInput(X.models, X.arrays[0])
    grid = {"reg": [0, 1e-3, 1e-2], "alpha_h": [1, 2]}
    with parallel_config(backend="threading"):
        searched = search(GridSearchCV, (shared, y), grid, WassersteinFusion(random_state=0), n_jobs=4)
    assert sweeps() == 2 * 3 + 1  # three folds, and the best on all rows
    alone = search(GridSearchCV, task, grid, WassersteinFusion(random_state=0))
    np.testing.assert_array_equal(searched.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])


def test_copies_sent_to_one_worker_share_their_cache(task):
    X, _ = task
    X = FusionInput(X.models, X.arrays[0])
    sent = [pickle.dumps(part) for part in (X, X[:50], X[np.arange(20)])]
    first, second, third = (pickle.loads(s) for s in sent)
    assert first.cache is second.cache is third.cache is not X.cache and not first.cache
    calls = []
    for part in (first, second, third):
        part.cached("key", lambda: calls.append(1))
    pickle.loads(pickle.dumps(second)).cached("key", lambda: calls.append(1))
    assert calls == [1]
    second.models[1] = copy.deepcopy(second.models[1])  # another network is another key
    second.cached("key", lambda: calls.append(1))
    assert calls == [1, 1]
    for n_others, is_kept in ((N_CACHES - 1, True), (N_CACHES, False)):
        for _ in range(n_others):
            pickle.loads(pickle.dumps(FusionInput(X.models, X.arrays[0])))
        assert (pickle.loads(sent[0]).cache is first.cache) == is_kept
    for key in range(3 * N_RESULTS):
        first.cached(key, lambda: None)
    assert len(first.cache) == N_RESULTS


def test_results_of_different_keys_rows_and_networks_are_kept_apart():
    model, rows = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), np.zeros((9, 4))
    shared, results = FusionInput([model], rows), []
    keys = [1, True, "1", [1, 2], (1, 2), (1, (2,)), {"a": 1, "b": 2}, {"a": 1, "c": 2}, torch.ones(2), torch.ones(2).double()]
    keys += [torch.ones(2, 1), np.ones(2)]
    for key in keys:
        results.append(shared.cached(key, object))
        assert shared[:3].cached(copy.deepcopy(key), object) is results[-1]
    other = shared[:]
    for other.arrays in ((rows[:, :3],), (rows.astype("float32"),), (rows, rows)):
        results.append(other.cached("key", object))
    results.append(shared.cached("key", object))
    model[1] = nn.Sigmoid()
    results.append(shared.cached("key", object))
    for model.option in (None, 1, "1", (1, 2), (1, 3), torch.float16, torch.float32, torch.relu, torch.tanh):
        results.append(shared.cached("key", object))
    model.eval()
    assert shared.cached("key", object) is results[-1]
    assert len(set(map(id, results))) == len(results)


def test_the_networks_of_a_result_are_kept_so_that_no_other_takes_their_place_in_memory():
    shared = FusionInput([nn.Linear(4, 2)], np.zeros((9, 4)))
    shared.cached("key", object)
    before = weakref.ref(shared.models[0])
    shared.models[0] = nn.Linear(4, 2)
    gc.collect()
    assert before() is not None


def test_what_was_used_last_is_kept():
    models = [nn.Linear(4, 2)]
    sent = [pickle.dumps(FusionInput(models, np.zeros((9, 4)))) for _ in range(N_CACHES + 1)]
    caches = [pickle.loads(s).cache for s in sent[:-1]]
    again = pickle.loads(sent[0])
    assert again.cache is caches[0]
    pickle.loads(sent[-1])
    assert pickle.loads(sent[0]).cache is caches[0] and pickle.loads(sent[1]).cache is not caches[1]
    results = [again.cached(key, object) for key in range(N_RESULTS)]
    assert again[:3].cached(0, object) is results[0]  # a slice of a copy knows the names of its models
    again.cached("one more", object)
    assert again.cached(0, object) is results[0] and again.cached(1, object) is not results[1]


def test_rows_that_can_not_be_written_to_are_copied():
    model, rows = nn.Linear(4, 2), np.zeros((9, 4), dtype="float32")
    rows.setflags(write=False)
    (tensor,) = FusionInput([model], rows).tensors(model)
    tensor.add_(1)
    assert not rows.any()


@pytest.mark.parametrize("kind", ["numpy", "float32", "tensor", "integers", "mask", "bfloat16", "several"])
def test_a_fusion_input_survives_pickling(kind):
    rows = torch.randn(9, 4)
    X = {
        "numpy": rows.numpy().astype("float64"),
        "float32": rows.numpy(),
        "tensor": rows.clone().requires_grad_(),
        "integers": torch.arange(9),
        "mask": np.arange(9) > 4,
        "bfloat16": rows.bfloat16(),
        "several": (rows, np.arange(9)),
    }[kind]
    before = FusionInput([nn.Linear(4, 2)], X)
    after = pickle.loads(pickle.dumps(before))
    assert len(after) == 9 and after.shape == before.shape
    for ours, theirs in zip(after.tensors(after.models[0]), before.tensors(before.models[0]), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_rows_on_another_device_are_pickled_from_there():
    rows = FusionInput([], torch.zeros(9, 4, device="meta"))
    assert pickle.loads(pickle.dumps(rows)).arrays[0].device.type == "meta"


class Elsewhere(ParallelBackendBase):
    """A backend of other machines, whose workers wait for what a fit that holds one of them would send."""

    supports_sharedmem = False

    def effective_n_jobs(self, n_jobs):
        return 2

    def submit(self, func, callback=None):
        raise AssertionError("a fit sends work away")


@pytest.mark.parametrize("options", [{}, {"n_init": 3, "n_jobs": 2}, {"schedule": "layerwise", "n_jobs": 2}])
def test_a_fit_stays_where_it_is(task, options):
    register_parallel_backend("elsewhere", Elsewhere)
    with parallel_config(backend="elsewhere"):
        WassersteinFusion(random_state=0, **options).fit(task[0])


@pytest.mark.dask
def test_a_dask_cluster_gives_the_same(task):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster), parallel_config(backend="dask"):
        searched = search(GridSearchCV, task)
    np.testing.assert_array_equal(
        searched.cv_results_["mean_test_score"], search(GridSearchCV, task).cv_results_["mean_test_score"]
    )
