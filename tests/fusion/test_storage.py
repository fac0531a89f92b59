"""What a saved fusion tells of the rows that it was fitted on."""

import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, VanillaAveraging, WassersteinFusion, load
from sklearn_wbfuse.data.fusion_input import noise_like
from sklearn_wbfuse.exceptions import FusionWarning

DTYPES = ["f2", "f4", "f8", "u1", "i2", "i8", "?"]


@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 4), st.integers(1, 3))
def test_noise_lies_between_the_least_and_the_largest(data, dtype, rows, columns):
    options = {"elements": st.floats(-1e3, 1e3, width=16)} if dtype[0] == "f" else {}
    original = data.draw(arrays(dtype, (rows, columns), **options))
    (noise,) = noise_like([original])
    assert noise.shape == (2, columns) and noise.dtype == torch.as_tensor(original).dtype
    assert original.min() <= noise.min() and noise.max() <= original.max()
    again, untouched = noise_like([torch.as_tensor(original), "anything else"])
    assert torch.equal(again, noise) and untouched == "anything else"


def test_noise_takes_every_whole_number():
    first, second = noise_like(
        (np.array([[3, 1], [1, 2]], "i4"), np.ones((2, 900), "u1") * 7 * np.arange(2, dtype="u1")[:, None])
    )
    assert set(first.unique().tolist()) <= {1, 2, 3}
    assert set(second.unique().tolist()) == set(range(8))
    assert noise_like([torch.full((1, 2), torch.inf)])[0].tolist() == [[0, 0], [0, 0]]
    assert noise_like([np.zeros((0, 2), "f4")])[0].shape == (2, 2)


@pytest.mark.parametrize("dtype", ["i8", "u1"])
def test_noise_of_lengths_falls(dtype):
    lengths, others = noise_like([np.array([9, 3, 3, 1], dtype)] * 8), noise_like([np.arange(9, dtype=dtype)] * 8)
    assert all(n[0] >= n[1] >= 1 for n in lengths)
    assert any(n[0] < n[1] for n in others)
    assert any(n[0, 0] > n[0, 1] for n in noise_like([np.array([[9, 1], [9, 1]], dtype)] * 8))


def test_noise_of_numbers_that_int64_does_not_hold():
    (noise,) = noise_like([np.array([[0], [2**64 - 1]], "u8")])
    assert noise.dtype == torch.uint64 and noise.shape == (2, 1)
    (large,) = noise_like([np.array([2**63 - 2, 2**63 - 1])])
    assert large.dtype == torch.int64 and large.min() >= 2**63 - 2


@pytest.mark.parametrize("mask", [[[0, 0, 1], [0, 1, 1]], [[1, 1, 1], [1, 0, 0]], [[1, 1], [1, 1]]])
@pytest.mark.parametrize("dtype", [bool, int])
def test_noise_of_padding_pads(mask, dtype):
    for noise in noise_like([np.array(mask, dtype)] * 8):
        assert (noise[:, 0] == mask[0][0]).all()
        steps = noise.to(torch.int8).diff(dim=1)
        assert (steps >= 0).all() or (steps <= 0).all()


class Masked(nn.Module):
    """Eight choices among two, of which a mask may leave out one but not both."""

    def __init__(self, width):
        super().__init__()
        self.hidden, self.head = nn.Linear(16, width), nn.Linear(width, 3)

    def forward(self, x, mask):
        share = torch.softmax(x.masked_fill(~mask, -torch.inf), -1)
        return self.head(torch.relu(self.hidden(share.flatten(1))))


class Several(Masked):
    """Has an output that no mask makes NaN."""

    def forward(self, x, mask):
        return {"mean": x.mean(-1), "logits": super().forward(x, mask)}


def stored(folder):
    tensors = safetensors.torch.load_file(folder / "couplings.safetensors").values()
    return torch.cat([t.double().flatten() for t in tensors if t.numel()])


@pytest.mark.parametrize("wrap", [lambda f: f, FusionClassifier])
def test_no_row_is_saved(wrap, tmp_path):
    X, y = np.random.default_rng(0).normal(size=(20, 5)).astype("f4"), np.arange(20) % 3
    parents = [nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2)]
    fitted = wrap(WassersteinFusion()).fit(FusionInput(parents, X), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.save(tmp_path / "first")
        again = load(tmp_path / "first", model=parents[0])
        again.save(tmp_path / "second")
    assert not torch.isin(stored(tmp_path / "first"), torch.as_tensor(X).double().flatten()).any()
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second


def test_inputs_that_are_given_are_saved(tmp_path):
    x = torch.randn(2, 5)
    VanillaAveraging(example_inputs=(x,)).fit(FusionInput([nn.Linear(5, 3)] * 2, torch.randn(9, 5))).save(tmp_path / "given")
    assert torch.isin(x.double().flatten(), stored(tmp_path / "given")).all()


@pytest.mark.parametrize("network", [Masked, Several])
def test_a_network_that_does_not_take_noise_keeps_two_rows_and_says_so(network, tmp_path):
    X, mask = torch.randn(20, 8, 2), torch.arange(2).eq(torch.arange(8)[:, None] % 2).expand(20, 8, 2)
    fusion = WassersteinFusion().fit(FusionInput([network(4), network(5)], (X, mask)))
    with pytest.warns(FusionWarning, match="two rows of your data.*give example_inputs"):
        fusion.save(tmp_path / "masked")
    assert torch.isin(X[:2].double().flatten(), stored(tmp_path / "masked")).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_examples = WassersteinFusion(example_inputs=(X[:2], mask[:2])).fit(FusionInput([network(4), network(5)], (X, mask)))
        with_examples.save(tmp_path / "given")
    loaded = load(tmp_path / "masked", model=network(1))
    torch.testing.assert_close(loaded.fused_model_(X, mask), fusion.fused_model_(X, mask), rtol=0, atol=0)


def test_a_network_that_raises_on_noise_keeps_two_rows(tmp_path):
    X = torch.randn(20, 5)
    fusion = VanillaAveraging().fit(FusionInput([nn.Linear(5, 3)] * 2, X))

    def known(_, inputs):
        if not torch.isin(inputs[0], X).all():
            raise LookupError("unknown rows")

    fusion.fused_model_.register_forward_pre_hook(known)
    with pytest.warns(FusionWarning, match="two rows of your data"):
        fusion.save(tmp_path / "hooked")
