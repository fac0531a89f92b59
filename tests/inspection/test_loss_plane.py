import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sklearn_wbfuse import FusionClassifier, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.connectivity.geometry import affine_weights, plane_coordinates
from sklearn_wbfuse.exceptions import FusionError, WidthError
from sklearn_wbfuse.inspection import LossPlaneDisplay

matplotlib = pytest.importorskip("matplotlib")


def aligned_to(fusion, first, second):
    (aligned,) = fusion.inverse_transform(fusion.transform([second]), parent=first)
    return aligned


def network(seed, activation=nn.ReLU, hidden=10):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), activation(), nn.Linear(hidden, 7), activation(), nn.Linear(7, 3)).eval()


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double()


def disguised(model, scales, signs):
    """The same function with hidden units in another order and on other scales, or with other signs."""
    twin, rng = copy.deepcopy(model), np.random.default_rng(3)
    with torch.no_grad():
        for first, second in ((0, 2), (2, 4)):
            n = twin[first].out_features
            order = rng.permutation(n)
            c = rng.uniform(0.5, 2, n) if scales else rng.choice([-1.0, 1.0], n) if signs else np.ones(n)
            c = torch.as_tensor(c, dtype=torch.float32)
            twin[first].weight.copy_(c[:, None] * twin[first].weight[order].clone())
            twin[first].bias.copy_(c * twin[first].bias[order].clone())
            twin[second].weight.copy_(twin[second].weight[:, order].clone() / c)
    return twin


@pytest.fixture(scope="module")
def setting():
    models = [network(0), network(1)]
    X = torch.randn(80, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = models[0](X).argmax(1)
    return WassersteinFusion(random_state=0, correction=None).fit(models), models, X, y


@given(st.integers(2, 30), st.integers(0, 999))
def test_coordinates_keep_distances_and_axes_are_orthonormal(n, seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(3, n)) * 10 ** rng.uniform(-3, 3)
    corners = plane_coordinates(points - points[0])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(corners[i] - corners[j]) == pytest.approx(np.linalg.norm(points[i] - points[j]))
    weights = affine_weights(corners, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    origin, u, v = weights @ points
    axes = np.stack([u - origin, v - origin])
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(affine_weights(corners, corners), np.eye(3), atol=1e-9)


@pytest.mark.parametrize(("activation", "scales", "signs"), [(nn.ReLU, True, False), (nn.Tanh, False, True)])
def test_a_disguised_copy_is_undone(activation, scales, signs):
    model = network(4, activation)
    other = disguised(model, scales, signs)
    # the order of the other, so that there is something to undo
    fusion = WassersteinFusion(init=1, correction=None).fit([model, other])
    torch.testing.assert_close(vector(aligned_to(fusion, model, other)), vector(model), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vector(aligned_to(fusion, other, model)), vector(other), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vector(aligned_to(fusion, other, other)), vector(other), rtol=1e-4, atol=1e-5)


def test_points_are_the_networks(setting):
    fusion, models, X, y = setting
    display = LossPlaneDisplay.from_estimator(fusion, models, X, y, n_points=3)
    with torch.no_grad():
        losses = [float(F.cross_entropy(m(X), y)) for m in [*models, models[1], fusion.fused_model_]]
    assert list(display.point_values) == ["model 1", "model 2", "aligned model 2", "mean"]
    np.testing.assert_allclose(list(display.point_values.values()), losses, rtol=1e-4)
    aligned = vector(aligned_to(fusion, *models))
    distances = [float((vector(models[0]) - other).norm()) for other in (vector(models[1]), aligned)]
    corners = [np.linalg.norm(display.points[name]) for name in ("model 2", "aligned model 2")]
    np.testing.assert_allclose(corners, distances, rtol=1e-5)
    assert distances[1] < distances[0]


def test_the_grid_holds_networks_of_the_plane(setting):
    fusion, models, X, y = setting
    display = LossPlaneDisplay.from_estimator(fusion, models, X, y, n_points=4, metric="error", margin=0.5)
    one, two, three = vector(models[0]), vector(models[1]), vector(aligned_to(fusion, *models))
    u = (three - one) / (three - one).norm()
    v = (two - one) - ((two - one) @ u) * u
    v /= v.norm()
    judged = copy.deepcopy(models[0])
    for i, j in ((0, 0), (1, 3), (3, 2)):
        nn.utils.vector_to_parameters((one + display.x[j] * u + display.y[i] * v).float(), judged.parameters())
        with torch.no_grad():
            assert display.values[i, j] == pytest.approx(100 * float((judged(X).argmax(1) != y).float().mean()), abs=1e-3)
    extent = np.ptp(np.array([display.points[n] for n in ("model 1", "model 2", "aligned model 2")]), axis=0)
    np.testing.assert_allclose([np.ptp(display.x), np.ptp(display.y)], extent + extent.max())
    assert display.colorbar_.ax.get_ylabel() == "Error (%)"


def test_of_a_predictor_and_of_models(setting):
    fusion, models, X, y = setting
    classifier = FusionClassifier(fusion, classes=list("zyx")).fit(models)
    labels = np.array(list("zyx"))[y.numpy()]
    one = LossPlaneDisplay.from_estimator(classifier, models, X, labels, n_points=2)
    other = LossPlaneDisplay.from_models(*models, aligned_to(fusion, *models), X, y, n_points=2)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-5)


def test_rows_are_drawn(setting):
    _, _, X, y = setting
    seen = []

    class Seeing(nn.Sequential):
        def forward(self, x):
            seen.append(x.detach().clone())
            return super().forward(x)

    models = [Seeing(*network(seed)) for seed in (0, 1, 2)]
    for _ in range(2):
        LossPlaneDisplay.from_models(*models, X, y, n_points=2, subsample=11, random_state=0)
    seen = [x for x in seen if len(x) > 2]
    assert {len(x) for x in seen} == {11} and torch.equal(seen[0], seen[-1])
    assert len(torch.unique(seen[0], dim=0)) == 11


def colour_at(display, x, y):
    """Red, green and blue of the picture there, from 0 to 255."""
    display.figure_.canvas.draw()
    pixels = np.asarray(display.figure_.canvas.buffer_rgba())
    column, row = display.ax_.transData.transform((x, y)).round().astype(int)
    return pixels[len(pixels) - 1 - row, column, :3].tolist()


def test_without_a_value_the_plane_is_grey():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval() for _ in range(2)]
    models[1][1].running_var += 100  # negative beyond model 1
    X, y = torch.randn(20, 3), torch.randint(2, (20,))
    display = LossPlaneDisplay.from_estimator(
        WassersteinFusion(correction=None).fit(models), models, X, y, n_points=7, margin=0.5
    )
    assert np.isnan(display.values).any() and np.isfinite(display.values).any()
    none = np.isnan(display.values)
    row, column = np.argwhere(none[1:, 1:] & none[1:, :-1] & none[:-1, 1:] & none[:-1, :-1])[0]
    middle = [(axis[k] + axis[k + 1]) / 2 for axis, k in ((display.x, column), (display.y, row))]
    assert colour_at(display, *middle) == [217] * 3
    distance = float((vector(models[0]) - vector(models[1])).norm())  # of parameters, not of the running variance
    assert np.linalg.norm(display.points["model 2"]) == pytest.approx(distance)


def test_what_networks_share_stays():
    class Masked(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = network(seed)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

        def forward(self, x):
            return torch.maximum(self.inner(x) + self.mask, torch.tensor(-1e3))

    X, y = torch.randn(20, 4), torch.zeros(20, dtype=torch.int64)
    models = [Masked(seed) for seed in range(3)]
    assert np.isfinite(LossPlaneDisplay.from_models(*models, X, y, n_points=3).values).all()


def test_plot_uses_given_axes_and_positive_levels():
    points = {"model 1": (0, 0), "model 2": (1, 2), "aligned model 2": (2, 0), "mean": (1, 0)}
    values = np.array([[0.0, 1.0, 2.0], [4.0, np.inf, 4.5], [np.nan, 3.0, 1.0]])
    axes = matplotlib.pyplot.subplots()[1]
    display = LossPlaneDisplay([0, 1, 2], [0, 1, 2], values, points, point_values={"model 1": 1.0, "mean": np.inf})
    assert display.plot(axes) is display and display.ax_ is axes and display.figure_ is axes.figure
    levels = display.contour_.levels
    assert display.contour_.zmax == 2 * levels[-1]
    assert levels[0] == 1 and (np.diff(levels) > 0).all() and np.diff(np.log(levels)).std() < 0.1  # no colour is for less
    last = [round(255 * c) for c in matplotlib.colormaps["viridis_r"](255)[:3]]
    assert colour_at(display, 1, 1) == last and colour_at(display, 0.15, 1.85) == [217] * 3
    marks = {tuple(line.get_xydata()[0]): line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() != "None"}
    assert marks[(1, 0)][:3] == pytest.approx([c / 255 for c in last], abs=3e-3) and marks[(1, 2)] == "white"
    assert marks[(0, 0)][0] > 0.9  # light: a low value
    assert {text.get_text().replace("\n", " ") for text in axes.texts} == set(points)
    LossPlaneDisplay([0, 1], [0, 1], np.full((2, 2), 3.0), points).plot().figure_.canvas.draw()
    LossPlaneDisplay([0, 1], [0, 1], np.zeros((2, 2)), points).plot().figure_.canvas.draw()


@pytest.mark.parametrize("values", [[0] * 80 + [2.0] * 20, [0] * 95 + [1.0] * 5, [0] * 99 + [5.0], [0.02] * 100, [0] * 100])
def test_levels_of_few_different_values(values):
    points = {"model 1": (0, 0), "model 2": (5, 7), "aligned model 2": (9, 0), "mean": (4.5, 0)}
    display = LossPlaneDisplay(range(10), range(10), np.reshape(values, (10, 10)), points).plot()
    assert len(display.contour_.levels) >= 2 and display.contour_.levels[0] > 0
    display.figure_.canvas.draw()


def test_what_spans_no_plane_is_named(setting):
    _, models, X, y = setting
    with pytest.raises(FusionError, match="span no plane: the three lie on one line"):
        LossPlaneDisplay.from_estimator(VanillaAveraging().fit(models), models, X, y)
    copies = [models[0], disguised(models[0], False, False)]
    with pytest.raises(FusionError, match="span no plane: aligned model 2 is model 1"):
        LossPlaneDisplay.from_estimator(WassersteinFusion(correction=None).fit(copies), copies, X, y)
    with pytest.raises(FusionError, match="span no plane"):
        LossPlaneDisplay.from_models(models[0], models[0], models[0], X, y)


def test_what_is_missing_is_named(setting):
    fusion, models, X, y = setting
    wider = [models[0], network(1, hidden=12)]
    with pytest.raises(WidthError, match=r"'0\.weight' has shape .*equal widths"):
        LossPlaneDisplay.from_estimator(WassersteinFusion(correction=None).fit(wider), wider, X, y)
    doubled = WassersteinFusion(target_widths=2.0, merge="all", random_state=0, correction=None).fit(models)
    for other in (doubled, WassersteinFusion(reg=0.01, init=1, schedule="layerwise", correction=None).fit(models)):
        with pytest.raises(FusionError, match=r"must be permutations to be inverted.*fit with reg=0"):
            LossPlaneDisplay.from_estimator(other, models, X, y)
    with pytest.raises(FusionError, match="parent must be a network"):
        LossPlaneDisplay.from_estimator(fusion, [network(7), models[1]], X, y)
    with pytest.raises(FusionError, match=r"two networks\. Got 3"):
        LossPlaneDisplay.from_estimator(fusion, [*models, models[0]], X, y)
    with pytest.raises(FusionError, match="Got Sequential"):
        LossPlaneDisplay.from_estimator(models[0], models, X, y)
    with pytest.raises(FusionError, match="n_points"):
        LossPlaneDisplay.from_estimator(fusion, models, X, y, n_points=1)
    with pytest.raises(FusionError, match="margin"):
        LossPlaneDisplay.from_estimator(fusion, models, X, y, margin=-1)
    with pytest.raises(FusionError, match="classes"):
        LossPlaneDisplay.from_estimator(fusion, models, X, torch.randn(80, 3), metric="error")
    with pytest.raises(FusionError, match="draw two planes"):
        LossPlaneDisplay.from_estimator(fusion, models, X, y, metric=("loss", "error"))


def test_plane_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn_wbfuse\[plot\]"):
        LossPlaneDisplay([0, 1], [0, 1], np.ones((2, 2)), {}).plot()
