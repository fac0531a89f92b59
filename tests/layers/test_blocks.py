"""Groups of convolutions, and norms: channels that lie in blocks."""

import functools

import pytest
import torch
import torch.nn.functional as F
from blocks import Attention, Heads
from conformance.adapters import AdapterConformance, Case
from torch import nn

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.discovery import Architecture
from sklearn_wbfuse.exceptions import DiscoveryError, WidthError


class Channels(nn.Module):
    """conv(3 -> 8), an operation on images, conv(width -> 2)."""

    def __init__(self, operation, width=8):
        super().__init__()
        self.first, self.operation, self.last = nn.Conv2d(3, 8, 1), operation, nn.Conv2d(width, 2, 1)

    def forward(self, x):
        return self.last(F.relu(self.operation(F.relu(self.first(x)))))


def channels(operation, groups, width=8, scalable=None, block_groups=None, signable=(), **options):
    build = functools.partial(lambda make: Channels(make(), width), operation)
    blocks = block_groups or {}
    scalable = set(groups) - set(blocks.values()) if scalable is None else scalable
    return Case(build, (2, 3, 6, 6), groups, scalable, set(signable), blocks, **options)


def grouped(layer, width, blocks, **options):
    block_groups = {"first": "operation.blocks", "operation": "operation.blocks"}
    groups = {"operation.blocks": blocks, "first": 8, "operation": width}
    return channels(layer, groups, width, block_groups=block_groups, **options)


class TestConvolutions(AdapterConformance):
    cases = {
        "in groups": grouped(lambda: nn.Conv2d(8, 8, 3, groups=4), 8, 4),
        "in groups without bias": grouped(lambda: nn.Conv2d(8, 8, 3, groups=4, bias=False, padding=1, stride=2), 8, 4),
        "in two groups": grouped(lambda: nn.Conv2d(8, 4, 3, groups=2, dilation=2), 4, 2),
        "in groups, padded by name": grouped(lambda: nn.Conv2d(8, 4, 3, groups=2, padding="same"), 4, 2),
        "depthwise": channels(lambda: nn.Conv2d(8, 8, 3, groups=8), {"first": 8}),
        "depthwise, two filters each": channels(
            lambda: nn.Conv2d(8, 16, 3, groups=8), {"first": 8, "operation": 16}, 16, {"operation"}, {"operation": "first"}
        ),
        "transposed": channels(lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), {"first": 8, "operation": 6}, 6),
        "transposed in groups": grouped(
            lambda: nn.ConvTranspose2d(8, 6, 3, groups=2, padding=1, output_padding=1, stride=2), 6, 2
        ),
        "transposed depthwise": channels(lambda: nn.ConvTranspose2d(8, 8, 2, groups=8), {"first": 8}),
        "transposed depthwise, two filters each": channels(
            lambda: nn.ConvTranspose2d(8, 16, 2, groups=8),
            {"first": 8, "operation": 16},
            16,
            {"first", "operation"},
            {"operation": "first"},
            widens=False,
        ),
        "separable": channels(
            lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)),
            {"first": 8, "operation.3": 5},
            5,
        ),
        "shuffled": channels(lambda: nn.ChannelShuffle(2), {"first": 8}),
        "pixels shuffled": channels(lambda: nn.PixelShuffle(2), {"first": 2}, 2, widens=False),
        "in one dimension": Case(
            lambda: nn.Sequential(
                nn.Conv1d(3, 6, 1), nn.ReLU(), nn.Conv1d(6, 4, 2, groups=2), nn.ReLU(), nn.ConvTranspose1d(4, 2, 2)
            ),
            (2, 3, 5),
            {"2.blocks": 2, "0": 6, "2": 4},
            {"0", "2"},
            block_groups={"0": "2.blocks", "2": "2.blocks"},
        ),
    }


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class ChannelsLast(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS = {
    "group norm": channels(
        lambda: nn.GroupNorm(4, 8), {"operation.blocks": 4, "first": 8}, block_groups={"first": "operation.blocks"}
    ),
    "group norm of all": channels(lambda: nn.GroupNorm(1, 8), {"first": 8}),
    "group norm of each": channels(lambda: nn.GroupNorm(8, 8), {"first": 8}),
    "group norm without weights": channels(
        lambda: nn.GroupNorm(2, 8, affine=False),
        {"operation.blocks": 2, "first": 8},
        scalable=set(),
        block_groups={"first": "operation.blocks"},
        widens=False,
    ),
    "group norm by hand": channels(
        lambda: lambda x: (lambda y: y / (1 + y.mean((2, 3, 4), keepdim=True) ** 2))(x.unflatten(1, (4, 2))).flatten(1, 2),
        {"blocks": 4, "first": 8},
        scalable=set(),
        block_groups={"first": "blocks"},
        widens=False,
    ),
    "batch norm without statistics": channels(lambda: nn.BatchNorm2d(8, track_running_stats=False), {"first": 8}),
    "instance norm": channels(lambda: nn.InstanceNorm2d(8, affine=True), {"first": 8}),
    "instance norm without weights": channels(lambda: nn.InstanceNorm2d(8), {"first": 8}, scalable=set()),
    "instance norm by running statistics": channels(
        lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), {"first": 8}
    ),
    "layer norm": channels(lambda: nn.LayerNorm([8, 6, 6]), {"first": 8}),
    "layer norm without bias": channels(lambda: nn.LayerNorm([8, 6, 6], bias=False), {"first": 8}),
    "layer norm over space": channels(lambda: nn.LayerNorm(6), {"first": 8}, scalable=set()),
    "layer norm, channels last": channels(lambda: ChannelsLast(nn.LayerNorm(8)), {"first": 8}),
    "layer norm without weights": channels(
        lambda: ChannelsLast(nn.LayerNorm(8, elementwise_affine=False)), {"first": 8}, scalable=set(), widens=False
    ),
    "root mean square norm": channels(lambda: ChannelsLast(nn.RMSNorm(8)), {"first": 8}),
    "parametric relu": channels(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(8)), {"first": 8}),
    "parametric relu of one slope": channels(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.PReLU()), {"first": 8}),
    "squeeze and excitation": channels(Squeeze, {"operation.down": 3, "first": 8}),
    "gated": channels(lambda: nn.GLU(1), {"first": 4}, 4, widens=False),
}


class TestNorms(AdapterConformance):
    cases = NORMS


class Letters(nn.Module):
    """Attention by einsum alone, with weights of three axes: the dimensions of all heads move alike."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(8, 2, d)) for d in (4, 4, 3))
        self.out = nn.Parameter(torch.randn(2, 3, 8))

    def forward(self, x):
        q, k, v = (torch.einsum("btd,dhk->bthk", self.first(x), w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("...qhk,...shk->...hqs", q, k).softmax(-1)
        return self.last(torch.einsum("bqhd,hdm->bqm", torch.einsum("bhqs,bshd->bqhd", weights, v), self.out))


def test_blocks_of_a_group_norm_may_grow_where_heads_may_not():
    norm = Architecture.of(Channels(nn.GroupNorm(4, 8)), (torch.randn(2, 3, 6, 6),))
    assert norm.resized({"operation.blocks": 4, "first": 16}).plain.operation.num_groups == 4
    assert norm.resized({"operation.blocks": 8, "first": 16}).plain.operation.num_groups == 8
    with pytest.raises(WidthError, match="'first' lie in 4 blocks"):
        norm.resized({"operation.blocks": 4, "first": 10})
    attention = Architecture.of(Attention(batch_first=True), (torch.randn(2, 4, 5),))
    sizes = {"first": 16, "a.heads": 2, "a.0": 16, "a.1": 16, "a.out_proj": 16}
    with pytest.raises(WidthError, match=r"'a\.0' lie in 2 blocks"):
        attention.resized(sizes)
    assert attention.resized(sizes | {"a.heads": 4}).plain.a.num_heads == 4


class Ratio(nn.Module):
    """Two sums over units; twice as many units in both leave their ratio, in one of them double it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(1, 3)

    def forward(self, x):
        return self.last(self.a(x).exp().sum(-1, keepdim=True) / self.b(x).exp().sum(-1, keepdim=True))


class Saturated(nn.Module):
    """Attention behind large activations: for some parameters its weights are 0 and 1."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.last = nn.Linear(5, 8), nn.MultiheadAttention(8, 1, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        h = 10 * self.first(x)
        return self.last(h + self.a(h, h, h, need_weights=False)[0])


@pytest.mark.parametrize(("network", "shape", "sizes"), [(Ratio, (4, 5), {"a": 16}), (Saturated, (2, 4, 5), 2.0)])
def test_widths_that_change_the_function_are_refused(network, shape, sizes):
    with pytest.raises(WidthError, match="can't change"):
        WassersteinFusion(sizes, example_inputs=(torch.randn(shape),)).fit([network()])


TWO_WIDTHS = {
    "layer norm": ((4, 5), 8, lambda n: [nn.Linear(5, n), nn.LayerNorm(n), nn.ReLU(), nn.Linear(n, 3)]),
    "attention": (
        (2, 4, 5),
        8,
        lambda n: [nn.Linear(5, n), nn.TransformerEncoderLayer(n, n // 4, n, batch_first=True), nn.Linear(n, 3)],
    ),
    "depthwise": (
        (2, 3, 6, 6),
        4,
        lambda n: [nn.Conv2d(3, n, 1), nn.ReLU(), nn.Conv2d(n, n, 3, groups=n), nn.ReLU(), nn.Conv2d(n, 2, 1)],
    ),
    "group norm": ((2, 3, 6, 6), 4, lambda n: [nn.Conv2d(3, n, 1), nn.GroupNorm(n // 2, n), nn.ReLU(), nn.Conv2d(n, 2, 1)]),
}


@pytest.mark.parametrize("name", TWO_WIDTHS)
def test_parents_of_two_widths_keep_their_functions(name):
    torch.manual_seed(0)
    shape, width, layers = TWO_WIDTHS[name]
    models, x = [nn.Sequential(*layers(n)).double().eval() for n in (width, 2 * width)], torch.randn(shape, dtype=torch.float64)
    for model, moved in zip(
        models, WassersteinFusion(example_inputs=(x,), correction=None).fit(models).transform(models), strict=True
    ):
        torch.testing.assert_close(moved(x), model(x))


def test_a_hidden_layer_widens_where_heads_can_not():
    class Block(Heads):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.down(F.relu(self.up(super().forward(x))))

    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(2, 4, 5)
    assert torch.allclose(
        WassersteinFusion({"up": 12}, example_inputs=(x,), correction=None).fit([model]).fused_model_(x), model(x), atol=1e-5
    )
    with pytest.raises(WidthError, match="'heads'"):
        WassersteinFusion(2.0, example_inputs=(x,)).fit([model])


class Causal(nn.Module):
    """An encoder with a mask that it keeps as a buffer of infinities, and one of padding that it is given."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.first, self.layers, self.last = nn.Linear(5, 8), nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

    def forward(self, x, padding):
        return self.last(self.layers(self.first(x), mask=self.mask, src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_masks_of_infinities_and_of_padding():
    torch.manual_seed(0)
    models = [Causal().eval() for _ in range(2)]
    inputs = torch.randn(2, 4, 5), torch.tensor([[False] * 4, [False, False, True, True]])
    fusion = WassersteinFusion(example_inputs=inputs, correction=None).fit(models)
    assert fusion.graph_.sizes["layers.layers.0.self_attn.heads"] == 2
    assert torch.equal(fusion.fused_model_.mask, models[0].mask)
    for model, moved in zip(models, fusion.transform(models), strict=True):
        torch.testing.assert_close(moved(*inputs)[:, :2], model(*inputs)[:, :2], rtol=1e-4, atol=1e-5)


def test_complex_tensors_are_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(DiscoveryError, match="Got complex 'phase' in Sequential"):
        Architecture.of(model)


def test_weights_of_three_axes_move_heads_and_dimensions_alike():
    spec = Architecture.of(Letters(), (torch.randn(2, 4, 5),)).spec
    assert spec.sizes == {"first": 8, "q.0": 2, "q.1": 4, "v": 3, "out": 8}
    assert not spec.frozen


def test_the_table_shows_blocks():
    spec = Architecture.of(Attention(), (torch.randn(4, 2, 5),)).spec
    assert "a.0" in str(spec) and "2 x 4" in str(spec)


def test_blocks_that_overlap_stay_in_place():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1))
    assert Architecture.of(net, (torch.randn(2, 3, 5, 5),)).spec.sizes == {f"0.{k}": 2 for k in range(4)}
