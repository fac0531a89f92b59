"""Buffers and constant parameters of every kind, and what becomes of each: the table of doc/tensors.md."""

import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_wbfuse import VanillaAveraging, WassersteinFusion, load
from sklearn_wbfuse.exceptions import ArchitectureMismatchError, DiscoveryError, FusionWarning, NonFiniteError

X = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two hidden layers; a tensor that is not trained, and what the forward does with it between them."""

    def __init__(self, seed, tensor, use=None, width=6, kind="buffer", activation=torch.relu):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(5, width), nn.Linear(width, 4), nn.Linear(4, 2)
        self.double()
        self.use, self.activation = use, activation
        if kind == "parameter":
            self.extra = nn.Parameter(tensor, requires_grad=False)
        else:
            self.register_buffer("extra", tensor, persistent=kind == "buffer")
        self.eval()

    def forward(self, x):
        x = self.activation(self.first(x))
        if self.use is not None:
            x = self.use(self, x)
        return self.last(self.activation(self.second(x)))


def fusing(**options):
    return WassersteinFusion(random_state=0, example_inputs=(X[:2],), correction=None, **options)


def warning_messages(fusion, models):
    """The warnings of a fit, and the fusion."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fusion.fit(models)
    return [str(w.message) for w in caught if issubclass(w.category, FusionWarning)]


def assert_kept(fusion, models):
    for model, moved in zip(models, fusion.transform(models), strict=True):
        torch.testing.assert_close(moved(X), model(X), rtol=1e-10, atol=1e-10)


def divide(net, x):
    return x / net.extra


def choose(net, x):
    return x[:, net.extra]


def add(net, x):
    return x + net.extra


def where(net, x):
    return torch.where(net.extra, x, 0.0)


NOT_AVERAGED = {
    "counter": (divide, torch.tensor(2), torch.tensor(3), "buffer"),
    "permutation": (choose, torch.arange(6), torch.arange(5, -1, -1), "buffer"),
    "truth values": (where, torch.arange(6) < 3, torch.arange(6) > 3, "buffer"),
    "not in the state dict": (add, torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64), "transient"),
}


@pytest.mark.filterwarnings("ignore:.*neurons that stay in place")
@pytest.mark.parametrize(("name", "widths"), [*((name, (6, 6)) for name in NOT_AVERAGED), ("counter", (6, 7))])
def test_what_is_not_averaged_must_be_equal_where_it_counts(name, widths):
    use, a, b, kind = NOT_AVERAGED[name]
    models = [Net(i, t, use, width, kind) for i, (t, width) in enumerate(zip((a, b), widths, strict=True))]
    pattern = r"Got models 0 and 1 with other values in 'extra' \(\w+, shape "
    with pytest.raises(ArchitectureMismatchError, match=pattern):
        fusing().fit(models)
    equal = [Net(i, a.clone(), use, 6, kind) for i in range(2)]
    fusion = fusing()
    fusion.fit(equal)
    assert_kept(fusion, equal)
    torch.testing.assert_close(fusion.fused_model_.extra, a)
    unread = [Net(i, t, None, width, kind) for i, (t, width) in enumerate(zip((a, b), widths, strict=True))]
    assert not warning_messages(fusing(), unread)


def multiply(net, x):
    return x * net.extra


AVERAGED = {
    "scalar that is read": (multiply, [torch.tensor(1.5), torch.tensor(2.5)], "buffer"),
    "scalar that is not": (None, [torch.tensor(1.0), torch.tensor(7.0)], "buffer"),
    "constant parameter": (multiply, [torch.tensor(1.5), torch.tensor(2.5)], "parameter"),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_numbers_are_averaged(name):
    use, values, kind = AVERAGED[name]
    models = [Net(i, v.double(), use, kind=kind) for i, v in enumerate(values)]
    fusion = fusing()
    assert not warning_messages(fusion, models)
    torch.testing.assert_close(fusion.fused_model_.extra.item(), (values[0] + values[1]).item() / 2)
    assert_kept(fusion, models)


def project(net, x):
    return F.linear(x, net.extra)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
@pytest.mark.parametrize(("use", "shape"), [(add, (6,)), (project, (6, 6))])
def test_tables_and_frozen_weights_are_weights(use, shape, kind):
    torch.manual_seed(5)
    models = [Net(i, torch.randn(shape).double(), use, kind=kind) for i in range(2)]
    fusion = fusing()
    assert not warning_messages(fusion, models)
    moved = fusion.transform(models)
    assert_kept(fusion, models)
    torch.testing.assert_close(fusion.fused_model_.extra, (moved[0].extra + moved[1].extra) / 2)
    torch.testing.assert_close(fusion.fused_model_.extra.requires_grad, False)


def test_frozen_weights_that_all_share_stay():
    shared = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    models = [Net(i, shared.clone(), project, kind="parameter") for i in range(3)]
    fused = fusing(symmetry="permutation").fit(models).fused_model_
    torch.testing.assert_close(fused.extra.data, shared)


class Masked(nn.Linear):
    """A linear layer whose weights count where a mask has ones."""

    def __init__(self, mask, kind):
        super().__init__(mask.shape[1], mask.shape[0])
        if kind == "parameter":
            self.mask = nn.Parameter(mask, requires_grad=False)
        else:
            self.register_buffer("mask", mask)

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


def masked(seed, masks, kind="buffer", activation=nn.ReLU):
    torch.manual_seed(seed)
    first, second = (Masked(m.clone(), kind) for m in masks)
    return nn.Sequential(first, activation(), second, activation(), nn.Linear(len(masks[1]), 2)).double().eval()


def without_masks(model):
    """The same function in plain layers."""
    plain = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) if isinstance(m, Masked) else m for m in model)).double()
    for a, b in zip(model, plain, strict=True):
        if isinstance(a, Masked):
            b.weight.data, b.bias.data = a.weight.data * a.mask.data, a.bias.data
    return plain.eval()


def random_masks(seed):
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(rng.random(shape) < 0.6).double() for shape in ((7, 5), (6, 7))]


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_masks_of_weights_fuse_as_the_values_that_count(kind, activation, tmp_path):
    models = [masked(i, random_masks(i), kind, activation) for i in range(2)]
    if activation is nn.Tanh:
        for model in models:
            model.requires_grad_(False)  # as some do before they fuse
    fusion = fusing()
    (message,) = warning_messages(fusion, models)
    assert "'0.mask' of shape (7, 5), '2.mask' of shape (6, 7)" in message
    expected = fusing().fit([without_masks(m) for m in models]).fused_model_
    fusion.save(tmp_path / "fused")
    loaded = load(tmp_path / "fused", model=models[1])
    for candidate in (fusion, loaded):
        torch.testing.assert_close(candidate.fused_model_(X), expected(X))
        assert_kept(candidate, models)
        assert {value for moved in candidate.transform(models) for value in moved[2].mask.unique().tolist()} == {0.0, 1.0}
        for layer, plain in zip(candidate.fused_model_, expected, strict=True):
            if isinstance(layer, Masked):
                torch.testing.assert_close(layer.mask.data, (plain.weight != 0).double())


def autoregressive(seed, width=20):
    """MADE: output k may only depend on inputs before k."""
    n = 5
    degrees = [torch.arange(n), torch.arange(width) % (n - 1), torch.arange(n)]
    masks = [(b[:, None] >= a).double() for a, b in itertools.pairwise(degrees[:2])]
    masks.append((degrees[2][:, None] > degrees[1]).double())
    torch.manual_seed(seed)
    return nn.Sequential(Masked(masks[0], "buffer"), nn.ReLU(), Masked(masks[1], "buffer")).double().eval()


@pytest.mark.parametrize("fusion", [fusing(), VanillaAveraging()])
def test_a_structure_that_all_share_is_kept(fusion):
    models = [autoregressive(i) for i in range(3)]
    assert not warning_messages(fusion, models)
    fused = fusion.fused_model_
    jacobian = torch.autograd.functional.jacobian(lambda x: fused(x[None])[0], X[0])
    assert not bool(jacobian.triu().any())
    assert bool(jacobian.tril(-1).any())
    assert_kept(fusion, models)


class Gated(nn.Module):
    """A wiring of synapses, in the manner of liquid networks, that no weight could take in."""

    def __init__(self, seed, wiring):
        super().__init__()
        torch.manual_seed(seed)
        self.strength, self.shift, self.head = nn.Parameter(torch.rand(5, 6)), nn.Parameter(torch.rand(5, 6)), nn.Linear(6, 2)
        self.wiring = nn.Parameter(wiring, requires_grad=False)
        self.double().eval()

    def forward(self, x):
        active = F.softplus(self.strength) * torch.sigmoid(x[:, :, None] - self.shift)
        return self.head((active * self.wiring).sum(1))


@pytest.mark.parametrize("values", [(0.0, 1.0), (-1.0, 0.0, 1.0)])
def test_wirings(values):
    rng = np.random.default_rng(0)
    wirings = [torch.as_tensor(rng.choice(values, (5, 6))) for _ in range(2)]
    models = [Gated(i, w) for i, w in enumerate(wirings)]
    fusion = fusing()
    (message,) = warning_messages(fusion, models)
    assert "'wiring' of shape (5, 6) hold only -1, 0 and 1" in message
    assert "their mean, which is no mask" in message
    assert_kept(fusion, models)
    models = [Gated(i, wirings[0].clone()) for i in range(2)]
    assert not warning_messages(fusion, models)
    torch.testing.assert_close(fusion.fused_model_.wiring.data, wirings[0])
    assert_kept(fusion, models)


class Coded(nn.Module):
    """A codebook, with the averages that its training keeps."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.decoder = nn.Linear(5, 6), nn.Linear(6, 2)
        for name, shape in {"codes": (4, 6), "cluster_size": (4,), "average": (4, 6)}.items():
            self.register_buffer(name, torch.randn(shape))
        self.double().eval()

    def forward(self, x):
        z = self.encoder(x)
        return self.decoder(F.embedding(torch.cdist(z, self.codes).argmin(1), self.codes))


def test_codebooks_and_buffers_that_forward_does_not_read():
    models = [Coded(i) for i in range(2)]
    fusion = fusing()
    messages = warning_messages(fusion, models)
    (unread,) = [m for m in messages if "does not read" in m]
    assert "'cluster_size' of shape (4,), 'average' of shape (4, 6) in eval mode" in unread
    assert any("codes: " in m and "stay in place" in m for m in messages)
    assert_kept(fusion, models)
    torch.testing.assert_close(fusion.fused_model_.average, (models[0].average + models[1].average) / 2)


def test_masks_of_attention():
    def attend(net, x):
        scores = x[:, None, :3] * x[:, :3, None] + net.extra
        return torch.cat([(scores.softmax(-1) @ x[:, :3, None])[..., 0], x[:, 3:]], 1)

    mask = torch.full((3, 3), -torch.inf, dtype=torch.float64).triu(1)
    models = [Net(i, mask.clone(), attend) for i in range(2)]
    fusion = fusing().fit(models)
    torch.testing.assert_close(fusion.fused_model_.extra, mask)
    models[1].extra = mask.mT.contiguous()
    with pytest.raises(NonFiniteError, match="'extra'"):
        fusing().fit(models)


def test_statistics_go_with_their_neurons():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double() for _ in range(2)]
    for model in models:
        model(3 * X)
        model.eval()
    models[1][1].num_batches_tracked += 4
    fusion = fusing()
    assert not warning_messages(fusion, models)
    moved = fusion.transform(models)
    assert_kept(fusion, models)
    torch.testing.assert_close(fusion.fused_model_[1].running_var, (moved[0][1].running_var + moved[1][1].running_var) / 2)
    assert fusion.fused_model_[1].num_batches_tracked == 1


def test_a_copy_of_the_weights_beside_the_network_is_refused():
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = nn.Linear(5, 2), nn.Linear(5, 2)
            self.teacher.requires_grad_(False)

        def forward(self, x):
            return self.student(x)

    with pytest.raises(DiscoveryError, match=r"never uses \['teacher.bias', 'teacher.weight'\]"):
        fusing().fit([Teacher(), Teacher()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fake_quantisation_is_refused():
    models = [nn.Sequential(nn.Linear(5, 4), torch.ao.quantization.FakeQuantize(), nn.Linear(4, 2)) for _ in range(2)]
    for model in models:
        model(X.float())
    with pytest.raises(DiscoveryError, match="can't be traced"):
        fusing().fit([m.eval() for m in models])
