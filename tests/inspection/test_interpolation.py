import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, WassersteinFusion
from sklearn_wbfuse.connectivity.evaluation import Evaluator
from sklearn_wbfuse.exceptions import FusionError, WidthError
from sklearn_wbfuse.inspection import InterpolationDisplay

matplotlib = pytest.importorskip("matplotlib")


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
    display = InterpolationDisplay.from_estimator(WassersteinFusion(correction=None).fit(models), models, X, y, n_points=11)
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
    fusion = WassersteinFusion(correction=None).fit(models)
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
        InterpolationDisplay.from_models(model, model, X, X[:, 0], metric="error")
    with pytest.raises(FusionError, match="outputs have"):
        InterpolationDisplay.from_models(model, model, X, X[:, 0])
    with pytest.raises(FusionError, match=r"Did you mean 'loss'"):
        InterpolationDisplay.from_models(model, model, X, y, metric="los")
    with pytest.raises(FusionError, match="300 rows but y has 299"):
        InterpolationDisplay.from_models(model, model, X, y[:-1])
    with pytest.raises(FusionError, match="one Axes for each metric"):
        InterpolationDisplay([0, 1], before=[1, 1], loss_before=[1, 1]).plot([None], metric=("loss", "error"))
    for aligned, got in (([model], "1"), (WassersteinFusion(), "WassersteinFusion")):
        with pytest.raises(FusionError, match=rf"two networks: aligned=fusion\.transform.* Got {got}"):
            InterpolationDisplay.from_models(model, model, X, y, aligned=aligned)
    with pytest.raises(FusionError, match="two networks"):
        InterpolationDisplay.from_estimator(WassersteinFusion(correction=None).fit([model]), [model], X, y)


def test_missing_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn_wbfuse\[plot\]"):
        InterpolationDisplay([0, 1], before=[1, 1]).plot()


def test_losses_are_those_of_torch(rows):
    model, X, y = rows
    other = network(1)
    display = InterpolationDisplay.from_models(model, other, X, y, n_points=3)
    with torch.no_grad():
        expected = [float(F.cross_entropy(m(X), y)) for m in (model, other)]
    np.testing.assert_allclose(display.loss_before[[0, 2]], expected, rtol=1e-5)
    assert display.loss_after is None and display.loss_barrier_after is None
    assert display.loss_barrier_before == pytest.approx(max(display.loss_before[1] - np.mean(expected), 0))


def test_one_logit_is_that_of_the_second_class():
    model, X = nn.Linear(3, 1).eval(), torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = (X[:, 0] > 0).long()
    display = InterpolationDisplay.from_models(model, model, X, y, n_points=2)
    with torch.no_grad():
        logits = model(X)[:, 0]
        assert display.loss_before[0] == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, y.float())), rel=1e-5)
        assert display.before[0] == pytest.approx(100 * float(((logits > 0) != y).float().mean()))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("make", [FusionClassifier, WassersteinFusion])
def test_losses_of_networks_that_end_in_probabilities(outputs, make):
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, outputs)).eval()
    model = nn.Sequential(net, nn.Sigmoid() if outputs == 1 else nn.Softmax(1))
    X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net[-1].weight.mul_(3)
        net[-1].bias -= net(X).mean(0)
        z = net(X)
    z = torch.cat([torch.zeros_like(z), z], 1) if outputs == 1 else z
    y = torch.arange(60) % z.shape[1]
    evaluator, rows = Evaluator(X, y, make().fit([model, model])), np.sort(np.random.RandomState(0).choice(60, 21, replace=False))
    for some, chosen in ((evaluator, np.arange(60)), (evaluator.subsample(21, np.random.RandomState(0)), rows)):
        display = some(model)
        assert display["loss"] == pytest.approx(float(F.cross_entropy(z[chosen], y[chosen])), rel=1e-4)
        assert display["error"] == pytest.approx(100 * float((z[chosen].argmax(1) != y[chosen]).float().mean()))


@pytest.mark.parametrize("whole", [False, True])
def test_continuous_targets_have_a_loss_alone(whole):
    model, X = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).eval(), torch.randn(30, 3)
    y = (10 * torch.randn(30)).round() + (0 if whole else 0.5)
    regressor = FusionRegressor().fit([model, model])
    display = InterpolationDisplay.from_estimator(regressor, [model, model], FusionInput([], X), y, n_points=2)
    with torch.no_grad():
        assert display.loss_before[0] == pytest.approx(float(((model(X)[:, 0] - y) ** 2).mean()), rel=1e-5)
    assert display.before is None and display.barrier_after is None
    assert display.ax_.get_ylabel() == "Loss (mean squared error)"
    with pytest.raises(FusionError, match="classes"):
        display.plot(metric="error")


@pytest.mark.parametrize("classes", [list("abcd"), list("cadb")])
def test_labels_of_a_classifier(rows, classes):
    model, X, y = rows
    classifier = FusionClassifier(classes=classes).fit([model, model])
    labels = np.array(classes)[y.numpy()]
    display = InterpolationDisplay.from_estimator(classifier, [model, model], FusionInput([], X), labels, n_points=2)
    plain = InterpolationDisplay.from_models(model, model, X, y, n_points=2)
    np.testing.assert_array_equal(display.before, 0)
    np.testing.assert_allclose(display.loss_before, plain.loss_before)
    with pytest.raises(FusionError, match=r"\['z'\]"):
        InterpolationDisplay.from_estimator(classifier, [model, model], X, np.where(labels == "a", "z", labels))


def test_one_pass_for_both_metrics(rows):
    _, X, y = rows
    passes = []

    class Counting(nn.Sequential):
        def forward(self, x):
            passes.append(len(x))
            return super().forward(x)

    for metric in ("loss", ("loss", "error")):
        InterpolationDisplay.from_models(Counting(*network(0)), Counting(*network(1)), X, y, n_points=4, metric=metric)
    once = len(passes) // 2
    assert passes[:once] == passes[once:] and passes.count(max(passes)) % 4 == 0


def test_two_panels_share_one_legend():
    display = InterpolationDisplay(
        [0, 0.5, 1], before=[2, 40, 4], after=[2, 3, 4], loss_before=[0, 2, 0], loss_after=[0, 0.5, 0]
    ).plot(metric=("loss", "error"))
    assert [ax.get_ylabel() for ax in display.axes_] == ["Loss (cross-entropy, nats)", "Error (%)"]
    titles = ["Barrier in nats: 2.00 before, 0.50 after", "Barrier in points: 37.0 before, 0.0 after"]
    assert [ax.get_title() for ax in display.axes_] == titles
    (legend,) = display.figure_.legends
    assert [text.get_text() for text in legend.get_texts()] == ["before alignment", "after alignment"]
    assert all(ax.get_legend() is None for ax in display.axes_) and len(display.lines_) == 4
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), [0, 2, 0])
    axes = matplotlib.pyplot.subplots(1, 2)[1]
    assert display.plot(axes, metric=["error", "loss"]).axes_ == list(axes)
    assert axes[1].get_ylabel().startswith("Loss") and not axes[0].figure.legends and axes[1].get_legend() is None
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["before alignment", "after alignment"]
    narrow = matplotlib.pyplot.subplots(1, 2, figsize=(5, 2))[1]
    display.plot(narrow, metric=["error", "loss"])
    assert [ax.get_title() for ax in narrow] == [title.replace(": ", ":\n") for title in titles[::-1]]


@pytest.mark.parametrize(
    ("scale", "expected"), [(1, "1.00"), (0.1, "0.10"), (2e-3, "0.002"), (3e-5, "3e-05"), (1e4, "10000.00"), (0, "0.00")]
)
def test_small_barriers_are_not_nothing(scale, expected):
    display = InterpolationDisplay([0, 0.5, 1], loss_before=scale * np.array([0, 1, 0]), loss_name="mean squared error").plot()
    assert display.ax_.get_legend().get_texts()[0].get_text() == f"before alignment (barrier {expected})"


def test_a_curve_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InterpolationDisplay([0, 0.5, 1], before=3 * [np.nan], loss_before=3 * [np.nan]).plot(metric=("loss", "error"))


def test_a_bar_only_where_someone_watches(rows, monkeypatch, capsys):
    model, X, y = rows
    InterpolationDisplay.from_models(model, model, X, y, n_points=2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert len(InterpolationDisplay.from_models(model, model, X, y, n_points=2).t) == 2
