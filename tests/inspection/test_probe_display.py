import sys

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_wbfuse import FusionInput
from sklearn_wbfuse.correction import Probe
from sklearn_wbfuse.exceptions import FusionError
from sklearn_wbfuse.inspection import ProbeDisplay

pytest.importorskip("matplotlib")


def recurrent(width):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(4, width, batch_first=True), nn.Linear(width, 3)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    return Last()


def flat_images(width):
    return nn.Sequential(nn.Unflatten(1, (2, 6, 7)), nn.Conv2d(2, width, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def made(build, example):
    torch.manual_seed(0)
    models = [build(5), build(5)]
    with torch.no_grad():
        for model in models:
            model(example)
    return models


def convolution(make, length):
    return lambda width: nn.Sequential(make(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * length, 2))


KINDS = {  # the networks, an example of their inputs, what is drawn, its shape
    "images": (convolution(nn.Conv2d, 24), torch.randn(2, 3, 6, 8), "images", (3, 3, 6, 8)),
    "images in rows": (flat_images, torch.randn(2, 84), "images", (3, 2, 6, 7)),
    "signals": (convolution(nn.Conv1d, 7), torch.randn(2, 3, 9), "signals", (3, 3, 9)),
    "sequences": (recurrent, torch.randn(2, 7, 4), "sequences", (3, 7, 4)),
    "tokens": (
        lambda w: nn.Sequential(nn.Embedding(50, w), nn.Flatten(), nn.Linear(9 * w, 2)),
        torch.randint(50, (2, 9)),
        "tokens",
        (3, 9),
    ),
    "noise": (lambda w: nn.Sequential(nn.Linear(5, w), nn.ReLU(), nn.Linear(w, 2)), torch.randn(2, 5), "noise", (3, 5)),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_network_reads_is_shown(name):
    build, example, kind, shape = KINDS[name]
    models = made(build, example)
    display, again = (ProbeDisplay.from_models(models, example_inputs=(example,), n_samples=3) for _ in range(2))
    assert display.kind == kind and display.samples.shape == shape
    np.testing.assert_array_equal(display.samples, again.samples)
    assert len(display.axes_) == (1 if kind == "tokens" else len(display.samples))
    first = display.axes_[0]
    if kind == "images":
        picture = np.asarray(first.images[0].get_array())
        whole = display.samples[0] if shape[1] == 3 else display.samples[0].mean(0, keepdims=True)
        assert np.corrcoef(picture.ravel(), whole.transpose(1, 2, 0).ravel())[0, 1] > 0.999
    elif kind == "tokens":
        words = first.texts[0].get_text().split()
        assert words == [str(t) for t in display.samples.ravel()]
    else:
        sample = {"signals": display.samples[0], "sequences": display.samples[0].T}.get(kind, display.samples[:1])
        np.testing.assert_array_equal([line.get_ydata() for line in first.lines], sample)


def test_rows_and_kinds_that_are_named_are_shown():
    build, example, _, _ = KINDS["images"]
    models, X = made(build, example), torch.randn(20, 3, 6, 8)
    rows = ProbeDisplay.from_models(FusionInput(models, X), n_samples=4)
    assert all((torch.as_tensor(s) == X).flatten(1).all(1).any() for s in rows.samples) and rows.kind == "images"
    noise = ProbeDisplay.from_models(FusionInput(models, X), Probe("noise"), n_samples=4)
    assert not any((torch.as_tensor(s) == X).flatten(1).all(1).any() for s in noise.samples)
    with pytest.raises(FusionError, match="probe='signals' needs"):
        ProbeDisplay.from_models(models, "signals", example_inputs=(example,))


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sklearn_wbfuse\[plot\]"):
        ProbeDisplay(np.zeros((2, 3)), "noise").plot()
