"""Parametrized tensors: fusion sees their values, the fused network keeps its parametrization."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from sklearn_wbfuse import WassersteinFusion, discover, load
from sklearn_wbfuse.discovery import plain_copy
from sklearn_wbfuse.exceptions import FusionWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(weight|spectral)_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*can't hold the fused tensor:sklearn_wbfuse.exceptions.FusionWarning"),
]

NORMS = {
    "hook": nn.utils.weight_norm,
    "parametrization": nn.utils.parametrizations.weight_norm,
}
SPECTRAL = {"hook": nn.utils.spectral_norm, "parametrization": parametrizations.spectral_norm}


@pytest.fixture(params=NORMS)
def parents(request):
    torch.manual_seed(0)
    models = []
    for _ in range(2):
        normed = NORMS[request.param](nn.Linear(5, 4))
        models.append(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), normed, nn.ReLU(), nn.Linear(4, 2)).double())
    for model in models:
        model(torch.randn(2, 3, dtype=torch.float64))  # leaves a computed tensor with a gradient behind
    return models


def test_weight_norm_is_fused_as_its_value_and_kept(parents):
    x = torch.randn(6, 3, dtype=torch.float64)
    names = [list(m.state_dict()) for m in parents]
    fusion = WassersteinFusion(correction=None).fit(parents)
    moved = fusion.transform(parents)
    for model, twin in zip(parents, moved, strict=True):
        torch.testing.assert_close(twin(x), model(x))
    mean = (moved[0][2].weight + moved[1][2].weight) / 2
    fusion.fused_model_(x)  # recomputes the weight
    torch.testing.assert_close(fusion.fused_model_[2].weight, mean)
    assert list(fusion.fused_model_.state_dict()) == names[0]
    assert fusion.graph_.sizes == {"0": 5, "2": 4}


def dense(width, seed, change, activation=nn.ReLU):
    """A network of three linear layers, the middle one changed, that has run in training mode."""
    torch.manual_seed(seed)
    layers = [nn.Linear(3, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 2)]
    model = nn.Sequential(*layers).double()
    change(model[2])
    model(torch.randn(2, 3, dtype=torch.float64))
    return model.eval()


def convolutional(seed, how, dim):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 2)]
    model = nn.Sequential(*layers).double()
    how(model[2], dim=dim)
    model(torch.randn(2, 2, 4, 4, dtype=torch.float64))
    return model.eval()


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("steps", [1, 100])
def test_spectral_norm_keeps_each_function_and_has_norm_one(kind, steps, tmp_path):
    """One step leaves u and v far from the singular vectors, so that networks have norms above 1."""
    models = [dense(6, s, lambda m: SPECTRAL[kind](m, n_power_iterations=steps)) for s in (0, 1)]
    x = torch.randn(6, 3, dtype=torch.float64)
    with pytest.warns(FusionWarning, match=r"parametrization of '2.weight' can't hold .* divided by its spectral norm"):
        fusion = WassersteinFusion(random_state=0, correction=None).fit(models)
    assert not any(group.scalable for group in fusion.graph_.groups.values())
    for model, moved in zip(models, fusion.transform(models), strict=True):
        torch.testing.assert_close(moved(x), model(x), rtol=1e-10, atol=1e-10)
    back = fusion.inverse_transform(fusion.transform(models[1:]), 1)[0]
    torch.testing.assert_close(back(x), models[1](x), rtol=1e-10, atol=1e-10)
    fusion.save(tmp_path / "fused")
    for fused in (fusion.fused_model_, load(tmp_path / "fused", model=models[0]).fused_model_):
        assert torch.linalg.matrix_norm(fused[2].weight, 2).item() == pytest.approx(1)
        expected = fused(x)
        torch.testing.assert_close(fused.train()(x), expected)  # power iteration has converged


@pytest.mark.parametrize("kind", SPECTRAL)
def test_signs_of_singular_vectors_do_not_matter(kind):
    models = [dense(6, 0, lambda m: SPECTRAL[kind](m, n_power_iterations=200)) for _ in range(2)]
    for name, buffer in models[1].named_buffers():
        assert name.endswith(("_u", "_v"))
        buffer.neg_()
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(WassersteinFusion(correction=None).fit(models).fused_model_(x), models[0](x))


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("dim", [0, 1])
def test_spectral_norm_of_convolutions(kind, dim):
    models = [convolutional(s, SPECTRAL[kind], dim) for s in (0, 1)]
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    fusion = WassersteinFusion(random_state=0, example_inputs=(x,), correction=None).fit(models)
    for model, moved in zip(models, fusion.transform(models), strict=True):
        torch.testing.assert_close(moved(x), model(x), rtol=1e-10, atol=1e-10)
    matrix = fusion.fused_model_[2].weight.movedim(dim, 0).flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("kind", ["matrix_exp", "cayley", "householder"])
def test_orthogonal_keeps_each_function_and_is_the_nearest(activation, kind):
    models = [dense(4, s, lambda m: parametrizations.orthogonal(m, orthogonal_map=kind), activation) for s in (0, 1)]
    x = torch.randn(6, 3, dtype=torch.float64)
    with pytest.warns(FusionWarning, match="nearest orthogonal matrix"):
        fusion = WassersteinFusion(random_state=0, correction=None).fit(models)
    moved = fusion.transform(models)
    for model, twin in zip(models, moved, strict=True):
        torch.testing.assert_close(twin(x), model(x), rtol=1e-10, atol=1e-10)
    left, _, right = torch.linalg.svd((moved[0][2].weight + moved[1][2].weight) / 2)
    torch.testing.assert_close(fusion.fused_model_[2].weight, left @ right)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT

    def right_inverse(self, value):
        return value.triu()


class Positive(nn.Module):
    def forward(self, weight):
        return weight.exp()

    def right_inverse(self, value):
        return value.abs().log()


class Bounded(nn.Module):
    def forward(self, weight):
        return weight.tanh()

    def right_inverse(self, value):
        return value.clamp(-0.999, 0.999).atanh()


class Circulant(nn.Module):
    """Whose values stay in the set when rows are moved in a circle, but not in other orders."""

    def forward(self, weight):
        n = len(weight)
        return weight[0][(torch.arange(n)[:, None] - torch.arange(n)) % n]

    def right_inverse(self, value):
        return value[:, 0].expand_as(value)


@pytest.mark.parametrize(
    ("kind", "activation", "groups"),
    [
        (Positive, nn.ReLU, {"scalable"}),
        (Positive, nn.Tanh, set()),
        (Bounded, nn.ReLU, set()),
        (Bounded, nn.Tanh, {"signable"}),
        (Symmetric, nn.ReLU, None),
        (Circulant, nn.Tanh, None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*neurons that stay in place")
def test_own_parametrizations_limit_what_neurons_can_do(kind, activation, groups):
    def change(layer):
        parametrize.register_parametrization(layer, "weight", kind())

    models = [dense(4, s, change, activation) for s in (0, 1)]
    x = torch.randn(6, 3, dtype=torch.float64)
    fusion = WassersteinFusion(random_state=0, correction=None).fit(models)
    for model, moved in zip(models, fusion.transform(models), strict=True):
        torch.testing.assert_close(moved(x), model(x), rtol=1e-10, atol=1e-10)
    spec = fusion.graph_
    if groups is None:
        assert not spec.groups
        assert spec.frozen == (("2.weight", "its parametrization can't hold it with neurons moved: group '0', group '2'"),)
    else:
        assert list(spec.groups) == ["0", "2"]
        assert all({s for s in ("scalable", "signable") if getattr(g, s)} == groups for g in spec.groups.values())


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cell, self.head = nn.GRU(3, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.orthogonal, *SPECTRAL.values()])
def test_parametrized_recurrent_layers(how):
    """They keep a list of the tensors that were computed last."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(Recurrent(4).double())
        how(models[-1].cell, "weight_hh_l0")
        models[-1](torch.randn(2, 3, 3, dtype=torch.float64))
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    moved = WassersteinFusion(random_state=0, correction=None).fit(models).transform(models)
    for model, twin in zip(models, moved, strict=True):
        torch.testing.assert_close(twin(x), model.eval()(x), rtol=1e-10, atol=1e-10)


def images(width):
    return nn.Sequential(
        nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.Flatten(), nn.Linear(4, 2)
    )


def table(width):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


class EveryThird(prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[::3] = 0
        return mask


def prune_twice(layer, name):
    prune.l1_unstructured(layer, name, amount=0.3)
    if getattr(layer, name).dim() > 1:
        prune.random_structured(layer, name, amount=1, dim=0)


PRUNED = {
    "linear": (table, (4, 3), ("0.weight", "0.bias", "2.weight"), prune_twice),
    "conv": (images, (2, 2, 5, 5), ("0.weight", "3.bias", "5.weight"), prune_twice),
    "recurrent": (Recurrent, (4, 5, 3), ("cell.weight_hh_l0", "cell.weight_ih_l0"), prune_twice),
    "custom": (table, (4, 3), ("0.weight", "4.weight"), EveryThird.apply),
}


@pytest.fixture(params=PRUNED)
def pruned(request):
    """A function that makes a pruned network of a width, and inputs."""
    build, shape, names, method = PRUNED[request.param]

    def make(width, seed):
        torch.manual_seed(seed)
        model = build(width).double()
        for name in names:
            owner, _, leaf = name.rpartition(".")
            method(model.get_submodule(owner), leaf)
        return model.eval()

    return make, torch.randn(shape, dtype=torch.float64)


def removed(model):
    """The same network after ``prune.remove``."""
    model = plain_copy(model, plain=False)
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            prune.remove(module, hook._tensor_name)
    return model


@pytest.mark.parametrize("widths", [(6, 6), pytest.param((6, 5), marks=pytest.mark.slow), (5, 6)])
def test_pruned_networks_fuse_as_their_values_and_stay_pruned(pruned, widths, tmp_path):
    make, x = pruned
    models = [make(width, seed) for seed, width in enumerate(widths)]
    fusion = WassersteinFusion(random_state=0, example_inputs=(x,), correction=None).fit(models)
    expected = (
        WassersteinFusion(random_state=0, example_inputs=(x,), correction=None).fit([removed(m) for m in models]).fused_model_
    )
    fused = fusion.fused_model_
    before = {n: getattr(m, n) for m in fused.modules() for n in vars(m) if isinstance(getattr(m, n), torch.Tensor)}
    torch.testing.assert_close(fused(x), expected(x), rtol=0, atol=0)
    assert all(not bool((value == 0).all()) for value in before.values())
    state = fused.state_dict()
    assert list(state) == list(models[0].state_dict())
    masks = [name for name in state if name.endswith("_mask")]
    assert masks
    for name in masks:
        torch.testing.assert_close(state[name], (state[name.removesuffix("mask") + "orig"] != 0).double())
    if widths[0] == widths[1]:
        for model, moved in zip(models, fusion.transform(models), strict=True):
            torch.testing.assert_close(moved(x), model(x))
    fusion.save(tmp_path / "fused")
    loaded = load(tmp_path / "fused", model=make(6, 7)).fused_model_
    torch.testing.assert_close(copy.deepcopy(removed(loaded))(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize("widths", [(6, 6), (6, 5)])
@pytest.mark.parametrize("first", [0, 1])
def test_pruned_and_other_parents_fuse(widths, first):
    torch.manual_seed(0)
    models = [table(width).double().eval() for width in widths]
    prune_twice(models[first][0], "weight")  # which then comes after the bias
    prune_twice(models[first][2], "bias")
    plain = [removed(m) for m in models]
    x = torch.randn(4, 3, dtype=torch.float64)
    fusion, expected = (WassersteinFusion(random_state=0, correction=None).fit(m) for m in (models, plain))
    torch.testing.assert_close(fusion.fused_model_(x), expected.fused_model_(x))
    if widths[0] == widths[1]:
        back = fusion.inverse_transform(fusion.transform(models), 1)[0]
        twin = expected.inverse_transform(expected.transform(plain), 1)[0]
        torch.testing.assert_close(back(x), twin(x))


def test_a_tensor_without_right_inverse_can_be_looked_at_but_not_fused():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    models = [dense(4, s, lambda m: parametrize.register_parametrization(m, "weight", Doubled())) for s in (0, 1)]
    assert discover(models[0]).sizes == {"0": 4, "2": 4}
    with pytest.raises(ValueError, match=r"must have a right_inverse .* for '2.weight'"):
        WassersteinFusion(correction=None).fit(models)
