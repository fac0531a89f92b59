"""Networks, rows and computation on different devices. `make gpu` runs these on a GPU; elsewhere the two devices are one."""

import copy
import os

import numpy as np
import pytest
import torch
from networks import CNN, MLP, Encoder, Recurrent, ResNet, disguised, randomised
from torch import nn
from torch.nn.utils import parametrizations, prune

from sklearn_wbfuse import FusionClassifier, FusionInput, WassersteinFusion, discover, load
from sklearn_wbfuse.correction import Probe, recompute_batchnorm
from sklearn_wbfuse.exceptions import InvalidModelError
from sklearn_wbfuse.inspection import InterpolationDisplay, LossPlaneDisplay

CPU = torch.device("cpu")
BUILDERS = {
    "mlp": lambda: MLP([5, 8, 7, 3], norm="affine"),
    "cnn": lambda: CNN(4, 5, 6, norm="affine"),
    "resnet": lambda: ResNet(4, 5, 6),
    "encoder": lambda: Encoder(2, 4, 6, 1),
    "lstm": lambda: Recurrent("lstm", 6, levels=2),
    "gru": lambda: Recurrent("gru", 6, bidirectional=True),
}
NAMES = list(BUILDERS) if os.environ.get("WBFUSE_DEVICE", "cpu") != "cpu" else ["cnn"]
"""Where the two devices are one, one network shows that the tests run."""
NOISE = Probe("noise", n_samples=40, batch_size=20)


def family(name, where, count=2):
    models = [randomised(BUILDERS[name](), np.random.default_rng(seed)) for seed in range(count)]
    return [m.to(where) for m in models]


def fit(models, where=None, data=None, **options):
    example = models[0].example.to(next(models[0].parameters()).device)
    fit_input = models if data is None else FusionInput(models, data)
    options = {"correction": None, "example_inputs": (example,), "device": where, "random_state": 0, **options}
    return WassersteinFusion(**options).fit(fit_input)


def devices(model):
    return {t.device.type for t in [*model.parameters(), *model.buffers()]}


def assert_same(one, other):
    """Fusions that found the same couplings, so the same tensors but for the rounding of sums."""
    assert one.energy_ == pytest.approx(other.energy_, rel=1e-9)
    for a, b in zip(one.couplings_, other.couplings_, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-7)
    for name, tensor in one.fused_model_.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), other.fused_model_.state_dict()[name].cpu(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "layerwise", "reg": 0.05},
        {"n_init": 3, "target_widths": 2.0, "merge": "all"},
        {"cost": 0.5, "correction": "regression", "probe": NOISE},
        {"correction": ("repair", "batchnorm"), "probe": NOISE},
    ],
    ids=["joint", "entropic", "starts", "activations", "statistics"],
)
def test_results_and_their_place_do_not_depend_on_where_it_computes(device, name, options):
    expected = fit(family(name, CPU), **options)
    for models_at, computed_at in ((CPU, device), (device, None), (device, CPU)):
        models = family(name, models_at)
        fusion = fit(models, computed_at, **options)
        assert devices(fusion.fused_model_) == {models_at.type}
        assert devices(models[0]) == {models_at.type}
        assert_same(fusion, expected)
        for moved in fusion.transform(family(name, models_at)):
            assert devices(moved) == {models_at.type}


@pytest.mark.parametrize("correction", ["batchnorm", "repair", "regression"])
@pytest.mark.parametrize("models_at", ["cpu", "device"])
@pytest.mark.parametrize("rows_at", ["cpu", "device", "numpy"])
def test_rows_of_any_place(device, correction, models_at, rows_at):
    rows = np.random.default_rng(3).normal(size=(40, 5))
    places = {"cpu": CPU, "device": device}
    placed_rows = rows if rows_at == "numpy" else torch.as_tensor(rows).to(places[rows_at])
    fusion = fit(family("mlp", places[models_at]), data=placed_rows, probe="data", correction=correction)
    expected = fit(family("mlp", CPU), data=torch.as_tensor(rows), probe="data", correction=correction)
    assert_same(fusion, expected)


def test_batches_of_any_place_and_statistics_from_them(device):
    models = family("mlp", device)
    batches = [torch.randn(20, 5, dtype=torch.float64).to(device) for _ in range(3)]
    fit_input = FusionInput.from_batches(models, iter(batches), 30, random_state=0)
    fused = fit(models, data=fit_input.arrays[0], probe="data", correction="regression").fused_model_
    again = recompute_batchnorm(fused, batches[0].cpu())
    assert devices(again) == {device.type}


def test_devices_that_are_mixed_are_named(device):
    other = torch.device("meta") if device == CPU else CPU
    one, two = nn.Linear(3, 2).to(device), nn.Linear(3, 2).to(other)
    with pytest.raises(
        InvalidModelError, match=rf"one device. Got model 0 on {device.type}.*, model 1 on {other.type}. Move them"
    ):
        WassersteinFusion().fit([one, two])
    split = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    split[0].to(device)
    split[1].to(other)
    with pytest.raises(InvalidModelError, match=r"must be on one device\. Got .* in Sequential\. Move it to one"):
        WassersteinFusion().fit([split, copy.deepcopy(split)])


def test_saved_on_one_and_loaded_on_another(device, tmp_path):
    fusion = fit(family("cnn", device))
    fusion.save(tmp_path / "fusion")
    for where in (CPU, device):
        (template,) = family("cnn", where, 1)
        again = load(tmp_path / "fusion", model=template)
        assert devices(again.fused_model_) == {where.type}
        x = template.example.to(where)
        torch.testing.assert_close(again.fused_model_(x).cpu(), fusion.fused_model_(template.example.to(device)).cpu())
        assert len(again.transform(family("cnn", where))) == 2


def test_predictors_and_displays_take_rows_of_the_cpu(device):
    pytest.importorskip("matplotlib")
    models = family("mlp", device)
    X, y = np.random.default_rng(0).normal(size=(30, 5)), np.arange(30) % 3
    classifier = FusionClassifier(WassersteinFusion(random_state=0)).fit(FusionInput(models, X), y)
    expected = FusionClassifier(WassersteinFusion(random_state=0)).fit(FusionInput(family("mlp", CPU), X), y)
    np.testing.assert_allclose(classifier.predict_proba(X), expected.predict_proba(X), atol=1e-9)
    np.testing.assert_allclose(classifier.predict_proba(torch.as_tensor(X).to(device)), expected.predict_proba(X), atol=1e-9)
    fusion = fit(models)
    assert fusion.score(FusionInput(models, X), y) == pytest.approx(fit(family("mlp", CPU)).score(FusionInput(models, X), y))
    assert np.isfinite(InterpolationDisplay.from_estimator(fusion, models, X, y).loss_after).all()
    assert np.isfinite(LossPlaneDisplay.from_estimator(fusion, models, X, y, n_points=3).values).any()


def layer(kind):
    linear = nn.Linear(8, 6)
    if kind == "pruned":
        prune.l1_unstructured(linear, "weight", amount=0.4)
        return linear
    if kind == "spectral hook":
        return nn.utils.spectral_norm(linear)
    return getattr(parametrizations, kind)(linear)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pruned", "spectral hook", "spectral_norm", "weight_norm", "orthogonal"])
def test_parametrized_tensors(device, kind):
    def models(where):
        torch.manual_seed(0)
        built = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), layer(kind), nn.Tanh(), nn.Linear(6, 3)) for _ in range(2)]
        return [m.double().eval().to(where) for m in built]

    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = WassersteinFusion(example_inputs=(x,), correction=None).fit(models(CPU))
    for models_at, computed_at in ((device, None), (CPU, device), (device, CPU)):
        fusion = WassersteinFusion(example_inputs=(x.to(models_at),), device=computed_at, correction=None).fit(models(models_at))
        assert devices(fusion.fused_model_) == {models_at.type}
        torch.testing.assert_close(fusion.fused_model_(x.to(models_at)).cpu(), expected.fused_model_(x), rtol=1e-6, atol=1e-8)


class Constants(nn.Module):
    """A mask in the code, a buffer of positions, one that is not saved, and a state of zeros."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(4, 6), nn.GRUCell(6, 5), nn.Linear(5, 3)
        self.register_buffer("positions", torch.arange(3))
        self.register_buffer("shift", torch.tensor([0.5, -1.0, 2.0]), persistent=False)

    def forward(self, x):
        x = torch.relu(self.embed(x[:, self.positions])) * self.shift[None, :, None]
        mask = torch.ones(3, 3, dtype=torch.bool, device=x.device).tril()[1]
        x = x.masked_fill(~mask[None, :, None], 0.0)
        state = x.new_zeros(len(x), 5)
        for t in range(3):
            state = self.cell(x[:, t], state)
        return self.head(state)


def test_constants_in_the_code_and_buffers_that_are_not_averaged(device):
    torch.manual_seed(0)
    models = [Constants().double().eval() for _ in range(2)]
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    options = {"correction": "regression", "probe": NOISE, "random_state": 0}
    expected = WassersteinFusion(example_inputs=(x,), **options).fit(copy.deepcopy(models))
    models = [m.to(device) for m in models]
    assert discover(models[0], x.to(device)).sizes == expected.graph_.sizes
    fusion = WassersteinFusion(example_inputs=(x.to(device),), **options).fit(models)
    assert devices(fusion.fused_model_) == {device.type}
    torch.testing.assert_close(fusion.fused_model_(x.to(device)).cpu(), expected.fused_model_(x), rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_attention_whose_results_lie_otherwise_in_memory(device):
    """A trace of the CPU holds views that another device's attention does not allow."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 2)

        def forward(self, x):
            q, k, v = (p.view(*x.shape[:2], 2, 4).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).reshape(x.shape))

    torch.manual_seed(0)
    models = [Attention().double().eval().to(device) for _ in range(2)]
    x = torch.randn(3, 5, 8, dtype=torch.float64).to(device)
    fusion = WassersteinFusion(example_inputs=(x,), cost=0.5, correction="regression", probe=NOISE, random_state=0).fit(models)
    assert torch.isfinite(fusion.fused_model_(x)).all()


@pytest.mark.parametrize("name", NAMES)
def test_single_precision(device, name):
    """Copies fuse back in the precision that most networks have."""
    model = family(name, CPU, 1)[0]
    twin = disguised(model, np.random.default_rng(5))
    models = [m.float().to(device) for m in (model, twin)]
    x = model.example.float().to(device)
    fused = WassersteinFusion(example_inputs=(x,), correction=None).fit(models).fused_model_
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    out = [o if torch.is_tensor(o) else o[0] for o in (fused(x), models[0](x))]
    torch.testing.assert_close(*out, rtol=1e-3, atol=1e-3)


def test_the_random_state_of_the_device_is_untouched(device):
    if device.type != "cuda":
        pytest.skip("the CPU's is looked at elsewhere")
    models = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), layer("orthogonal")).eval().to(device) for _ in range(2)]
    before = torch.cuda.get_rng_state(device)
    WassersteinFusion(correction="regression", probe=NOISE).fit(models)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
