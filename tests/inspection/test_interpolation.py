import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.exceptions import FusionError, WidthError
from sklearn_wbfuse.inspection import InterpolationDisplay

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg", force=True)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    matplotlib.pyplot.close("all")


def network(seed, hidden=24):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 4)).eval()


def permuted(model):
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for first, second in ((0, 2), (2, 4)):
            order = torch.randperm(copied[first].out_features, generator=generator)
            copied[first].weight.copy_(copied[first].weight[order].clone())
            copied[first].bias.copy_(copied[first].bias[order].clone())
            copied[second].weight.copy_(copied[second].weight[:, order].clone())
    return copied


@pytest.fixture(scope="module")
def rows():
    """Rows with the classes that one network gives them."""
    model = network(0)
    X = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, X, model(X).argmax(1)


def test_a_permuted_copy_has_no_barrier_after_alignment(rows):
    model, X, y = rows
    models = [model, permuted(model)]
    before = [copy.deepcopy(m.state_dict()) for m in models]
    display = InterpolationDisplay.from_estimator(WassersteinFusion().fit(models), models, X, y, n_points=11)
    assert display.barrier_after == 0
    assert display.barrier_before > 5
    np.testing.assert_array_equal(display.after, 0)
    assert display.before[0] == display.before[-1] == 0
    for m, state in zip(models, before, strict=True):
        assert all(torch.equal(m.state_dict()[name], tensor) for name, tensor in state.items())


def test_the_points_are_networks_on_the_line(rows):
    model, X, y = rows
    other = network(1)
    display = InterpolationDisplay.from_models(model, other, X, y, n_points=5)
    middle = copy.deepcopy(model)
    with torch.no_grad():
        for p, a, b in zip(middle.parameters(), model.parameters(), other.parameters(), strict=True):
            p.copy_(0.75 * a + 0.25 * b)
        errors = [100 * float((m(X).argmax(1) != y).float().mean()) for m in (middle, other)]
    np.testing.assert_allclose(display.before[[1, 4]], errors, atol=1e-4)
    assert display.after is None and display.barrier_after is None
    np.testing.assert_allclose(display.t, [0, 0.25, 0.5, 0.75, 1])


def test_buffers_move_too_and_modes_stay():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2)]
    models[1][1].running_mean += 100
    X, y = torch.randn(50, 3), torch.zeros(50, dtype=torch.int64)
    reference = copy.deepcopy(models[1]).eval()
    display = InterpolationDisplay.from_models(*models, X, y, n_points=2)
    with torch.no_grad():
        assert display.before[1] == pytest.approx(100 * float((reference(X).argmax(1) != 0).float().mean()))
    assert models[0].training and models[0][1].running_mean.eq(0).all()


def test_different_widths_show_only_the_aligned_line(rows):
    model, X, y = rows
    models = [model, network(1, hidden=30)]
    fusion = WassersteinFusion().fit(models)
    display = InterpolationDisplay.from_estimator(fusion, models, X, y, n_points=3)
    assert display.before is None and len(display.after) == 3
    assert len(display.lines_) == 1
    with pytest.raises(WidthError, match=r"0\.weight"):
        InterpolationDisplay.from_models(*models, X, y)


def test_plot_draws_on_the_given_axes():
    figure, ax = matplotlib.pyplot.subplots()
    display = InterpolationDisplay([0, 0.5, 1], before=[2, 40, 4], after=[2, 3, 4]).plot(ax)
    assert display.ax_ is ax and display.figure_ is figure
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["before alignment (barrier 37.0 points)", "after alignment (barrier 0.0 points)"]
    assert "Error" in ax.get_ylabel() and ax.get_xlabel()
    assert display.plot() is display and display.ax_ is not ax


def test_barrier_of_unequal_ends():
    assert InterpolationDisplay([0, 0.25, 1], before=[0, 9, 8]).barrier_before == 7


def test_errors_say_what_is_wrong(rows):
    model, X, y = rows
    with pytest.raises(FusionError, match="n_points"):
        InterpolationDisplay.from_models(model, model, X, y, n_points=1)
    with pytest.raises(FusionError, match="classes"):
        InterpolationDisplay.from_models(model, model, X, X[:, 0])
    with pytest.raises(FusionError, match="two networks"):
        InterpolationDisplay.from_models(model, model, X, y, aligned=[model])
    with pytest.raises(FusionError, match="two networks"):
        InterpolationDisplay.from_estimator(WassersteinFusion().fit([model]), [model], X, y)


def test_missing_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn_wbfuse\[plot\]"):
        InterpolationDisplay([0, 1], before=[1, 1]).plot()
