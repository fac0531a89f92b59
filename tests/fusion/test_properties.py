"""What must hold for any network: permuted and scaled copies fuse back, one model widens without loss, order does not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CNN, MLP, disguised, networks, randomised

from sklearn_wbfuse import VanillaAveraging, WassersteinFusion

seeds = st.integers(0, 2**31 - 1)


def difference(a, b, x):
    with torch.no_grad():
        return float((a(x) - b(x)).abs().max() / (1 + b(x).abs().max()))


def on(device, *models):
    for model in models:
        model.to(device)
        model.example = model.example.to(device)
    return models


@given(networks(), seeds, st.sampled_from(["joint", "layerwise"]))
@settings(max_examples=20)
def test_permuted_and_scaled_copies_fuse_back_to_the_original(device, model, seed, schedule):
    rng = np.random.default_rng(seed)
    (model,) = on(device, model)
    copies = [model, *on(device, *(disguised(model.cpu(), rng, scales=True) for _ in range(2)))]
    on(device, model)
    fusion = WassersteinFusion(schedule=schedule, example_inputs=(model.example,), correction=None).fit(copies)
    assert difference(fusion.fused_model_, model, model.example) < 1e-7
    for moved in fusion.transform(copies):
        assert difference(moved, model, model.example) < 1e-7
        for name, parameter in fusion.fused_model_.named_parameters():
            torch.testing.assert_close(moved.get_parameter(name), parameter, rtol=1e-6, atol=1e-6)


@given(networks(), seeds)
@settings(max_examples=10)
def test_permuted_copies_fuse_back_to_the_same_parameters(device, model, seed):
    (model, twin) = on(device, model, disguised(model, np.random.default_rng(seed)))
    fused = WassersteinFusion(example_inputs=(model.example,), correction=None).fit([model, twin]).fused_model_
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-6, atol=1e-8)


@given(networks(), seeds)
@settings(max_examples=10)
def test_unseen_copies_are_matched_by_transform(device, model, seed):
    rng = np.random.default_rng(seed)
    twin, unseen = disguised(model, rng, scales=True), disguised(model, rng, scales=True)
    on(device, model, twin, unseen)
    fusion = WassersteinFusion(example_inputs=(model.example,), correction=None).fit([model, twin])
    (moved,) = fusion.transform([unseen])
    assert difference(moved, model, model.example) < 1e-7
    for name, parameter in fusion.fused_model_.named_parameters():
        torch.testing.assert_close(moved.get_parameter(name), parameter, rtol=1e-6, atol=1e-6)


@given(networks(), st.sampled_from([2.0, 3.0]))
def test_one_model_into_a_multiple_of_its_widths_keeps_its_function(device, model, factor):
    on(device, model)
    fusion = WassersteinFusion(target_widths=factor, example_inputs=(model.example,), correction=None).fit([model])
    assert difference(fusion.fused_model_, model, model.example) < 1e-9
    unscaled = {"groups.blocks"}  # a convolution in groups keeps their number
    assert fusion.graph_.sizes == {n: int(size * (1 if n in unscaled else factor)) for n, size in model.truth.sizes.items()}
    (moved,) = fusion.transform([model])
    assert difference(moved, model, model.example) < 1e-9


@given(networks(), seeds)
@settings(max_examples=10)
def test_the_order_of_permuted_copies_does_not_matter(device, model, seed):
    rng = np.random.default_rng(seed)
    models = [model, disguised(model, rng), disguised(model, rng)]
    on(device, *models)
    first = WassersteinFusion(example_inputs=(model.example,), correction=None).fit(models)
    second = WassersteinFusion(example_inputs=(model.example,), correction=None).fit(models[::-1])
    assert difference(first.fused_model_, second.fused_model_, model.example) < 1e-8


@given(networks())
def test_groups_are_those_of_the_hand_written_table(model):
    from sklearn_wbfuse import discover

    spec = discover(model, (model.example,))
    assert spec.sizes == model.truth.sizes
    assert {n: g.scalable for n, g in spec.groups.items()} == model.truth.scalable
    assert {n: g.signable for n, g in spec.groups.items()} == model.truth.signable
    for name, places in model.truth.places.items():
        group = spec.groups[name]
        discovered = {
            (t.name, axis, span.role, span.exponent, span.odd, *np.sort(column).tolist())
            for t, axis, span in spec.axes(name)
            for column in span.index.T
        }
        assert discovered == {
            (p.tensor, p.axis, p.role, p.exponent * group.scalable, p.odd and group.signable, *column.tolist())
            for p in places
            for column in p.columns(group.size)
        }


def test_plain_averaging_fails_the_permutation_property():
    rng = np.random.default_rng(0)
    model = randomised(MLP([5, 8, 8, 3]), rng)
    averaged = VanillaAveraging(example_inputs=(model.example,)).fit([model, disguised(model, rng)])
    assert difference(averaged.fused_model_, model, model.example) > 1e-2


@pytest.mark.parametrize("build", [lambda: MLP([5, 8, 6, 3], norm="affine"), lambda: CNN(4, 5, 6, norm="affine")])
def test_half_a_network_widens_and_then_narrows_back(build):
    """Twice the widths hold every neuron twice; fused into the old widths, the old function is back."""
    model = randomised(build(), np.random.default_rng(1))
    wide = WassersteinFusion(target_widths=2.0, example_inputs=(model.example,), correction=None).fit([model]).fused_model_
    narrow = (
        WassersteinFusion(target_widths=0.5, example_inputs=(model.example,), random_state=0, correction=None)
        .fit([wide])
        .fused_model_
    )
    assert difference(narrow, model, model.example) < 1e-8
