"""Corrections: the conformance suite, and each against what defines it."""

from functools import partial

import numpy as np
import pytest
import torch
from architectures import FIXTURES
from conformance.corrections import NOISE, CorrectionConformance, with_norms_of
from conformance.fusers import assert_same, family, values
from extending import Centre
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.correction import BatchNorm, Probe, Regression, Repair
from sklearn_wbfuse.datasets import MLP
from sklearn_wbfuse.exceptions import FusionWarning

DATA = Probe("data", n_samples=400, n_mixed=0, batch_size=100)


class TestRegression(CorrectionConformance):
    make = staticmethod(Regression)

    @pytest.mark.parametrize("bias", [True, False])
    def test_a_layer_is_the_ridge_regression_of_the_held_in_rows(self, bias):
        torch.manual_seed(0)
        models = [nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias)).double() for _ in range(2)]
        X = torch.randn(100, 4, dtype=torch.float64)
        probe = Probe("data", n_samples=100, n_mixed=0, batch_size=100)
        options = {"probe": probe, "random_state": 0}
        plain = VanillaAveraging().fit(FusionInput(models, X)).fused_model_
        fused = VanillaAveraging(correction=Regression(ridge=0.2), **options).fit(FusionInput(models, X)).fused_model_
        with torch.no_grad():
            hidden, target = fused[:2](X), sum(m(X) for m in models) / 2
            residual = target - plain[2](hidden)
        rng = np.random.RandomState(0)
        rng.randint(np.iinfo(np.int32).max)  # seeds what torch draws
        order = rng.permutation(100)
        inside = order[np.arange(100) % 5 != 4]
        outside = order[np.arange(100) % 5 == 4]
        Z = hidden[inside].numpy()
        centred = Z - Z.mean(0) if bias else Z
        penalty = 0.2 * float((centred**2).sum(0).mean())
        solved = Ridge(alpha=penalty, fit_intercept=bias, tol=1e-12).fit(Z, residual[inside].numpy())
        change = solved.predict(hidden[outside].numpy())
        left = residual[outside].numpy()
        step = min(max((change * left).sum() / (change**2).sum(), 0), 1)
        np.testing.assert_allclose((fused[2].weight - plain[2].weight).detach().numpy(), step * solved.coef_, atol=1e-9)
        if bias:
            np.testing.assert_allclose((fused[2].bias - plain[2].bias).detach().numpy(), step * solved.intercept_, atol=1e-9)

    @pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "rnn", "lstm", "gru", "transformer", "cnn in groups"])
    def test_outputs_come_closer_to_the_parents_mean(self, name):
        models = family(name, 2)
        X = torch.randn(400, *models[0].example.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        errors = []
        for correction in (None, Regression()):
            options = {"probe": DATA, "random_state": 0, "example_inputs": (models[0].example,), "cost": "weight"}
            fused = WassersteinFusion(correction=correction, **options).fit(FusionInput(models, X)).fused_model_
            with torch.no_grad():
                outputs = [torch.cat([o.flatten(1) for o in _leaves(m(X))], 1) for m in (fused, *models)]
            mean = sum(outputs[1:]) / 2
            errors.append(float((outputs[0] - mean).square().sum() / (mean - mean.mean(0)).square().sum()))
        assert errors[1] < 0.8 * errors[0], errors

    def test_no_bias_is_added_and_shared_weights_stay(self):
        models = [MLP([4, 6, 3], bias=False) for _ in range(2)]
        fused = WassersteinFusion(correction="regression", random_state=0).fit(models).fused_model_
        assert all(layer.bias is None for layer in fused.layers)


def _leaves(outputs):
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def convolutional(affine=True):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, affine=affine),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def trained(build, seed):
    """A network with running statistics of its own activations, and norms' weights of both signs."""
    torch.manual_seed(seed)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    model.train()(torch.randn(100, 1, 6, 6, dtype=torch.float64))
    return model.eval()


def statistics(model, X, layer):
    with torch.no_grad():
        y = model[: layer + 1](X)
    y = y.movedim(1, -1).flatten(0, -2) if y.dim() > 2 else y
    return y.mean(0), y.std(0, correction=0)


def aligned_mean(fusion, models, X, layer):
    both = [statistics(m, X, layer) for m in fusion.transform(models)]
    weights = fusion.weights or [1 / len(models)] * len(models)
    return [sum(w * s[k] for w, s in zip(weights, both, strict=True)) for k in (0, 1)]


class TestRepair(CorrectionConformance):
    make = staticmethod(Repair)

    @pytest.mark.parametrize("affine", [True, False])
    def test_statistics_of_every_layer_are_the_parents_weighted_mean(self, affine):
        models = [trained(lambda: convolutional(affine), seed) for seed in range(3)]
        X = torch.randn(300, 1, 6, 6, dtype=torch.float64)
        options = {"probe": DATA, "random_state": 0, "weights": [0.5, 0.3, 0.2], "cost": "weight"}
        aligned = WassersteinFusion(correction=None, **options).fit(FusionInput(models, X))
        fused = WassersteinFusion(correction="repair", **options).fit(FusionInput(models, X)).fused_model_
        for layer in (1, 3, 6):
            wanted, found = aligned_mean(aligned, models, X, layer), statistics(fused, X, layer)
            for a, b in zip(wanted, found, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)
        assert (statistics(aligned.fused_model_, X, 3)[1] < 0.97 * statistics(fused, X, 3)[1]).any()


@pytest.mark.slow  # conformance as of TestRepair
class TestRescale(CorrectionConformance):
    make = staticmethod(partial(Repair, shift=False))


def test_deviations_are_the_parents_and_means_stay():
    models, X = [trained(convolutional, seed) for seed in range(2)], torch.randn(300, 1, 6, 6, dtype=torch.float64)
    options = {"probe": DATA, "random_state": 0, "cost": "weight"}
    aligned, repaired, rescaled = (
        WassersteinFusion(correction=c, **options).fit(FusionInput(models, X)) for c in (None, Repair(), Repair(shift=False))
    )
    for layer in (1, 3, 6):
        deviation = statistics(rescaled.fused_model_, X, layer)[1]
        torch.testing.assert_close(deviation, aligned_mean(aligned, models, X, layer)[1], rtol=1e-3, atol=1e-3)
    before, after, wanted = (statistics(f.fused_model_, X, 1)[0] for f in (aligned, rescaled, repaired))
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    assert (after - wanted).abs().max() > 1e-3


class TestClosedRepair(CorrectionConformance):
    make = staticmethod(partial(Repair, "closed"))

    @pytest.mark.parametrize("shift", [True, False])
    def test_a_single_layer_comes_out_as_forward(self, shift):
        models, X = [nn.Linear(4, 6).double() for _ in range(3)], torch.randn(200, 4, dtype=torch.float64)
        found = [
            WassersteinFusion(correction=Repair(m, shift=shift), probe=DATA, weights=[0.5, 0.3, 0.2], random_state=0)
            .fit(FusionInput(models, X))
            .fused_model_
            for m in ("forward", "closed")
        ]
        assert_same(*map(values, found), 1e-9)
        mean = sum(w * m.weight for w, m in zip([0.5, 0.3, 0.2], models, strict=True))
        assert (found[1].weight / mean > 1.1).any()

    def test_of_hidden_layers_the_ratio_is_that_of_the_formula(self):
        models, X = [MLP([4, 9, 9, 3]).double() for _ in range(3)], torch.randn(300, 4, dtype=torch.float64)
        lambdas, options = [0.5, 0.3, 0.2], {"probe": DATA, "random_state": 0, "cost": "weight"}
        aligned = WassersteinFusion(weights=lambdas, correction=None, **options).fit(FusionInput(models, X))
        fused = WassersteinFusion(weights=lambdas, correction=self.make(), **options).fit(FusionInput(models, X)).fused_model_
        outputs = torch.stack([_hidden(m, X) for m in aligned.transform(models)])  # models, rows, channels
        for k in range(outputs.shape[2]):
            sigma, rho = outputs[:, :, k].std(1, correction=0).numpy(), np.corrcoef(outputs[:, :, k].numpy())
            both = np.array(lambdas) * sigma
            ratio, mean = both.sum() / np.sqrt(both @ rho @ both), np.dot(lambdas, outputs[:, :, k].mean(1).numpy())
            plain = aligned.fused_model_.layers[1]
            np.testing.assert_allclose(fused.layers[1].weight[k].detach(), ratio * plain.weight[k].detach(), rtol=1e-8)
            np.testing.assert_allclose(fused.layers[1].bias[k].item(), ratio * (plain.bias[k].item() - mean) + mean, rtol=1e-8)

    @pytest.mark.parametrize("affine", [True, False])
    def test_running_statistics_take_the_place_of_those_on_the_inputs(self, affine):
        models, X = [trained(lambda: convolutional(affine), seed) for seed in range(2)], torch.randn(300, 1, 6, 6).double()
        options = {"probe": DATA, "random_state": 0, "cost": "weight"}
        fused, brighter = (
            WassersteinFusion(correction=self.make(), **options).fit(FusionInput(models, x)).fused_model_[:2]
            for x in (X, 9 * X + 5)
        )
        assert_same(values(fused), values(brighter), 1e-4)
        aligned = WassersteinFusion(correction=None, **options).fit(FusionInput(models, X))
        wanted = aligned_mean(aligned, models, X, 1)[1]  # the parents' statistics are those of such inputs
        before, after = ((statistics(f, X, 1)[1] / wanted - 1).abs().mean() for f in (aligned.fused_model_, fused))
        assert after < 0.2 * before

    def test_a_norm_alone_reads_what_is_repaired(self):
        models = []
        for scale in (1.0, 3.0):
            model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double().eval()
            model[0].running_var.fill_(scale**2), model[0].weight.data.fill_(scale)
            models.append(model)
        fused = WassersteinFusion(correction=self.make(), probe=DATA, random_state=0).fit(FusionInput(models, torch.randn(50, 3)))
        norm = fused.fused_model_[0]  # inputs have deviation 2, outputs too
        torch.testing.assert_close(norm.weight / (norm.running_var + norm.eps).sqrt(), torch.ones(3).double(), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("method", ["closed", "forward"])
    def test_the_fused_network_runs_only_forward(self, method):
        models, ran = family("resnet", 2), []

        class Watched(Repair):
            def correct(self, fused, parents):
                run = fused.run
                fused.run = lambda node: ran.append(node) or run(node)
                return super().correct(fused, parents)

        WassersteinFusion(
            correction=Watched(method), cost="weight", probe=NOISE, example_inputs=models[0].example, random_state=0
        ).fit(models)
        assert bool(ran) == (method == "forward")


def _hidden(model, X):
    with torch.no_grad():
        return model.layers[1](model.layers[0](X).relu())


@pytest.mark.filterwarnings("ignore:correction='batchnorm' does nothing")
class TestBatchNorm(CorrectionConformance):
    make = staticmethod(BatchNorm)
    at_home = staticmethod(with_norms_of)

    @pytest.mark.parametrize("affine", [True, False])
    def test_statistics_behind_norms_are_the_parents_weighted_mean(self, affine):
        X = torch.randn(300, 1, 6, 6, dtype=torch.float64)
        models = [with_norms_of(trained(lambda: convolutional(affine), seed), X) for seed in range(2)]
        options = {"probe": DATA, "random_state": 0, "cost": "weight"}
        aligned = WassersteinFusion(correction=None, **options).fit(FusionInput(models, X))
        fused = WassersteinFusion(correction="batchnorm", **options).fit(FusionInput(models, X)).fused_model_
        for a, b in zip(aligned_mean(aligned, models, X, 1), statistics(fused, X, 1), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)
        changed = {k for k, v in fused.state_dict().items() if not torch.equal(v, aligned.fused_model_.state_dict()[k])}
        assert changed == {"1.running_mean", "1.running_var"}


QUICK = {"vgg11", "resnet18", "mobilenet_v2", "unet_group_norm", "gpt", "attentive_lstm", "siamese", "two_inputs"}


@pytest.mark.parametrize(
    "fixture", [pytest.param(f, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, f in FIXTURES.items()]
)
def test_published_architectures(fixture):
    (first, _, x), (second, *_) = (fixture.build(seed) for seed in range(2))
    probe = Probe("noise", n_samples=12, batch_size=6)
    options = {"example_inputs": x, "probe": probe, "random_state": 0, "cost": 0.5}
    fusion = WassersteinFusion(correction=("repair", "regression"), **options).fit([first, second])
    leaves = torch.utils._pytree.tree_leaves(fusion.fused_model_(*x))
    assert all(torch.isfinite(t).all() for t in leaves if isinstance(t, torch.Tensor))


def test_batch_norms_that_are_not_there_are_a_warning():
    with pytest.warns(FusionWarning, match="no batch norm"):
        WassersteinFusion(correction="batchnorm").fit([MLP([3, 4, 2]) for _ in range(2)])


def test_several_corrections_follow_one_another():
    models = [trained(convolutional, seed) for seed in range(2)]
    options = {"probe": Probe("noise", n_samples=100), "random_state": 0, "example_inputs": torch.zeros(2, 1, 6, 6)}
    found = [
        WassersteinFusion(correction=c, **options).fit(models).fused_model_.state_dict()
        for c in ("regression", ("batchnorm", "regression"), ("repair", Regression()), ["regression"])
    ]
    assert not torch.equal(found[0]["3.weight"], found[1]["3.weight"])
    assert not torch.equal(found[1]["3.weight"], found[2]["3.weight"])
    assert torch.equal(found[0]["3.weight"], found[3]["3.weight"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"correction": "regresion"}, ValueError, "Did you mean 'regression'"),
        ({"correction": Regression}, TypeError, "Regression(ridge=0.1)"),
        ({"correction": ("repair", 3)}, TypeError, "3"),
        ({"correction": Regression(ridge=-1)}, ValueError, "ridge"),
        ({"correction": "repair", "probe": "images"}, ValueError, "images"),
        ({"correction": "repair", "probe": 5}, TypeError, "probe"),
        ({"correction": "repair", "probe": Probe(n_samples=0)}, ValueError, "n_samples"),
        ({"correction": "repair", "probe": "data"}, ValueError, "FusionInput"),
        ({"cost": "activation", "probe": "data"}, ValueError, "FusionInput"),
        ({"cost": 1.5}, ValueError, "cost"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, error, words):
    with pytest.raises(error) as raised:
        WassersteinFusion(**options).fit([MLP([3, 4, 2]) for _ in range(2)])
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (lambda: torch.full((30, 3), float("nan")), ValueError, "NaN"),
        (lambda: torch.zeros(0, 3), ValueError, "rows"),
        (lambda: torch.zeros(4, 3), ValueError, "more rows"),
        (lambda: iter([torch.zeros(4, 3)]), TypeError, "from_batches"),
        (lambda: torch.utils.data.DataLoader(torch.zeros(4, 3)), TypeError, "from_batches"),
    ],
)
def test_wrong_rows_say_what_is_wrong(rows, error, words):
    models = [MLP([3, 4, 2]) for _ in range(2)]
    with pytest.raises(error, match=words):
        WassersteinFusion(correction="regression", example_inputs=torch.zeros(2, 3)).fit(FusionInput(models, rows()))


def test_noise_is_coloured_by_models_that_count():
    models = [MLP([3, 4, 2]) for _ in range(2)]
    with torch.no_grad():
        models[1].layers[0].weight.zero_()
    fused = WassersteinFusion(weights=[0, 1], correction="repair", random_state=0).fit(models).fused_model_
    assert all(torch.isfinite(p).all() for p in fused.parameters())


class Unbatched(nn.Module):
    """Its activations have a first dimension of one."""

    def __init__(self):
        super().__init__()
        self.net = MLP([6, 11, 3])

    def forward(self, x):
        return self.net.layers[1](self.net.layers[0](x.float().unsqueeze(0)).relu())[0]


def test_rows_are_held_out_where_the_first_dimension_holds_no_samples():
    models, x = [Unbatched() for _ in range(2)], torch.randn(2, 6)
    plain, corrected = (
        WassersteinFusion(correction=c, cost="weight", random_state=0, example_inputs=(x,)).fit(models).fused_model_.state_dict()
        for c in (None, "regression")
    )
    assert not torch.equal(plain["net.layers.1.weight"], corrected["net.layers.1.weight"])


def test_noise_for_integers_that_are_no_tokens_is_a_named_error():
    x = torch.randint(0, 100, (2, 6), dtype=torch.uint8)
    with pytest.raises(ValueError, match="give rows"):
        WassersteinFusion(correction="repair", example_inputs=(x,)).fit([Unbatched() for _ in range(2)])


@pytest.mark.slow
class TestCentre(CorrectionConformance):
    make = staticmethod(Centre)
