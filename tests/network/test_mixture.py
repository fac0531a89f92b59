"""Weighted means of models, against their definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.network.groups import LabelledTensor, Span
from sklearn_wbfuse.network.mixture import Mixture


@st.composite
def mixtures(draw, owned=True):
    """Weights, some of them 0, and masses of a group "g" of five neurons, each owned by a model that has a weight."""
    rng, count = np.random.default_rng(draw(st.integers(0, 2**31 - 1))), draw(st.integers(1, 4))
    weights = rng.uniform(0.1, 1, count) * (rng.random(count) < 0.8)
    weights[rng.integers(count)] += 0.2
    weights = (weights / weights.sum()).tolist()
    masses = rng.uniform(0.1, 1, (count, 5)) * (rng.random((count, 5)) < 0.6)
    masses[int(np.argmax(weights))] += 0.1
    return Mixture(weights, {"g": masses} if owned else None)


def values_for(mixture, *shape):
    return [torch.randn(*shape, dtype=torch.float64) for _ in mixture.weights]


@given(mixtures())
def test_the_mean_of_equal_values_is_that_value(mixture):
    (x, *_) = values_for(mixture, 5, 2)
    same = [x for _ in mixture.weights]
    for mean in (mixture.mean(same), mixture.mean(same, "g"), mixture.mean(same, "other"), mixture.mean_of_others(0, same)):
        torch.testing.assert_close(mean, x, rtol=1e-12, atol=1e-12)


@given(mixtures())
def test_conditional_weights_are_those_of_the_owners(mixture):
    shares = mixture.conditional("g")
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-12)
    products = np.array(mixture.weights)[:, None] * mixture.masses["g"]
    np.testing.assert_allclose(shares, products / products.sum(0), atol=1e-12)
    assert mixture.conditional("other").ravel().tolist() == mixture.weights
    x = values_for(mixture, 5, 3)
    wanted = sum(s[:, None] * v.numpy() for s, v in zip(shares, x, strict=True))
    np.testing.assert_allclose(mixture.mean(x, "g").numpy(), wanted, atol=1e-12)


@given(mixtures(owned=False), st.integers(0, 99))
def test_equal_ownership_is_none(mixture, seed):
    same = np.random.default_rng(seed).uniform(0.1, 1, 5)
    owned, x = Mixture(mixture.weights, {"g": np.stack([same for _ in mixture.weights])}), values_for(mixture, 5)
    torch.testing.assert_close(owned.mean(x, "g"), mixture.mean(x, "g"), rtol=1e-12, atol=1e-12)


@given(mixtures(owned=False))
def test_the_mean_of_the_others(mixture):
    x = values_for(mixture, 3)
    for i, weight in enumerate(mixture.weights):
        others = [(w, v) for j, (w, v) in enumerate(zip(mixture.weights, x, strict=True)) if j != i]
        wanted = x[i] if mixture.has_all(i) else sum(w * v for w, v in others) / (1 - weight)
        torch.testing.assert_close(mixture.mean_of_others(i, x), torch.as_tensor(wanted), rtol=1e-10, atol=1e-12)
        if not mixture.has_all(i):
            whole = weight * x[i] + (1 - weight) * mixture.mean_of_others(i, x)
            torch.testing.assert_close(whole, mixture.mean(x), rtol=1e-10, atol=1e-12)


@given(mixtures())
def test_rows_of_a_concatenation_belong_to_the_owners_of_their_group(mixture):
    """Position 0 is fixed, then the neurons of g in two copies each, then those of a group that all own alike."""
    spans = (Span("g", np.arange(1, 11).reshape(5, 2), "out"), Span("h", np.arange(11, 13)[:, None], "out"))
    x, shares = values_for(mixture, 13, 2), mixture.conditional("g")
    rows = np.repeat(np.array(mixture.weights)[:, None], 13, 1)
    rows[:, 1:11] = np.repeat(shares, 2, 1)
    wanted = sum(r[:, None] * v.numpy() for r, v in zip(rows, x, strict=True))
    np.testing.assert_allclose(mixture.mean_along(x, spans, 0).numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(mixture.mean_along([v.T for v in x], spans, -1).numpy(), wanted.T, atol=1e-12)
    readers = LabelledTensor("w", (13, 2), (spans, (Span("r", np.arange(2)[:, None], "in"),)))
    np.testing.assert_allclose(mixture.mean_tensor(x, readers).numpy(), wanted, atol=1e-12)
    transposed = LabelledTensor("w", (2, 13), ((Span("r", np.arange(2)[:, None], "in"),), spans))
    np.testing.assert_allclose(mixture.mean_tensor([v.T for v in x], transposed).numpy(), wanted.T, atol=1e-12)
    plain = LabelledTensor("w", (13, 2), ((), (Span("g", np.arange(2)[:, None], "in"),)))
    torch.testing.assert_close(mixture.mean_tensor(x, plain), mixture.mean(x))


@pytest.mark.parametrize("masses", [None, {"g": np.ones((3, 4))}, {"g": np.array([[1.0] * 4, [1, 1, 0, 0], [0, 0, 1, 1]])}])
def test_what_has_no_weight_is_not_looked_at(masses):
    mixture, nan = Mixture([0.0, 0.5, 0.5], masses), torch.full((4, 4), float("nan"))
    x = [nan, torch.ones(4, 4), 3 * torch.ones(4, 4)]
    labels = LabelledTensor("w", (4, 4), ((Span("g", np.arange(4)[:, None], "out"),), ()))
    for mean in (mixture.mean(x), mixture.mean(x, "g"), mixture.mean_tensor(x, labels), mixture.mean_of_others(1, x)):
        assert torch.isfinite(mean).all()


def test_neurons_that_a_model_does_not_own_do_not_count():
    mixture = Mixture([0.5, 0.5], {"g": np.array([[1.0, 0.0], [1.0, 1.0]])})
    assert mixture.mean([torch.tensor([1.0, float("nan")]), torch.tensor([3.0, 5.0])], "g").tolist() == [2.0, 5.0]


def test_a_single_value_is_taken_as_it_is():
    x = torch.randn(3)
    assert Mixture([1.0]).mean([x]) is x and Mixture([0.0, 1.0]).mean([None, x]) is x
    assert Mixture([0.0, 1.0]).mean_of_others(1, [None, x]) is x
