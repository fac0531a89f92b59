import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import networks

from sklearn_wbfuse import discover
from sklearn_wbfuse.discovery import floating_state
from sklearn_wbfuse.network.groups import put, relabel, take


@given(networks())
def test_blocks_tile_every_tensor(model):
    spec = discover(model, (model.example,))
    for name, tensor in floating_state(model).items():
        labels = spec.tensors[name]
        whole = labels.unfold(tensor)
        rebuilt = torch.full_like(whole, float("nan"))
        for block in labels.blocks():
            array = take(whole, block)
            assert array.shape[:-1] == tuple(len(s.index) for s in block.axes)
            put(rebuilt, block, array)
        torch.testing.assert_close(rebuilt, whole, rtol=0, atol=0)
        torch.testing.assert_close(labels.fold(rebuilt), tensor, rtol=0, atol=0)


@given(networks(), st.integers(0, 1000))
def test_relabelling_and_back_is_the_identity(model, seed):
    spec, rng = discover(model, (model.example,)), np.random.default_rng(seed)
    order = spec.orders(rng.permutation)
    scale = {n: rng.uniform(0.5, 2, s) for n, s in spec.sizes.items()}
    back = {n: np.argsort(p) for n, p in order.items()}
    for name, tensor in floating_state(model).items():
        labels = spec.tensors[name]
        there = relabel(tensor, labels, order, scale)
        inverse = {n: 1 / scale[n][back[n]] for n in scale}
        torch.testing.assert_close(relabel(there, labels, back, inverse), tensor)


def test_a_graph_prints_as_a_table():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    assert str(discover(model, (torch.randn(2, 1, 6, 6),))).splitlines() == [
        "group  size  scale  sign  computed by             read by",
        "-----  ----  -----  ----  ----------------------  -------",
        "0      4     yes    no    0.weight[0], 0.bias[0]  3.weight[1] x16",
        "98.8% of all values belong to these neurons",
    ]
