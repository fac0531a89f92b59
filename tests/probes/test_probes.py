"""Inputs from a procedure: what holds at any size, and the statistics that make them look like the world."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.probes import dead_leaves, occluding_steps, zipf_chain

GENERATORS = {"images": dead_leaves, "signals": occluding_steps}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.reshape(-1), b.reshape(-1)]))[0, 1])


@given(
    kind=st.sampled_from(sorted(GENERATORS)),
    n=st.integers(1, 5),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 99),
)
def test_any_size_and_channels(kind, n, channels, size, seed):
    shape = size if kind == "images" else size[:1]
    before = torch.random.get_rng_state()
    drawn, again = (GENERATORS[kind](n, channels, *shape, generator(seed)) for _ in range(2))
    assert drawn.shape == (n, channels, *shape) and drawn.dtype == torch.float32 and torch.isfinite(drawn).all()
    assert abs(float(drawn.mean())) < 1e-4
    assert float(drawn.std(correction=0)) == pytest.approx(1, abs=1e-3) or drawn.numel() == 1
    assert torch.equal(drawn, again) and torch.equal(torch.random.get_rng_state(), before)
    other = GENERATORS[kind](n, channels, *shape, generator(seed + 1))
    assert drawn.numel() == 1 or not torch.equal(drawn, other)


def slope(values, axes):
    """The exponent with which the power falls with the frequency."""
    power = torch.fft.fftn(values, dim=axes).abs().square().mean((0, 1))
    grids = torch.meshgrid(*(torch.fft.fftfreq(values.shape[a]) * values.shape[a] for a in axes), indexing="ij")
    radius = torch.stack([g.square() for g in grids]).sum(0).sqrt().round().long()
    rings = torch.arange(1, values.shape[axes[0]] // 2)
    means = torch.stack([power[radius == r].mean() for r in rings])
    return np.polyfit(np.log(rings.numpy()), means.log().numpy(), 1)[0]


def test_neighbouring_pixels_are_alike_and_the_spectrum_falls():
    images = dead_leaves(60, 3, 32, 32, generator())
    assert correlation(images[..., 1:], images[..., :-1]) > 0.6 and correlation(images[..., 1:, :], images[..., :-1, :]) > 0.6
    assert abs(correlation(images[..., :-16], images[..., 16:])) < 0.4  # shapes end
    assert -2.6 < slope(images, (2, 3)) < -1.6  # photographs fall as about 1/f^2
    assert correlation(images[:, 0], images[:, 1]) > 0.4


def test_images_have_edges():
    """Differences of neighbours have far heavier tails than noise of the same spectrum would have, whose kurtosis is 3."""
    images = dead_leaves(60, 1, 32, 32, generator(), texture=0.0)
    difference = images.diff(dim=3)
    kurtosis = float((difference - difference.mean()).pow(4).mean() / difference.var() ** 2)
    assert kurtosis > 8


def test_signals_are_smooth_and_their_channels_go_together():
    signals = occluding_steps(80, 4, 128, generator())
    assert correlation(signals[..., 1:], signals[..., :-1]) > 0.7
    assert -2.6 < slope(signals, (2,)) < -1.0
    assert correlation(signals[:, 0], signals[:, 1]) > 0.4


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 50), st.integers(0, 99))
def test_tokens_are_of_the_vocabulary(n, length, vocabulary, seed):
    tokens = zipf_chain(n, length, vocabulary, generator(seed))
    assert tokens.shape == (n, length) and tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0 and int(tokens.max()) < vocabulary
    assert torch.equal(tokens, zipf_chain(n, length, vocabulary, generator(seed)))


def test_the_token_of_rank_k_is_as_frequent_as_one_over_k():
    vocabulary = 200
    strings = zipf_chain(3000, 30, vocabulary, generator())
    counts = strings[:, 0].bincount(minlength=vocabulary).double().sort(descending=True).values
    harmonic = sum(1 / k for k in range(1, vocabulary + 1))
    for k in (1, 2, 4, 8):
        assert float(counts[k - 1] / counts.sum()) == pytest.approx(1 / (k * harmonic), rel=0.25)
    assert int(strings.reshape(-1).bincount(minlength=vocabulary).argmax()) != 0  # which stands for padding too often


def test_tokens_follow_their_predecessors():
    """What comes next is told by the last token: their mutual information, in nats."""
    vocabulary = 20
    strings = zipf_chain(4000, 20, vocabulary, generator())
    pairs = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
    pairs.index_put_((strings[:, :-1].reshape(-1), strings[:, 1:].reshape(-1)), torch.tensor(1.0).double(), accumulate=True)
    pairs /= pairs.sum()
    alone = torch.outer(pairs.sum(1), pairs.sum(0))
    information = float((pairs * (pairs / alone).clamp_min(1e-12).log()).sum())
    assert information > 0.1
