import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RepeatedKFold, ShuffleSplit
from torch import nn

from sklearn_wbfuse import VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.exceptions import FusionError
from sklearn_wbfuse.inspection import GridSearchDisplay
from sklearn_wbfuse.inspection.candidates import labels

matplotlib = pytest.importorskip("matplotlib")


class Scored(BaseEstimator):
    """Its score is a fixed function of its parameters and of the rows."""

    def __init__(self, a=0, b=0, c=None, inner=None):
        self.a, self.b, self.c, self.inner = a, b, c, inner

    def fit(self, X, y=None):
        if self.a == -1:
            raise ValueError("fails")
        self.n_ = len(X)
        return self

    def score(self, X, y=None):
        inner = 0 if self.inner is None else self.inner.b
        return float(np.sin(self.a + 3 * self.b + inner + len(str(self.c))) + 0.01 * X.mean())


class Plain(BaseEstimator):
    def __init__(self, b=5):
        self.b = b


X = np.arange(12.0)[:, None]


def search(grid, kind=GridSearchCV, **options):
    return kind(Scored(), grid, **{"cv": 3, **options}).fit(X)


def scores_of(fitted, **params):
    results = fitted.cv_results_
    chosen = [all(candidate.get(n, None) == v for n, v in params.items()) for candidate in results["params"]]
    return results["mean_test_score"][chosen]


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=4, unique=True),
    st.lists(st.sampled_from([0, 0.5, 1e-3, 2, 7]), min_size=2, max_size=4, unique=True),
)
def test_the_matrix_is_that_of_the_search(a, b):
    fitted = search({"a": a, "b": b})
    display = GridSearchDisplay.from_estimator(fitted)
    assert display.params == ["a", "b"] and display.values == [sorted(a), sorted(b)]
    for i, one in enumerate(sorted(a)):
        for j, other in enumerate(sorted(b)):
            (expected,) = scores_of(fitted, a=one, b=other)
            assert display.scores[i, j] == expected
    best = tuple(values[place] for values, place in zip(display.values, display.best, strict=True))
    assert best == (fitted.best_params_["a"], fitted.best_params_["b"])
    assert display.tried.all() and not display.without and not display.others
    matplotlib.pyplot.close("all")


def test_a_line_has_standard_errors_and_the_best_over_the_others():
    fitted = search({"a": [1, 10, 0.1], "c": [None, "x", "long"]})
    display = GridSearchDisplay.from_estimator(fitted, "a")
    assert display.params == ["a"] and display.values == [[0.1, 1, 10]] and display.others == ["c"]
    for place, a in enumerate(display.values[0]):
        scores = scores_of(fitted, a=a)
        assert display.scores[place] == scores.max()
        position = np.flatnonzero(fitted.cv_results_["mean_test_score"] == scores.max())[0]
        splits = [fitted.cv_results_[f"split{k}_test_score"][position] for k in range(3)]
        assert display.errors[place] == pytest.approx(np.std(splits, ddof=1) / np.sqrt(3))
    assert display.ax_.get_title() == "Best over c"
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["0.1", "1", "10"]
    assert display.ax_.get_xscale() == "log"
    other = GridSearchDisplay.from_estimator(fitted, ["c", "a"])
    assert other.values[0] == [None, "x", "long"] and other.scores.shape == (3, 3)
    assert [t.get_text() for t in other.ax_.get_yticklabels()] == ["None", "x", "long"]


@pytest.mark.parametrize(
    ("values", "scale"), [([0, 1e-3, 1e-1], "symlog"), ([1, 2, 3], "linear"), ([1e-3, 1], "log"), ([-2, 5], "linear")]
)
def test_scale_of_a_line(values, scale):
    GridSearchDisplay(["a"], [[*values, np.inf]], np.arange(len(values) + 1)).plot().figure_.canvas.draw()
    display = GridSearchDisplay(["a"], [values], np.arange(len(values))).plot()
    assert display.ax_.get_xscale() == scale


@pytest.mark.filterwarnings("ignore")
def test_candidates_without_a_parameter_are_not_dropped():
    grid = [{"inner": [Scored()], "inner__a": [0, 1], "inner__b": [0, 2, 4]}, {"inner": [Plain()]}, {"c": ["x"], "a": [-1]}]
    fitted = search(grid)
    display = GridSearchDisplay.from_estimator(fitted)
    assert display.params == ["inner__a", "inner__b"] and display.scores.shape == (2, 3) and not display.others
    plain = fitted.cv_results_["mean_test_score"][6]
    assert display.without == {"Plain()": plain, "others": pytest.approx(np.nan, nan_ok=True)}
    assert display.ax_.get_xlabel() == "b" and display.ax_.get_ylabel() == "a"
    assert f"Plain(): {plain:.3f}" in display.ax_.get_title() and "others: failed" in display.ax_.get_title()
    line = GridSearchDisplay.from_estimator(fitted, "inner__b")
    assert line.others == ["inner__a"]
    texts = [t.get_text() for t in line.ax_.get_legend().get_texts()]
    assert texts == ["best", "Plain()", "others: failed"] or texts == ["Plain()", "others: failed"]
    (dashed,) = [drawn for drawn in line.ax_.get_lines() if drawn.get_label() == "Plain()"]
    assert set(dashed.get_ydata()) == {plain}
    whole = GridSearchDisplay.from_estimator(fitted, "inner")
    assert [t.get_text() for t in whole.ax_.get_xticklabels()] == ["Scored()", "Plain()"]


def test_what_varies_only_between_grids_is_no_axis():
    alone = GridSearchDisplay.from_estimator(search([{"inner": [Scored()], "inner__a": [0, 1]}, {"inner": [Plain()]}]))
    assert alone.params == ["inner__a"] and list(alone.without) == ["Plain()"] and not alone.others
    alike = search([{"inner": [Plain()], "a": [0, 1]}, {"inner": [Plain()], "a": [2]}])
    assert GridSearchDisplay.from_estimator(alike).params == ["a"]


def test_others_of_one_name_are_numbered():
    long = 30 * "x"
    fitted = search([{"a": [1, 2]}, {"c": [long + "xx", long + "x", long]}])
    display = GridSearchDisplay.from_estimator(fitted, "a")
    assert list(display.without.values()) == list(fitted.cv_results_["mean_test_score"][2:])
    assert [name[-2:] for name in display.without] == ["x…", "#2", "#3"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.000149956, 0.1 + 0.2, 1, 20000.0, np.int64(3)], ["0.00015", "0.3", "1", "20000", "3"]),
        ([0.12345, 0.12346], ["0.12345", "0.12346"]),
        ([[0.30000000000000004, 0.7], np.array([0.5, 0.5]), (1, None)], ["[0.3, 0.7]", "[0.5, 0.5]", "[1, None]"]),
        ([Scored(a=1), Plain()], ["Scored(a=1)", "Plain()"]),
        (
            [Scored(a=1, b=2, c="a"), Scored(a=1, b=2, c="b"), Plain()],
            ["Scored(a=1, b=2, c='a')", "Scored(a=1, b=2, c='b')", "Plain()"],
        ),
        ([Scored(a=1.5, b=200, c="a"), Scored(a=1.5, b=200, c="bc"), Plain()], ["Scored(c=a)", "Scored(c=bc)", "Plain()"]),
        ([Scored(a=1.5, b=200, c="some"), Scored(a=1.5, b=100, c="some")], ["Scored(b=200)", "Scored(b=100)"]),
        (
            [Scored(a=torch.ones(3, 40), b=200), Scored(a=torch.ones(2), b=100)],
            ["Scored(a=Tensor(3, 40), b=200)", "Scored(a=Tensor(2), b=100)"],
        ),
        (
            [[Scored(c="xxxxxxxxx"), Plain(b=7)], [Scored(c="xxxxxxxxx"), Plain(b=8)]],
            ["[Scored(c='xxxxxxxxx'), Plain(b=7)]", "[Scored(c='xxxxxxxxx'), Plain(b=8)]"],
        ),
        ([torch.ones(5), nn.Linear(2, 2)], ["Tensor(5)", "Linear(...)"]),
        ([1e7, -2.0], ["1e+07", "-2"]),
        ([np.array(1.0), np.array(2)], ["1", "2"]),
        ([np.float32(0.1), 0.1], ["0.1", "0.1 #2"]),
        ([Fraction(1, 3), 10**400 % 7, np.inf], ["Fraction(1, 3)", "4", "inf"]),
        ([np.arange(10**6), np.arange(10**6, 0, -1)], ["[0, 1, 2, 3, 4, 5, 6, 7…", "[1e+06, 999999, 999998,…"]),
        ([Scored(c=20 * "x"), Scored(c=21 * "x"), Plain(30 * "y")], [f"Scored(c={n * 'x'})" for n in (20, 21)] + ["Plain"]),
        ([40 * "x", 40 * "x", 41 * "x"], [23 * "x" + "…", 23 * "x" + "…", 23 * "x" + "… #2"]),
        ([40 * "x", 41 * "x", 40 * "x"], [23 * "x" + "…", 23 * "x" + "… #2", 23 * "x" + "…"]),
    ],
)
def test_labels_tell_values_apart(values, expected):
    assert labels(values) == expected


def test_many_others_are_counted():
    display = GridSearchDisplay.from_estimator(search([{"a": [1, 2]}, {"b": [1, 2, 3, 4, 5]}]), "a")
    (name,) = display.without
    assert name == "best of 5 others" and display.best is None
    assert display.without[name] == max(np.sin(3 * b + 4) + 0.01 * X.mean() for b in range(1, 6))


@pytest.mark.filterwarnings("ignore")
def test_failures_are_shown():
    display = GridSearchDisplay.from_estimator(search({"a": [-1, 0, 1], "b": [0, 1]}, error_score=np.nan))
    assert np.isnan(display.scores[0]).all() and display.tried.all() and np.isfinite(display.scores[1:]).all()
    texts = [text.get_text() for text in display.ax_.texts]
    assert texts.count("failed") == 2 and len(texts) == 6
    line = GridSearchDisplay.from_estimator(search({"a": [-1, 0, 1]}, error_score=np.nan))
    assert [text.get_text() for text in line.ax_.texts] == ["failed"]
    gaps = GridSearchDisplay.from_estimator(search([{"a": [0], "b": [0, 1]}, {"a": [1], "b": [2]}]))
    np.testing.assert_array_equal(gaps.tried, [[True, True, False], [False, False, True]])
    assert len(gaps.ax_.texts) == 3


def test_a_halving_search_has_last_rounds():
    fitted = search({"a": [0, 1, 2, 3], "b": [0, 1]}, HalvingGridSearchCV, factor=2, min_resources=3, random_state=0)
    assert fitted.n_iterations_ > 1
    display = GridSearchDisplay.from_estimator(fitted)
    results = fitted.cv_results_
    for i, a in enumerate(display.values[0]):
        for j, b in enumerate(display.values[1]):
            candidates = [k for k, p in enumerate(results["params"]) if p == {"a": a, "b": b}]
            assert display.scores[i, j] == results["mean_test_score"][max(candidates, key=lambda k: results["iter"][k])]
    assert display.best == (fitted.best_params_["a"], fitted.best_params_["b"])
    assert "each in its last round" in display.ax_.get_title()
    line = GridSearchDisplay.from_estimator(fitted, "a")
    for a, score in zip(line.values[0], line.scores, strict=True):
        candidates = [k for k, p in enumerate(results["params"]) if p["a"] == a]
        furthest = max(results["iter"][k] for k in candidates)
        assert score == max(results["mean_test_score"][k] for k in candidates if results["iter"][k] == furthest)


@pytest.mark.parametrize(
    ("cv", "folds"), [(4, 4), (RepeatedKFold(n_splits=3, n_repeats=5, random_state=0), 3), (ShuffleSplit(9, random_state=0), 2)]
)
def test_repetitions_draw_no_new_rows(cv, folds):
    fitted = search({"a": [0, 1]}, cv=cv)
    expected = fitted.cv_results_["std_test_score"] / np.sqrt(folds - 1)
    np.testing.assert_allclose(GridSearchDisplay.from_estimator(fitted).errors, expected)


def test_the_best_is_the_one_that_was_refitted():
    fitted = search({"a": [0, 1, 2]}, refit=lambda results: 0)
    assert fitted.cv_results_["mean_test_score"].argmax() != 0
    assert GridSearchDisplay.from_estimator(fitted).best == (0,)


def test_the_score_has_its_name():
    class Off(Scored):
        def predict(self, X):
            return X[:, 0] + 0.02

    fitted = GridSearchCV(Off(), {"a": [0, 1], "b": [0, 1]}, cv=3, scoring="neg_mean_squared_error").fit(X, X[:, 0])
    display = GridSearchDisplay.from_estimator(fitted)
    assert display.ax_.get_title() == "neg_mean_squared_error, mean over the folds"
    assert [text.get_text() for text in display.ax_.texts] == 4 * ["-0.0004"]


def test_names_without_prefixes():
    fitted = search([{"inner": [Scored()], "inner__a": [0, 1], "inner__b": [0, 2, 4], "b": [1]}])
    assert GridSearchDisplay.from_estimator(fitted, ["a", "inner__b"]).params == ["inner__a", "inner__b"]
    assert GridSearchDisplay.from_estimator(fitted, "b").params == ["b"]
    several = search(
        [{"inner": [Scored(inner=Plain())], "inner__a": [0, 1], "inner__inner__b": [0, 1], "c": ["x"], "inner__b": [0]}]
    )
    with pytest.raises(FusionError, match="'b'"):
        GridSearchDisplay.from_estimator(several, "b")
    others = search([{"a": [0, 1]}, {"inner": [Scored()], "inner__b": [1, 2]}])
    assert list(GridSearchDisplay.from_estimator(others, "a").without) == ["b=1", "b=2"]


def test_several_scores():
    def plus(estimator, X, y=None):
        return estimator.a

    def minus(estimator, X, y=None):
        return -estimator.a

    fitted = search({"a": [3, 1, 2]}, scoring={"plus": plus, "minus": minus}, refit="minus")
    display = GridSearchDisplay.from_estimator(fitted)
    np.testing.assert_array_equal(display.scores, [-1, -2, -3])
    assert display.best == (0,) and display.ax_.get_ylabel().startswith("minus")
    assert GridSearchDisplay.from_estimator(fitted, scoring="plus").best == (2,)
    with pytest.raises(FusionError, match="Did you mean 'plus'"):
        GridSearchDisplay.from_estimator(fitted, scoring="pluss")


def test_colours_do_not_show_noise():
    scores, errors = [[0.90, 0.91]], [[0.02, 0.02]]
    display = GridSearchDisplay(["a", "b"], [[1], [1, 2]], scores, errors=errors, best=(0, 1)).plot()
    low, high = display.ax_.images[0].get_clim()
    assert high - low == pytest.approx(0.08) and low + high == pytest.approx(1.81)
    assert GridSearchDisplay(["a", "b"], [[1], [1, 2]], scores).plot().ax_.images[0].get_clim() == (0.9, 0.91)


def test_given_axes_and_large_maps():
    axes = matplotlib.pyplot.subplots()[1]
    values = list(range(15))
    scores = np.eye(15)
    scores[2, 3] = np.nan
    display = GridSearchDisplay(["a", "b"], [values, values], scores)
    assert display.plot(axes) is display and display.ax_ is axes
    assert [text.get_text() for text in axes.texts] == ["\N{MULTIPLICATION SIGN}"]
    assert len(display.figure_.axes) == 2
    assert [t.get_text() for t in axes.get_xticklabels()] == list(map(str, values[::2]))


@pytest.mark.parametrize("columns", [2, 12, 40])
def test_numbers_do_not_touch(columns):
    display = GridSearchDisplay(["a", "b"], [[1, 2], list(range(columns))], np.random.default_rng(0).random((2, columns))).plot()
    display.figure_.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in display.ax_.texts), key=lambda box: (box.y0, box.x0))
    assert all(a.x1 < b.x0 or b.y0 > a.y1 for a, b in pairwise(boxes))
    assert len(boxes) == (2 * columns if columns < 40 else 0)
    ticks = [text.get_window_extent() for text in display.ax_.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(ticks))


def test_long_labels_have_lines():
    values = [[WassersteinFusion(reg=0.25, random_state=seed, schedule="layerwise"), VanillaAveraging()] for seed in (0, 1)]
    display = GridSearchDisplay(["fusion"], [[*values[0], *values[1][:1]]], [1, 2, 3]).plot()
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == [
        "WassersteinFusion(random_state=0)",
        "VanillaAveraging()",
        "WassersteinFusion(random_state=1)",
    ]
    both = [WassersteinFusion(random_state=0), WassersteinFusion(schedule="layerwise")]
    labelled = GridSearchDisplay(["fusion"], [both], [1, 2]).plot().ax_.get_xticklabels()
    assert [t.get_text() for t in labelled] == [
        "WassersteinFusion(random_state=0,\nschedule=joint)",
        "WassersteinFusion(random_state=None,\nschedule=layerwise)",
    ]


def test_many_numbers_have_the_ticks_of_the_axis():
    drawn = np.sort(np.random.default_rng(0).uniform(0.1, 0.9, 20))
    display = GridSearchDisplay(["a"], [drawn.tolist()], drawn).plot()
    display.figure_.canvas.draw()
    assert len(display.ax_.get_xticks()) < 12


def test_what_was_not_searched_is_named():
    fitted = search([{"a": [0, 1]}, {"b": [0, 1]}])
    for params, message in (
        ("aa", "Did you mean 'a'"),
        (["a", "b"], "of one grid"),
        ([], "one or two"),
        (["a", "a"], "one or two"),
    ):
        with pytest.raises(FusionError, match=message):
            GridSearchDisplay.from_estimator(fitted, params)
    with pytest.raises(FusionError, match="No parameter of the search takes several values"):
        GridSearchDisplay.from_estimator(search({"a": [0]}))
    assert GridSearchDisplay.from_estimator(search({"a": [0]}), "a").scores.shape == (1,)
    with pytest.raises(NotFittedError):
        GridSearchDisplay.from_estimator(GridSearchCV(Scored(), {"a": [0, 1]}))
    with pytest.raises(FusionError, match="shape"):
        GridSearchDisplay(["a"], [[1, 2]], [1, 2, 3])


def test_search_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn_wbfuse\[plot\]"):
        GridSearchDisplay(["a"], [[1, 2]], [1, 2]).plot()
