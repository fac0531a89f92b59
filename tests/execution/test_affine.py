"""Layers as affine maps of rows: what is read, and what a changed map leaves in the tensors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from running import at_end, channels_last, expected, outputs
from torch import nn

from sklearn_wbfuse import discover
from sklearn_wbfuse.execution.affine import affine_layer_of
from sklearn_wbfuse.execution.sites import regression_sites
from sklearn_wbfuse.layers.operations import operation

seeds = st.integers(0, 2**31 - 1)


class BatchNorm(nn.Module):
    """A batch norm that has the tensors named, and always running statistics."""

    def __init__(self, size, names):
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            held = torch.ones(size) if name in ("mean", "var", *names) else None
            if name in ("mean", "var"):
                self.register_buffer(name, held)
            else:
                self.register_parameter(name, None if held is None else nn.Parameter(held))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, eps=0.1)


NORMS = {"none": None, "affine": ("weight", "bias"), "plain": (), "weight": ("weight",), "bias": ("bias",)}


def filled(network, seed):
    """In eval mode with random values, weights of norms with both signs and zeros among them."""
    rng = np.random.default_rng(seed)
    network = network.double().eval()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            drawn = rng.uniform(0.3, 2.0, tensor.shape) if name.endswith("var") else rng.normal(size=tensor.shape)
            if tensor.dim() == 1 and name.endswith("weight"):
                drawn = drawn * rng.choice([0, 1], tensor.shape)
            tensor.data.copy_(torch.as_tensor(drawn))
    return network


def linears(draw, norm):
    inputs, outs, dims = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dims = dims if norm is None else 2
    shape = (*draw(st.lists(st.integers(1, 3), min_size=dims - 1, max_size=dims - 1)), inputs)
    return nn.Linear(inputs, outs, bias=draw(st.booleans())), shape, outs


def convolutions(draw, space, transposed, norm):
    def per_axis(low, high):
        return [draw(st.integers(low, high)) for _ in range(space)]

    groups, kernel, stride, dilation = draw(st.integers(1, 3)), per_axis(1, 3), per_axis(1, 3), per_axis(1, 2)
    inputs, outs = groups * draw(st.sampled_from([1, 1, 2])), groups * draw(st.integers(1, 2))
    options, reach = {}, [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        options["output_padding"] = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        options["padding"] = per_axis(0, 3)
        sizes = [1 + max(0, -(-(2 * p - r) // s)) for p, r, s in zip(options["padding"], reach, stride, strict=True)]
    else:
        options["padding"] = draw(st.sampled_from(["same", "valid", None])) or per_axis(0, 2)
        stride = [1] * space if options["padding"] == "same" else stride
        padding = options["padding"] if isinstance(options["padding"], list) else [0] * space
        sizes = [max(1, r + 1 - 2 * p) for r, p in zip(reach, padding, strict=True)]
    build = getattr(nn, f"Conv{'Transpose' * transposed}{space}d")
    layer = build(inputs, outs, kernel, stride, groups=groups, dilation=dilation, bias=draw(st.booleans()), **options)
    batch = [draw(st.integers(1, 3))] if norm is not None or draw(st.booleans()) else []
    return layer, (*batch, inputs, *(n + draw(st.integers(0, 2)) for n in sizes)), outs


@st.composite
def layers(draw, kind, norm):
    """A layer, perhaps in front of a batch norm, and an input for it."""
    drawn = linears(draw, norm) if kind == "linear" else convolutions(draw, int(kind[-2]), "transpose" in kind, norm)
    layer, shape, outs = drawn
    seed = draw(seeds)
    x = torch.as_tensor(np.random.default_rng(seed).normal(size=shape))
    return filled(nn.Sequential(layer, *([] if norm is None else [BatchNorm(outs, norm)])), seed), x


KINDS = ["linear", *(f"conv{t}{s}d" for t in ("", "_transpose") for s in (1, 2, 3))]
data = st.data()
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


def only_writer(runner):
    """The writer of a network that has one."""
    ((_, site),) = regression_sites(runner.nodes, runner.parameters).items()
    (layer,) = site.layers
    return layer


def applied(layer, runner, matrix, offset, chosen=None):
    """An affine map of the rows that a writer reads, shape (positions, channels)."""
    value = runner.read(layer.end, 0)
    chosen = torch.arange(value.numel() // value.shape[layer.channel], device=value.device) if chosen is None else chosen
    rows = layer.rows(layer.read(runner, 0), chosen)
    assert rows.shape == (len(matrix), len(chosen), matrix.shape[2])
    return (rows @ matrix.mT + offset[:, None]).transpose(0, 1).flatten(1)


def assert_is_the_map(layer, runner, seed):
    value = channels_last(runner.read(layer.end, 0), layer.channel)
    matrix, offset = layer.affine(runner.state)
    assert matrix.shape[:2] == offset.shape and offset.numel() == value.shape[1]
    torch.testing.assert_close(applied(layer, runner, matrix, offset), value)
    chosen = torch.as_tensor(np.random.default_rng(seed).integers(0, len(value), 5)).to(value.device)
    torch.testing.assert_close(applied(layer, runner, matrix, offset, chosen), value[chosen])


def written(layer, runner, seed):
    """The state after a random map is written, with the map's values."""
    rng = np.random.default_rng(seed)
    matrix, offset = layer.affine(runner.state)
    new = [torch.as_tensor(rng.normal(size=t.shape)).to(t) for t in (matrix, offset, offset)]
    var = torch.as_tensor(rng.uniform(-1, 2, offset.shape)).to(offset)
    state, before = dict(runner.state), {n: t.clone() for n, t in runner.state.items()}
    layer.write(state, *new, var)
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    for name, tensor in before.items():
        assert torch.equal(runner.state[name], tensor)
    return state, new[0], new[1] if layer.has_offset else offset


def assert_computes_what_is_written(network, x, layer, runner, seed, device):
    state, matrix, offset = written(layer, runner, seed)
    (y,) = expected(network, (x,), device, state)
    torch.testing.assert_close(channels_last(y, layer.channel), applied(layer, runner, matrix, offset))
    again = layer.affine(state)
    torch.testing.assert_close(again, (matrix, offset))


class TestLayers:
    @pytest.mark.parametrize("kind", KINDS)
    @given(drawn=data)
    def test_rows_times_matrix_plus_offset(self, device, kind, drawn):
        """Also after a change; a layer without a bias and a norm has nowhere to put an offset, and keeps none."""
        network, x = drawn.draw(layers(kind, norm=None))
        runner = at_end(network, x, device=device)
        layer = only_writer(runner)
        assert operation(layer.node) == kind and layer.end is layer.node
        assert_is_the_map(layer, runner, 0)
        weight = runner.state["0.weight"]
        assert torch.equal(layer.tensor(layer.matrix(weight), weight), weight)
        assert layer.has_offset == (network[0].bias is not None)
        assert_computes_what_is_written(network, x, layer, runner, 1, device)


class TestBatchNormBehind:
    @pytest.mark.parametrize("norm", [n for n in NORMS if n != "none"])
    @given(drawn=data)
    def test_is_part_of_the_map(self, device, norm, drawn):
        kind = drawn.draw(st.sampled_from(KINDS))
        network, x = drawn.draw(layers(kind, NORMS[norm]))
        runner = at_end(network, x, device=device)
        layer = only_writer(runner)
        assert operation(layer.end) == "batch_norm" and layer.has_offset
        assert set(layer.norm_names) == {"mean", "var", *NORMS[norm]}
        assert_is_the_map(layer, runner, 0)
        assert_computes_what_is_written(network, x, layer, runner, 1, device)

    @given(drawn=data)
    def test_gets_the_statistics_of_the_layer(self, device, drawn):
        """Of statistics that are those of the rows, the norm makes mean 0 and deviation 1 before its own weight and bias."""
        network, x = drawn.draw(layers(drawn.draw(st.sampled_from(KINDS)), NORMS["affine"]))
        runner = at_end(network, x, device=device)
        layer = only_writer(runner)
        matrix, offset = layer.affine(runner.state)
        linear = applied(layer, runner, matrix, torch.zeros_like(offset))
        mean, var = linear.mean(0).view_as(offset), linear.var(0, correction=0).view_as(offset)
        state = dict(runner.state)
        layer.write(state, matrix, offset, mean, var)
        (y,) = expected(network[0], (x,), device, {n[2:]: t for n, t in state.items() if n.startswith("0.")})
        y = channels_last(y, layer.channel)
        torch.testing.assert_close(state["1.mean"], y.mean(0))
        torch.testing.assert_close(state["1.var"], y.var(0, correction=0))
        (same,) = expected(network, (x,), device, state)
        torch.testing.assert_close(same, outputs(runner)[0])


def normed(kind, size, groups, bias):
    return {
        "layer": lambda: nn.LayerNorm(size, bias=bias),
        "rms": lambda: nn.RMSNorm(size, eps=0.1 if bias else None),
        "group": lambda: nn.GroupNorm(groups, size),
        "instance": lambda: nn.InstanceNorm2d(size, affine=True),
        "tracked instance": lambda: nn.InstanceNorm2d(size, affine=True, track_running_stats=True),
        "batch": lambda: BatchNorm(size, ("weight", "bias") if bias else ("weight",)),
        "untracked batch": lambda: nn.BatchNorm2d(size, track_running_stats=False),
    }[kind]()


class TestNorms:
    @pytest.mark.parametrize("kind", ["layer", "rms", "group", "instance", "tracked instance", "batch", "untracked batch"])
    @given(groups=st.integers(1, 3), channels_per_group=st.integers(1, 2), dims=st.integers(2, 4), bias=st.booleans(), seed=seeds)
    def test_weight_and_bias(self, device, kind, groups, channels_per_group, dims, bias, seed):
        size = groups * channels_per_group
        dims = 4 if "instance" in kind or "untracked" in kind else dims
        channel = dims - 1 if kind in ("layer", "rms") else 1
        shape = [3, 2, 2, 2][:dims]
        shape[channel] = size
        network = filled(nn.Sequential(normed(kind, size, groups, bias)), seed)
        x = torch.as_tensor(np.random.default_rng(seed).normal(size=shape))
        runner = at_end(network, x, device=device)
        layer = only_writer(runner)
        assert layer.channel % dims == channel and layer.labelled == ("0.weight", 0)
        assert layer.has_offset == ("0.bias" in runner.state)
        assert_is_the_map(layer, runner, seed)
        weight = runner.state["0.weight"]
        assert torch.equal(layer.tensor(layer.matrix(weight), weight), weight)
        assert_computes_what_is_written(network, x, layer, runner, seed, device)


class Transposed(nn.ConvTranspose2d):
    """As many channels as it reads."""

    def __init__(self, groups):
        super().__init__(6, 6, 3, groups=groups)


LABELLED = {
    "linear": (nn.Linear(4, 6), ("1.weight", 0)),
    "groups": (nn.Conv2d(6, 6, 3, groups=3), ("1.weight", 0)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), ("1.bias", 0)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), ("1.weight", 1)),
    "transposed, groups": (Transposed(3), ("1.weight", 1)),
    "transposed, depthwise": (Transposed(6), ("1.bias", 0)),
    "affine norm": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), ("1.1.weight", 0)),
    "plain norm": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), ("1.1.running_mean", 0)),
}


class TestLabels:
    @pytest.mark.parametrize("case", LABELLED)
    def test_the_axis_named_is_that_of_the_neurons(self, case):
        """What discovery knows of this axis is the group that the next layer reads."""
        tested, labelled = LABELLED[case]
        build, shape = (nn.Linear, (2, 5)) if case == "linear" else (lambda *n: nn.Conv2d(*n, 1), (2, 5, 7, 7))
        inputs = next(m for m in tested.modules() if hasattr(m, "weight"))
        inputs = getattr(inputs, "in_channels", getattr(inputs, "in_features", None))
        network = nn.Sequential(build(5, inputs), tested, nn.ReLU(), build(6, 3)).double().eval()
        x = torch.randn(shape, dtype=torch.float64)
        runner = at_end(network, x)
        (layer,) = (
            w for e in regression_sites(runner.nodes, runner.parameters).values() for w in e.layers if w.weight.startswith("1.")
        )
        assert layer.labelled == labelled
        name, axis = labelled
        tensors = discover(network, (x,)).tensors
        ((span,), (read,)) = tensors[name].spans[axis], tensors["3.weight"].spans[1]
        assert span.group == read.group and len(span.index) == 6


class TestWhatIsNoWriter:
    @pytest.mark.parametrize(
        ("build", "shape"),
        [
            (lambda p, x: F.linear(x, p * 2), (4, 4)),
            (lambda p, x: F.linear(x, p, p.sum(0)), (4, 4)),
            (lambda p, x: F.linear(x, x), (4,)),
            (lambda p, x: F.linear(x, p), (4,)),
            (lambda p, x: x @ p, (4, 4)),
            (lambda p, x: F.layer_norm(x, (4, 4), p), (4, 4)),
            (lambda p, x: F.layer_norm(x, (4,), None, p), (4,)),
            (lambda p, x: F.layer_norm(x, (4,)), (4,)),
            (lambda p, x: x * p, (4,)),
        ],
        ids=["computed", "computed bias", "input", "vector", "matmul", "two dimensions", "bias alone", "no weight", "product"],
    )
    def test_others(self, build, shape):
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.p = nn.Parameter(torch.ones(shape, dtype=torch.float64))

            def forward(self, x):
                return build(self.p, x)

        runner = at_end(Network(), torch.ones(4, 4, dtype=torch.float64))
        assert [n for n in runner.nodes if affine_layer_of(n, runner.parameters)] == []
