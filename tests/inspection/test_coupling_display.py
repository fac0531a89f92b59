import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_wbfuse import FusionClassifier, WassersteinFusion
from sklearn_wbfuse.exceptions import FusionError, GroupNameError
from sklearn_wbfuse.inspection import CouplingDisplay

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def fusion():
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(5, n), nn.ReLU(), nn.Linear(n, 4), nn.ReLU(), nn.Linear(4, 3)) for n in (9, 6)]
    return WassersteinFusion(random_state=0, correction=None).fit(networks)


@given(st.integers(1, 300), st.integers(0, 99), st.booleans())
def test_a_permutation_is_a_diagonal(size, seed, signed):
    rng = np.random.default_rng(seed)
    index, signs = rng.permutation(size), rng.choice([-1, 1], size) if signed else np.ones(size)
    plan = np.zeros((size, size))
    plan[np.arange(size), index] = signs / size
    display = CouplingDisplay(plan)
    np.testing.assert_array_equal(index[display.order], np.arange(size))
    np.testing.assert_allclose(display.shares, np.diag(signs[np.argsort(index)]))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_rows_are_only_reordered(n_target, n_source, seed):
    plan = np.random.default_rng(seed).normal(size=(n_target, n_source))
    display = CouplingDisplay(plan)
    assert sorted(display.order) == list(range(n_target))
    np.testing.assert_array_equal(display.shares, n_target * plan[display.order])
    largest = np.abs(display.shares).argmax(1)
    assert (np.diff(largest) >= 0).all()


def test_among_rows_of_one_source_the_mass_decides():
    display = CouplingDisplay([[0, 0.3, 0.1], [0, 0.4, 0], [0.1, 0.3, 0]])
    np.testing.assert_array_equal(display.order, [2, 1, 0])


@pytest.mark.parametrize("size", [129, 300, 512])
def test_single_entries_of_large_couplings_are_seen(size):
    plan = np.zeros((size, size))
    index = np.random.default_rng(0).permutation(size)
    plan[np.arange(size), index] = np.where(index < size // 2, -1, 1) / size
    image = CouplingDisplay(plan).plot().image_
    cells = np.asarray(image.get_array())
    step = -(-size // 128)
    assert len(cells) <= 128 and image.get_interpolation() == "nearest"
    assert np.count_nonzero(cells) == len(cells)
    np.testing.assert_allclose(np.diag(cells)[: len(cells) // 2 - 1], -1)
    np.testing.assert_allclose(np.diag(cells)[len(cells) // 2 + 1 :], 1)
    assert image.get_extent() == [0.5, step * len(cells) + 0.5, step * len(cells) + 0.5, 0.5]
    assert image.axes.get_xlim() == (0.5, size + 0.5) and image.axes.get_ylim() == (size + 0.5, 0.5)


@pytest.mark.parametrize("signed", [False, True])
def test_zero_is_white(signed):
    image = CouplingDisplay([[0.5, 0], [0, -0.25 if signed else 0.25]]).plot().image_
    assert image.get_clim() == ((-1, 1) if signed else (0, 1))
    assert image.cmap(image.norm(0.0))[:3] == pytest.approx((1, 1, 1), abs=0.01)
    low, high = (image.cmap(image.norm(v)) for v in image.get_clim())
    assert low != high
    assert high[2] > high[0]  # blue is positive with and without signs


def test_of_a_fusion(fusion):
    display = CouplingDisplay.from_estimator(fusion)
    assert display.group == "0"
    np.testing.assert_array_equal(display.plan, fusion.couplings_[1]["0"])
    assert display.ax_.get_xlabel() == "Neuron of parent 1" and display.ax_.get_title() == "Group 0"
    assert display.colorbar_ is not None and display.figure_ is display.ax_.figure
    axes = matplotlib.pyplot.subplots()[1]
    other = CouplingDisplay.from_estimator(fusion, "2", model=0, ax=axes, colorbar=False)
    assert other.ax_ is axes and other.colorbar_ is None
    np.testing.assert_array_equal(other.plan, fusion.couplings_[0]["2"])
    assert other.plot() is other


def test_of_a_predictor():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, 2)) for n in (4, 3)]
    classifier = FusionClassifier().fit(models)
    assert CouplingDisplay.from_estimator(classifier).plan.shape == (4, 3)
    assert CouplingDisplay.from_estimator(classifier, model=models[0]).ax_.get_xlabel() == "Neuron of parent 0"
    with pytest.raises(FusionError, match="parent must be a network"):
        CouplingDisplay.from_estimator(classifier, model=nn.Linear(3, 2))


def test_what_is_wrong_is_named(fusion):
    with pytest.raises(GroupNameError, match=r"\['0', '2'\]. Got 'conv1'"):
        CouplingDisplay.from_estimator(fusion, "conv1")
    with pytest.raises(GroupNameError, match="Did you mean '0'"):
        CouplingDisplay.from_estimator(fusion, "00")
    for model in (2, -3):
        with pytest.raises(FusionError, match=f"0 to 1. Got {model}"):
            CouplingDisplay.from_estimator(fusion, model=model)
    with pytest.raises(NotFittedError):
        CouplingDisplay.from_estimator(WassersteinFusion())
    for plan in ([1.0, 0.0], [[np.nan]], np.zeros((0, 3))):
        with pytest.raises(FusionError, match="matrix of finite numbers"):
            CouplingDisplay(plan)


def test_coupling_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn_wbfuse\[plot\]"):
        CouplingDisplay([[1.0]]).plot()
