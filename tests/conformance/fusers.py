"""What every fusion estimator must pass. A subclass gives `make(**parameters)` and may narrow what it supports."""

import copy
import functools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import CNN, MLP, Encoder, Grouped, Recurrent, ResNet, randomised
from sklearn.base import clone
from torch import nn

from sklearn_wbfuse import FusionInput, load
from sklearn_wbfuse.exceptions import (
    ArchitectureMismatchError,
    DiscoveryError,
    FusionError,
    InvalidModelError,
    NonFiniteError,
    WidthError,
)

BUILDERS = {
    "mlp": lambda: MLP([5, 8, 6, 3]),
    "mlp with norms": lambda: MLP([5, 8, 6, 3], norm="affine", activation="gelu"),
    "cnn": lambda: CNN(4, 3, 5, norm="affine"),
    "resnet": lambda: ResNet(4, 5, 6),
    "rnn": lambda: Recurrent("rnn_tanh", 6, levels=2),
    "lstm": lambda: Recurrent("lstm", 6, bidirectional=True, projection=4, readout="mean"),
    "gru": lambda: Recurrent("gru", 6, loop=True),
    "transformer": lambda: Encoder(2, 3, 5),
    "cnn in groups": lambda: Grouped(2, 3, 2, 2),
}


def family(name, count, dtype=torch.float64):
    return [randomised(BUILDERS[name](), np.random.default_rng(seed), dtype) for seed in range(count)]


def values(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same(first, second, tol=0.0):
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tol, atol=tol, msg=lambda m, n=name: f"{n}: {m}")


def random_states():
    return torch.random.get_rng_state(), np.random.get_state()[1].copy()


@functools.cache
def fitted(suite, name):
    """A fusion of two models of a family, the first in train mode, and what they and the generators held before: one fit for
    all checks that only read it."""
    models = family(name, 2)
    models[0].train()
    before = [values(m) for m in models], *random_states()
    fusion = suite().make(example_inputs=(models[0].example,)).fit(models)
    fusion.transform(models)
    return SimpleNamespace(fusion=fusion, models=models, before=before, after=([values(m) for m in models], *random_states()))


class FuserConformance:
    """Inherit, and set `make`. `is_mean` says whether the fused network is the weighted mean of what `transform` gives."""

    is_mean = True

    def make(self, **parameters):
        raise NotImplementedError

    def fitted(self, name):
        """A fusion of two models of a family, and the models, which checks only read."""
        fit = fitted(type(self), name)
        return fit.fusion, fit.models

    @pytest.mark.parametrize("name", BUILDERS)
    def test_the_fused_model_is_the_weighted_mean_of_models_that_keep_their_function(self, name, device):
        models = [m.to(device) for m in family(name, 3)]
        weights, x = [0.5, 0.3, 0.2], models[0].example.to(device)
        fusion = self.make(weights=weights, example_inputs=(x,)).fit(models)
        moved = fusion.transform(models)
        for model, twin in zip(models, moved, strict=True):
            torch.testing.assert_close(twin(x), model(x), rtol=1e-8, atol=1e-8)
        for key, fused in fusion.fused_model_.state_dict().items():
            if fused.is_floating_point() and self.is_mean:
                mean = sum(w * m.state_dict()[key] for w, m in zip(weights, moved, strict=True))
                torch.testing.assert_close(fused, mean, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("name", BUILDERS)
    def test_inputs_mode_and_random_state_are_untouched(self, name):
        fit = fitted(type(self), name)
        models, fusion = fit.models, fit.fusion
        for states, states_after in zip(fit.before[0], fit.after[0], strict=True):
            assert_same(states_after, states)
        assert torch.equal(fit.before[1], fit.after[1]) and (fit.before[2] == fit.after[2]).all()
        assert all(p.grad is None and p.requires_grad for model in models for p in model.parameters())
        assert models[0].training and not models[1].training
        assert not any(m.training for m in fusion.fused_model_.modules())

    @pytest.mark.parametrize("name", BUILDERS)
    def test_equal_models_give_that_model(self, name):
        model = family(name, 1)[0]
        fusion = self.make(example_inputs=(model.example,)).fit([model, copy.deepcopy(model), copy.deepcopy(model)])
        assert_same(values(fusion.fused_model_), values(model), 1e-9)

    @pytest.mark.parametrize("hot", [0, 1])
    @pytest.mark.parametrize("name", BUILDERS)
    def test_one_hot_weights_give_that_model(self, name, hot):
        models = family(name, 2)
        fusion = self.make(weights=[1 - hot, hot], example_inputs=(models[0].example,)).fit(models)
        x = models[0].example
        torch.testing.assert_close(fusion.fused_model_(x), models[hot](x), rtol=1e-9, atol=1e-9)
        assert_same(values(fusion.fused_model_), values(models[hot]) | _integers(models[0]), 1e-9)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_dtype_device_and_keys_are_those_of_the_first_model(self, dtype, device):
        models = [m.to(dtype).to(device) for m in family("cnn", 2)]
        models[0].left.weight.requires_grad_(False)
        fused = self.make(example_inputs=(models[0].example,)).fit(models).fused_model_
        old, new = models[0].state_dict(), fused.state_dict()
        assert list(old) == list(new)
        for key in old:
            assert (old[key].dtype, old[key].device, old[key].shape) == (new[key].dtype, new[key].device, new[key].shape)
        assert not fused.left.weight.requires_grad and fused.conv.weight.requires_grad
        assert type(fused) is type(models[0])

    @pytest.mark.parametrize("name", BUILDERS)
    def test_inverse_transform_brings_every_parent_back(self, name):
        fusion, models = self.fitted(name)
        moved = fusion.transform(models)
        for i, model in enumerate(models):
            (by_index,) = fusion.inverse_transform([moved[i]], parent=i)
            (by_model,) = fusion.inverse_transform([moved[i]], parent=model)
            assert_same(values(by_index), values(model), 1e-9)
            assert_same(values(by_model), values(by_index))
        (other,) = fusion.inverse_transform([fusion.fused_model_], parent=-1)
        torch.testing.assert_close(other(models[0].example), fusion.fused_model_(models[0].example), rtol=1e-8, atol=1e-8)
        for parent in (2, -3, "first"):
            with pytest.raises(FusionError, match=rf"its position, 0 to 1\. Got {parent!r}"):
                fusion.inverse_transform(moved, parent=parent)
        for one, other in zip(
            fusion.inverse_transform(FusionInput(moved, models[0].example)), fusion.inverse_transform(moved), strict=True
        ):
            assert_same(values(one), values(other))
        with pytest.raises(FusionError, match="parent must be a network that the fusion was fitted on"):
            fusion.inverse_transform(moved, parent=family(name, 3)[2])

    def test_inverse_transform_needs_the_fused_widths(self):
        models = [randomised(MLP([5, n, 3]), np.random.default_rng(0)) for n in (4, 4)]
        fusion = self.make().fit(models)
        with pytest.raises(WidthError, match=r"Model 0 must have the fused model's widths, 'linears.0.weight' of shape"):
            fusion.inverse_transform([randomised(MLP([5, 8, 3]), np.random.default_rng(0))])

    @pytest.mark.parametrize("correction", [None, "regression"])
    @pytest.mark.parametrize("first", [torch.float32, torch.float64])
    def test_models_of_two_precisions(self, first, correction):
        models = family("mlp", 2)
        models[int(first == torch.float64)].float()
        x = models[0].example.to(first)
        options = {"example_inputs": (x,), "random_state": 0} if correction else {"example_inputs": (x,)}
        fusion = self.make(correction=correction, **options).fit(models)
        assert next(fusion.fused_model_.parameters()).dtype == first
        for model, twin in zip(models, fusion.transform(models), strict=True):
            torch.testing.assert_close(
                twin(x).double(), model(x.to(next(model.parameters()).dtype)).double(), rtol=1e-4, atol=1e-4
            )
        if correction is None and self.is_mean:
            mean = [
                sum(p.double() for p in pair) / 2
                for pair in zip(*(m.parameters() for m in fusion.transform(models)), strict=True)
            ]
            for fused, expected in zip(fusion.fused_model_.parameters(), mean, strict=True):
                torch.testing.assert_close(fused.double(), expected, rtol=1e-5, atol=1e-5)

    def test_the_same_random_state_gives_the_same_bits(self):
        models = family("resnet", 3)
        first, second = (self.make(example_inputs=(models[0].example,)).fit(models) for _ in range(2))
        assert_same(values(first.fused_model_), values(second.fused_model_))

    def test_pickle_clone_and_parameters(self):
        models = family("mlp", 2)
        fusion = self.make(example_inputs=(models[0].example,))
        assert clone(fusion).get_params().keys() == fusion.get_params().keys()
        assert not hasattr(clone(fusion.fit(models)), "fused_model_")
        loaded = pickle.loads(pickle.dumps(fusion))
        assert_same(values(loaded.fused_model_), values(fusion.fused_model_))
        for a, b in zip(loaded.transform(models), fusion.transform(models), strict=True):
            assert_same(values(a), values(b))
        assert type(fusion)(**fusion.get_params()).get_params() == fusion.get_params()

    @pytest.mark.parametrize("name", ["mlp with norms", "cnn in groups"])
    def test_save_and_load(self, name, tmp_path):
        *models, template = family(name, 3)
        fusion, _ = self.fitted(name)
        fusion.save(tmp_path / "saved")
        loaded = load(tmp_path / "saved", model=template)
        assert type(loaded) is type(fusion)
        assert_same(values(loaded.fused_model_), values(fusion.fused_model_))
        for a, b in zip(loaded.transform([*models, template]), fusion.transform([*models, template]), strict=True):
            assert_same(values(a), values(b))

    def test_couplings_are_read_only_mass_plans_by_group(self):
        fusion, models = self.fitted("cnn")
        assert len(fusion.couplings_) == 2
        for couplings in fusion.couplings_:
            assert list(couplings) == list(fusion.graph_.groups) == list(models[0].truth.sizes)
            for name, plan in couplings.items():
                assert plan.dtype == np.float64 and plan.shape == (models[0].truth.sizes[name],) * 2
                assert abs(plan.sum() - 1) < 1e-12
                with pytest.raises(ValueError, match="read-only"):
                    plan[0, 0] = 1
            with pytest.raises(TypeError):
                couplings["left"] = None

    def test_fit_returns_self_is_idempotent_and_fit_transform_agrees(self):
        models = family("mlp", 2)
        fusion = self.make(example_inputs=(models[0].example,))
        assert fusion.fit(models) is fusion
        first = values(fusion.fused_model_)
        assert_same(values(fusion.fit(models).fused_model_), first)
        for a, b in zip(fusion.fit_transform(models), fusion.transform(models), strict=True):
            assert_same(values(a), values(b))

    def test_score_counts_hits_or_explains_variance(self):
        fusion, models = self.fitted("mlp")
        X = np.random.default_rng(0).normal(size=(50, 5))
        out = fusion.fused_model_(torch.as_tensor(X)).detach().numpy()
        assert fusion.score(FusionInput(models, X), out.argmax(1)) == 1.0
        assert fusion.score(X, (out.argmax(1) + 1) % 3) == 0.0
        assert fusion.score(torch.as_tensor(X), out) == pytest.approx(1.0, abs=1e-6)

    def test_an_empty_list(self):
        with pytest.raises(InvalidModelError, match="empty list"):
            self.make().fit([])

    def test_a_bare_module(self):
        with pytest.raises(InvalidModelError, match="Put the models into a list"):
            self.make().fit(nn.Linear(2, 2))

    def test_something_that_is_no_module(self):
        with pytest.raises(InvalidModelError, match=r"Model 1 must be an ordinary torch.nn.Module. Got function"):
            self.make().fit([nn.Linear(2, 2), lambda x: x])

    def test_a_script_module(self):
        scripted = torch.jit.script(nn.Linear(2, 2))
        with pytest.raises(InvalidModelError, match="scripted from"):
            self.make().fit([scripted, scripted])

    def test_a_lazy_module(self):
        with pytest.raises(InvalidModelError, match="Run the model once"):
            self.make().fit([nn.LazyLinear(2)])

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, bad):
        models = family("mlp", 2)
        models[1].linears[0].weight.data[0, 0] = bad
        with pytest.raises(NonFiniteError, match=r"Model 1: 'linears.0.weight' of shape \(8, 5\)"):
            self.make().fit(models)

    def test_two_devices(self):
        models = [nn.Linear(2, 2), nn.Linear(2, 2, device="meta")]
        with pytest.raises(InvalidModelError, match=r"one device. Got model 0 on cpu, model 1 on meta. Move them"):
            self.make().fit(models)

    def test_different_depths(self):
        with pytest.raises(ArchitectureMismatchError, match=r"Models 0 and 1 have different parameters: .*linears.3"):
            self.make().fit([family("mlp", 1)[0], randomised(MLP([5, 8, 6, 6, 3]), np.random.default_rng(0))])

    def test_different_activations(self):
        a, b = family("mlp", 2)
        b.activation = torch.tanh
        with pytest.raises(ArchitectureMismatchError, match="compute different functions"):
            self.make(example_inputs=(a.example,)).fit([a, b])

    def test_different_outputs(self):
        a, b = (randomised(MLP([5, 8, n]), np.random.default_rng(0)) for n in (3, 4))
        with pytest.raises(FusionError, match=r"'linears.1.weight' axis 0: sizes 3 and 4"):
            self.make(example_inputs=(a.example,)).fit([a, b])

    def test_inputs_that_the_model_does_not_take(self):
        models = family("mlp", 2)
        with pytest.raises(DiscoveryError, match=r"does not run on example inputs of shapes \(\(2, 7\),\)"):
            self.make(example_inputs=(torch.zeros(2, 7),)).fit(models)

    def test_inputs_that_can_not_be_guessed(self):
        with pytest.raises(DiscoveryError, match=r"begins with the Conv2d 'left'\. Give some: .*example_inputs="):
            self.make().fit(family("cnn", 2))

    @pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [np.nan, 1.0]])
    def test_wrong_weights(self, weights):
        with pytest.raises(FusionError, match="weights must"):
            self.make(weights=weights).fit(family("mlp", 2))

    def test_score_of_models(self):
        models = family("mlp", 2)
        for rows in (models, tuple(models), models[0]):
            with pytest.raises(TypeError, match="not models: give FusionInput"):
                self.make().fit(models).score(rows, [0, 1])

    def test_rows_of_another_length_than_labels(self):
        models = family("mlp", 2)
        fusion = self.make().fit(models)
        with pytest.raises(FusionError, match="X has 4 rows but y has 3"):
            fusion.score(FusionInput(models, np.zeros((4, 5))), [0, 1, 2])
        with pytest.raises(FusionError, match="X has 4 rows but y has 3"):
            self.make().fit(FusionInput(models, np.zeros((4, 5))), [0, 1, 2])

    def test_labels_without_an_output(self):
        models = family("mlp", 2)
        with pytest.raises(FusionError, match=r"classes 0 to 2, but y holds \[7\]"):
            self.make().fit(models).score(np.zeros((4, 5)), [0, 1, 2, 7])


def _integers(model):
    return {k: v for k, v in model.state_dict().items() if not v.is_floating_point()}
