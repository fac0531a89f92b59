"""Networks of other packages: found, carried exactly, and left as they were.

``pip install '.[neighbours]'``, then ``pytest -m neighbours``.
"""

import os

import pytest
import torch
from torch import nn

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.exceptions import ArchitectureMismatchError

pytestmark = pytest.mark.neighbours
os.environ.setdefault("KERAS_BACKEND", "torch")


class Sequence(nn.Module):
    """A recurrent layer of another package, and a linear one that reads its last output."""

    def __init__(self, layer, width=8):
        super().__init__()
        self.rnn, self.head = layer(), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def opacus(name):
    layers = pytest.importorskip("opacus.layers")
    return lambda: Sequence(lambda: getattr(layers, name)(5, 8, batch_first=True))


def attention_of_opacus():
    layers = pytest.importorskip("opacus.layers")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Linear(5, 8), layers.DPMultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, x):
            x = self.embed(x)
            return self.head(self.mix(x, x, x)[0])

    return Net


def ncps(name, wired=False, **options):
    torch_layers, wirings = pytest.importorskip("ncps.torch"), pytest.importorskip("ncps.wirings")
    units = (lambda: wirings.AutoNCP(16, 4, seed=1)) if wired else (lambda: 8)
    return lambda: Sequence(lambda: getattr(torch_layers, name)(5, units(), **options), 4 if wired else 8)


def spiking():
    snn = pytest.importorskip("snntorch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.recurrent, self.leaky = snn.RLeaky(beta=0.9, linear_features=8), snn.Leaky(beta=0.9)

        def forward(self, x):
            (spikes, potential), last = self.recurrent.reset_mem(), self.leaky.reset_mem()
            for t in range(x.shape[1]):
                spikes, potential = self.recurrent(self.a(x[:, t]), spikes, potential)
                _, last = self.leaky(self.b(spikes), last)
            return last

    return Net


CASES = {
    "Opacus DPLSTM": (lambda: opacus("DPLSTM"), (2, 4, 5), [8]),
    "Opacus DPGRU": (lambda: opacus("DPGRU"), (2, 4, 5), [8]),
    "Opacus attention": (attention_of_opacus, (4, 2, 5), [8, 2, 8, 8, 8]),
    "ncps CfC": (lambda: ncps("CfC"), (2, 4, 5), [128, 8]),
    "ncps CfC, wired": (lambda: ncps("CfC", wired=True), (2, 4, 5), [8, 4, 4]),
    "ncps LTC": (lambda: ncps("LTC", ode_unfolds=2), (2, 3, 5), [8]),
    "snnTorch": (spiking, (2, 5, 5), [8]),
}


def assert_carried(models, x, sizes):
    """Groups of these sizes; transformed models compute what theirs do; nothing of the models has changed."""
    before = [{name: tensor.clone() for name, tensor in m.state_dict().items()} for m in models]
    with torch.no_grad():
        expected = [m(x) for m in models]
        fusion = WassersteinFusion(example_inputs=(x,), correction=None).fit(models)
        assert list(fusion.graph_.sizes.values()) == sizes
        for moved, value in zip(fusion.transform(models), expected, strict=True):
            torch.testing.assert_close(moved(x), value, rtol=1e-4, atol=1e-5)
        for model, value, state in zip(models, expected, before, strict=True):
            torch.testing.assert_close(model(x), value)
            assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_networks_in_pytorch(case):
    make, shape, sizes = CASES[case]
    torch.manual_seed(0)
    kind = make()
    models = [kind().eval() for _ in range(2)]
    assert_carried(models, torch.randn(shape), sizes)


def keras_model(*layers, shape):
    keras = pytest.importorskip("keras")
    keras.utils.clear_session()  # layers are numbered from the start, so that equal networks have equal names
    return keras.Sequential(
        [keras.Input(shape), *(getattr(keras.layers, name)(*args, **options) for name, args, options in layers)]
    )


KERAS = {
    "dense": (
        [
            ("Dense", (8,), {"activation": "relu"}),
            ("BatchNormalization", (), {}),
            ("Dense", (6,), {"activation": "tanh"}),
            ("Dense", (3,), {}),
        ],
        (5,),
        [8, 6],
    ),
    "convolutions": (
        [
            ("Conv2D", (6, 3), {"activation": "relu"}),
            ("MaxPooling2D", (), {}),
            ("Flatten", (), {}),
            ("Dense", (8,), {"activation": "relu"}),
            ("Dense", (3,), {}),
        ],
        (8, 8, 3),
        [6, 8],
    ),
    "GRU": ([("GRU", (8,), {}), ("Dense", (3,), {})], (4, 5), [8]),
}


@pytest.mark.parametrize("case", KERAS)
def test_networks_of_keras(case):
    layers, shape, sizes = KERAS[case]
    models = [keras_model(*layers, shape=shape) for _ in range(2)]
    for model in models:
        model.eval()
    assert_carried(models, torch.randn(4, *shape), sizes)


def test_layers_of_keras_that_are_numbered_on():
    keras = pytest.importorskip("keras")
    models = [keras.Sequential([keras.Input((5,)), keras.layers.Dense(8), keras.layers.Dense(3)]) for _ in range(2)]
    with pytest.raises(ArchitectureMismatchError, match="The names differ in numbers alone"):
        WassersteinFusion(example_inputs=torch.randn(4, 5)).fit(models)
