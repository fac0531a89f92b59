"""What every correction must pass. A subclass gives `make(**parameters)`."""

import copy
import functools

import numpy as np
import pytest
import torch
from conformance.fusers import BUILDERS, assert_same, family, values
from hypothesis import given
from hypothesis import strategies as st
from networks import disguised, networks
from torch import nn

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.correction import Probe

NOISE = Probe("noise", n_samples=60, batch_size=30)


def data_for(models, n, seed=0):
    """Rows in the shape of a network's example: one row per sample, tokens where it takes tokens."""
    example, generator = models[0].example, torch.Generator().manual_seed(seed)
    shape = (n, *example.shape[1:])
    if not example.is_floating_point():
        return torch.randint(4, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def with_norms_of(model, data):
    """A model after its batch norms have taken the statistics of what they read."""

    def take(norm, inputs):
        dims = [d for d in range(inputs[0].dim()) if d != 1]
        norm.running_mean.copy_(inputs[0].mean(dims))
        norm.running_var.copy_(inputs[0].var(dims, correction=0))

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    model.eval()(data)
    for hook in hooks:
        hook.remove()
    return model


def as_it_is(model, data):
    """A model, unchanged."""
    return model


@functools.cache
def parents_with_rows(name, device):
    """Two networks of a family and rows: once for all corrections, which share what is discovered."""
    models = [m.to(device) for m in family(name, 2)]
    return FusionInput(models, data_for(models, 20))


@functools.cache
def copies_with_rows(name, at_home):
    """A network as a correction must find it to leave it alone, a permuted and scaled copy of it, and rows."""
    (model,) = family(name, 1)
    data = data_for([model], 30)
    return FusionInput([at_home(model, data), disguised(model, np.random.default_rng(0), scales=True)], data)


def fused(fitted_on, correction=None, **parameters):
    """The fused network, without a correction unless one is passed."""
    models = fitted_on.models if isinstance(fitted_on, FusionInput) else fitted_on
    options = {"example_inputs": (models[0].example,), "random_state": 0, "probe": NOISE, "cost": "weight", **parameters}
    return WassersteinFusion(**options, correction=correction).fit(fitted_on).fused_model_


@functools.cache
def uncorrected(rows):
    """The fused network on rows, once for all corrections."""
    return fused(rows, probe="data")


class CorrectionConformance:
    """Inherit, and set `make`; `at_home` changes a model to what the correction leaves alone on data."""

    at_home = staticmethod(as_it_is)

    def make(self, **parameters):
        raise NotImplementedError

    @given(network=networks(), seed=st.integers(0, 99))
    def test_permuted_copies_are_left_exactly_alone(self, network, seed, device):
        rng = np.random.default_rng(seed)
        copies = [m.to(device) for m in (network, disguised(network, rng), disguised(network, rng))]
        assert_same(values(fused(copies, self.make())), values(fused(copies)))

    @pytest.mark.parametrize("name", BUILDERS)
    def test_permuted_copies_are_left_alone_on_data(self, name):
        rows = copies_with_rows(name, self.at_home)
        assert_same(values(fused(rows, self.make(), probe="data")), values(uncorrected(rows)))

    @pytest.mark.parametrize("name", BUILDERS)
    def test_models_data_and_random_state_are_untouched(self, name, device):
        rows = parents_with_rows(name, device)
        models, (data,) = rows.models, rows.arrays
        old = [values(m) for m in models], data.clone(), torch.random.get_rng_state()
        after, before = fused(rows, self.make(), probe="data"), uncorrected(rows)
        assert torch.equal(torch.random.get_rng_state(), old[2]) and torch.equal(data, old[1])
        for model, before_fit in zip(models, old[0], strict=True):
            assert_same(values(model), before_fit)
        assert {k: (v.shape, v.dtype, v.device) for k, v in values(after).items()} == {
            k: (v.shape, v.dtype, v.device) for k, v in values(before).items()
        }
        assert all(p.grad is None and p.requires_grad for p in after.parameters())
        out = after(models[0].example.to(device))
        assert all(torch.isfinite(o).all() for o in (out if isinstance(out, tuple) else (out,)))

    def test_the_same_random_state_gives_the_same_bits(self):
        models = family("cnn", 2)
        first, second = (fused(models, self.make()) for _ in range(2))
        assert_same(values(first), values(second))

    @pytest.mark.parametrize(("factor", "dtype"), [(0.5, torch.float32), (2.0, torch.float64)])
    @pytest.mark.parametrize("name", ["mlp", "cnn"])
    def test_other_widths(self, name, factor, dtype):
        models = family(name, 2, dtype)
        after = fused(models, self.make(), target_widths=factor, merge="all")
        assert torch.isfinite(after(models[0].example)).all()

    def test_dead_and_constant_units_stay_finite(self):
        models = family("mlp with norms", 2)
        with torch.no_grad():
            for model in models:
                for parameter in list(model.parameters())[:2]:
                    parameter[0] = 0.0
        after = fused(FusionInput(models, torch.zeros(20, 5, dtype=torch.float64)), self.make(), probe="data")
        assert all(torch.isfinite(v).all() for v in values(after).values() if v.is_floating_point())

    def test_a_stream_of_batches_is_drawn_from_in_constant_memory(self):
        models, largest = family("mlp", 2), [0]

        def batches():
            for k in range(200):
                largest[0] = k
                yield torch.full((50, 5), float(k), dtype=torch.float64)

        drawn = FusionInput.from_batches(models, batches(), 40, random_state=0)
        assert largest[0] == 199 and len(drawn) == 40 and drawn.arrays[0][:, 0].unique().numel() > 20
        fusion = WassersteinFusion(correction=self.make(), probe="data", random_state=0).fit(drawn)
        assert all(torch.isfinite(v).all() for v in values(fusion.fused_model_).values())

    def test_one_model_is_left_alone(self):
        model = family("resnet", 1)[0]
        before, after = (fused([model], correction) for correction in (None, self.make()))
        assert_same(values(after), values(before))
        assert_same(values(before), values(copy.deepcopy(model)), 1e-12)
