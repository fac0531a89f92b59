import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import disguised, networks

from sklearn_wbfuse import discover
from sklearn_wbfuse.alignment.features import extract_features
from sklearn_wbfuse.alignment.gauge import apply_scales, balance_scales
from sklearn_wbfuse.discovery import floating_state


@given(networks(), st.integers(0, 1000))
def test_copies_that_differ_by_scales_become_equal(device, model, seed):
    spec = discover(model, (model.example,))
    rng = np.random.default_rng(seed)

    def no_permutation(size):
        return np.arange(size)

    def no_sign(signs, size):
        return np.ones(size)

    only_scales = {"permutation": no_permutation, "choice": no_sign, "uniform": rng.uniform}
    twin = disguised(model, type("Scales", (), {k: staticmethod(f) for k, f in only_scales.items()}), scales=True)
    balanced = []
    for network in (model, twin):
        features, arrays = extract_features(spec, floating_state(network.to(device)), 1.0)
        scales = balance_scales(features, arrays)
        assert set(scales) == {n for n, g in spec.groups.items() if g.scalable}
        balanced.append(apply_scales(features, arrays, scales))
    for a, b in zip(*balanced, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_the_balanced_gauge_has_the_smallest_norm(device):
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
    ).to(device)
    features, arrays = extract_features(discover(model), floating_state(model), 1.0)
    scales = balance_scales(features, arrays)
    best = sum(float((a**2).sum()) for a in apply_scales(features, arrays, scales))
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = {n: c * torch.as_tensor(rng.uniform(0.8, 1.25, len(c))).to(device) for n, c in scales.items()}
        assert sum(float((a**2).sum()) for a in apply_scales(features, arrays, other)) > best


def test_a_dead_neuron_keeps_its_scale(device):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).to(device)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    scales = balance_scales(*extract_features(discover(model), floating_state(model), 1.0))
    assert scales["0"][1] == 1 and torch.isfinite(scales["0"]).all()
