"""Copies whose heads, and units within them, are moved, multiplied and turned fuse back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sklearn_wbfuse import WassersteinFusion, discover
from sklearn_wbfuse.discovery import floating_state, plain_copy
from sklearn_wbfuse.network.groups import relabel


class Stream(nn.Module):
    """Attention beside a shortcut, twice, perhaps behind a layer norm."""

    def __init__(self, mixes, norm, width=12):
        super().__init__()
        self.embed, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.mixes = nn.ModuleList(mixes)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in mixes)

    def forward(self, x):
        x = self.embed(x)
        for mix, norm in zip(self.mixes, self.norms, strict=True):
            x = x + mix(norm(x))
        return self.head(x)


class MultiHead(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(12, 3, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class GroupedQuery(nn.Module):
    """Four heads of queries for two of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(12, 24), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(24, 12)

    def forward(self, x):
        q, k, v = (m(x).unflatten(-1, (-1, 6)).transpose(1, 2) for m in (self.q, self.k, self.v))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "layer norm"])
@pytest.mark.parametrize("mix", [MultiHead, GroupedQuery])
@settings(max_examples=2)
@given(seed=st.integers(0, 2**16), moves=st.booleans(), scales=st.booleans())
def test_turned_copies_fuse_back(mix, norm, seed, moves, scales):
    torch.manual_seed(seed)
    rng, x = np.random.default_rng(seed), torch.randn(3, 4, 5).double()
    model = Stream([mix(), mix()], norm).double().eval()
    spec = discover(model, x)
    order = spec.orders(rng.permutation if moves else np.arange)
    factor = {name: rng.choice([-1.0, 1.0], group.size) for name, group in spec.groups.items() if group.signable}
    for name, group in spec.groups.items():
        if group.scalable and scales:
            factor[name] = factor.get(name, 1.0) * rng.uniform(0.5, 2, group.size)
    twin = plain_copy(model)
    moved = {n: relabel(t, spec.tensors[n], order, factor) for n, t in floating_state(model).items()}
    twin.load_state_dict(moved, strict=False)
    fusion = WassersteinFusion(example_inputs=x, correction=None).fit([model, twin])
    with torch.no_grad():
        for network in (fusion.fused_model_, *fusion.transform([model, twin])):
            torch.testing.assert_close(network(x), model(x), rtol=1e-8, atol=1e-8)


def test_a_further_model_takes_the_signs_of_the_fused_one():
    torch.manual_seed(0)
    x, model = torch.randn(3, 4, 5).double(), Stream([MultiHead()], True).double().eval()
    spec = discover(model, x)
    turned = plain_copy(model)
    factor = {n: np.where(np.arange(g.size) % 2, -1.0, 1.0) for n, g in spec.groups.items() if g.signable}
    turned.load_state_dict({n: relabel(t, spec.tensors[n], {}, factor) for n, t in floating_state(model).items()}, strict=False)
    fusion = WassersteinFusion(example_inputs=x, correction=None).fit([model, model])
    (moved,) = fusion.transform([turned])
    for name, parameter in fusion.fused_model_.named_parameters():
        torch.testing.assert_close(moved.get_parameter(name), parameter, rtol=1e-8, atol=1e-8)
