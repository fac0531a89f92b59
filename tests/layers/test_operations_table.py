"""The table of operations against PyTorch: what it says of each is seen when the operation is run."""

import itertools
from collections import Counter

import pytest
import torch
from torch import nn

from sklearn_wbfuse import WassersteinFusion, discover
from sklearn_wbfuse.layers.operations import KINDS, ROWS, TABLE, Operation, operation_names
from sklearn_wbfuse.layers.registry import RULES, register_sizes

aten = torch.ops.aten
ELEMENTWISE = ("identity", "sum", "homogeneous", "odd", "product", "quotient", "general")
SAME_PLACES = ("reshapes", "expands", "repeats")
OPTIONS = {  # what an operation needs beside its tensors
    "to": (torch.float64,),
    "dropout": (0.5, False),
    "feature_dropout": (0.5, False),
    "alpha_dropout": (0.5, False),
    "native_dropout": (0.5, False),
    "clamp": (-0.5, 0.5),
    "clamp_min": (0.1,),
    "clamp_max": (0.1,),
    "threshold": (0.1, 0.0),
    "masked_fill": (0.0,),
    "softmax": (1,),
    "_softmax": (1, False),
    "_safe_softmax": (1,),
    "log_softmax": (1,),
    "_log_softmax": (1, False),
}
SECOND = "add sub rsub maximum minimum fmax fmin hypot prelu mul div ne eq lt gt le ge logical_and logical_or logical_xor atan2"
SECOND += (
    " fmod remainder bitwise_and bitwise_or bitwise_xor floor_divide xlogy copysign logaddexp logaddexp2 heaviside pow where"
)
SECOND += " masked_fill bucketize lerp"
WHOLE = torch.tensor([0, 3, 1, 2])
X = torch.arange(48.0).view(2, 4, 6)
MOVED = {  # values that are all different, and what is done to them
    "flatten": (X,),
    "permute": (X, (2, 0, 1)),
    "transpose": (X, 0, 2),
    "t": (X[0],),
    "numpy_T": (X[0],),
    "squeeze": (X[:1],),
    "unsqueeze": (X, 1),
    "movedim": (X, 0, 2),
    "swapaxes": (X, 0, 1),
    "swapdims": (X, 0, 1),
    "reshape": (X, (8, 6)),
    "unflatten": (X, 2, (2, 3)),
    "view": (X, (8, 6)),
    "_unsafe_view": (X, (8, 6)),
    "expand": (X, (3, 2, 4, 6)),
    "repeat": (X, (2, 1, 1)),
    "tile": (X, (2, 1, 1)),
    "repeat_interleave": (X, 2, 1),
    "roll": (X, (1,), (2,)),
    "flip": (X, (2,)),
    "select": (X, 1, 2),
    "unfold": (X, 2, 3, 1),
    "diagonal": (X,),
    "pixel_shuffle": (X.view(4, 4, 3), 2),
    "pixel_unshuffle": (X.view(2, 4, 6), 2),
    "channel_shuffle": (X.view(1, 4, 12), 2),
    "slice": (X, 1, 1, 3),
    "narrow": (X, 1, 1, 2),
    "chunk": (X, 2, 1),
    "unsafe_chunk": (X, 2, 1),
    "unbind": (X, 1),
    "split": (X, 2, 1),
    "split_with_sizes": (X, (1, 3), 1),
    "tensor_split": (X, 2, 1),
    "unsafe_split": (X, 2, 1),
    "unsafe_split_with_sizes": (X, (1, 3), 1),
    "index_select": (X, 1, WHOLE[:2]),
    "gather": (X, 1, WHOLE.view(1, 4, 1)),
    "index": (X, [None, WHOLE]),
    "cat": ([X, -1 - X],),
    "concat": ([X, -1 - X],),
    "stack": ([X, -1 - X],),
}


def run(name, *arguments, **named_arguments):
    """Of several results, the first."""
    result = getattr(aten, name)(*arguments, **named_arguments)
    return result[0] if isinstance(result, tuple) else result


def draw(*shape, scale=1.0):
    """Numbers of both signs, none near zero and none over one, so that all functions are smooth at half of them too."""
    signs = torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)
    return scale * signs * (0.3 + 0.65 * torch.rand(shape))


def operands(name, size=64):
    scale = 5.0 if name in ("trunc", "frac") else 1.0
    drawn = [draw(size, scale=scale) for _ in range(2 if name in SECOND.split() else 1)]
    if name.startswith("bitwise"):
        drawn = [(5 * x).long() for x in drawn]
    return {
        "where": [drawn[0] > 0, *drawn, draw(size)][:1] + drawn,
        "masked_fill": [drawn[0], drawn[-1] > 0],
        "bucketize": [drawn[0], torch.linspace(-1, 1, 5)],
        "lerp": [*drawn, draw(size)],
        "prelu": [drawn[0], draw(1)],
    }.get(name, drawn)


def same(a, b):
    return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6, equal_nan=True)


def all_of(*kinds):
    return pytest.mark.parametrize("name", operation_names(*kinds))


def first_schema(name):
    packet = getattr(aten, name)
    return getattr(packet, next(o for o in packet.overloads() if not o.endswith("out")))._schema


def test_every_rule_is_in_the_table_once_and_every_name_is_an_operation_of_pytorch():
    rules = {name.removeprefix("aten::") for name in RULES if name.startswith("aten::")}
    assert rules <= set(TABLE) and len(rules) > 300
    assert not [name for name, count in Counter(n for names, _ in ROWS for n in names.split()).items() if count > 1]
    assert not [name for name in TABLE if not hasattr(aten, name)]
    assert {facts.kind for facts in TABLE.values()} == set(KINDS)


@all_of(*ELEMENTWISE)
def test_elementwise_kinds(name):
    torch.manual_seed(0)
    kind, values, options = TABLE[name].kind, operands(name), OPTIONS.get(name, ())
    order = torch.randperm(len(values[0]))

    def f(*factors):
        scaled = [v * c for v, c in zip(values, factors, strict=False)]
        return run(name, *scaled, *values[len(scaled) :], *options)

    y = run(name, *values, *options)
    united = [v[order] if len(v) == len(order) else v for v in values]
    assert y.shape == values[0].shape and same(run(name, *united, *options), y[order])
    if kind == "identity":
        assert same(y, values[0])
    elif kind == "sum":
        assert same(f(-2.0, -2.0), -2 * y)
    elif kind == "homogeneous":
        united = (0.5,) if name == "prelu" else (0.5, 0.5)
        assert same(f(*united), 0.5 * y) and not same(f(*(-c for c in united)), -0.5 * y)
    elif kind == "odd":
        assert same(f(-1), -y) and not same(f(0.5), 0.5 * y)
    elif kind == "product":
        assert same(f(-2.0, 1), -2 * y) and same(f(1, -2.0), -2 * y)
    elif kind == "quotient":
        assert same(f(-2.0, 1), -2 * y) and same(f(1, -2.0), y / -2)


@pytest.mark.parametrize("name", [n for n in TABLE if TABLE[n].bounds and TABLE[n].kind != "fills"])
def test_bounds_hold_for_all_numbers(name):
    torch.manual_seed(0)
    (low, high), values = TABLE[name].bounds, [10 * draw(20, 20) for _ in range(2 if name in SECOND.split() else 1)]
    y = run(name, *values, *OPTIONS.get(name, ())).double()
    assert low <= float(y.min()) and float(y.max()) <= high


@all_of("fills")
def test_what_is_filled_does_not_depend_on_values(name):
    facts, like = TABLE[name], "like" in name or name.startswith("new")
    assert facts.unset == ("empty" in name)
    if facts.bounds:
        y = run(name, *([X] if like else []), *([(3, 2)] if not name.endswith("like") else []))
        assert (y == facts.bounds[0]).all() and facts.bounds[0] == facts.bounds[1]


@all_of("reshapes", "expands", "repeats", "moves", "splits", "picks", "joins")
def test_movement_leaves_the_values_as_they_are(name):
    kind, arguments = TABLE[name].kind, MOVED[name.removesuffix("_copy")]
    result = getattr(aten, name)(*arguments)
    pieces = [result] if isinstance(result, torch.Tensor) else result
    before = torch.cat([x.flatten() for x in (arguments[0] if isinstance(arguments[0], list) else [arguments[0]])])
    after = torch.cat([p.flatten() for p in pieces])
    assert set(after.tolist()) <= set(before.tolist())
    assert (kind == "splits") == isinstance(result, (list, tuple)) and (kind == "joins") == isinstance(arguments[0], list)
    if kind in SAME_PLACES:
        assert set(after.tolist()) == set(before.tolist())
    if kind not in ("splits", "joins"):
        x = arguments[0]
        orders = itertools.permutations(range(x.dim()))
        same_form = len(after) == x.numel() and any(torch.equal(x.permute(o).flatten(), after) for o in orders)
        assert same_form == (kind == "reshapes")
        assert len(after) > x.numel() or kind not in ("expands", "repeats")


@pytest.mark.parametrize("name", ["view", "_unsafe_view", "view_copy"])
def test_views_are_reshapes_of_any_layout(name):
    turned = X.permute(2, 0, 1)  # no view has another form of it
    same_as = TABLE[name].same_as
    assert torch.equal(run(name, X, (6, 8)), run(same_as, X, (6, 8))) and run(same_as, turned, (8, 6)).shape == (8, 6)


@all_of("windows")
def test_windows(name):
    torch.manual_seed(0)
    facts, x = TABLE[name], draw(1, 2, *[4] * TABLE[name].space).abs() + 1
    if "pool" in name:
        options = ([2] * facts.space,)
    elif "pad" in name:
        options = ([1] * 2 * facts.space,)
    else:
        options = ([7] * facts.space, *([False] if "linear" in name or "cubic" in name else []))
    result = getattr(aten, name)(x, *options)
    assert (isinstance(result, tuple) and not result[1].is_floating_point()) == facts.positions
    y = run(name, x, *options)
    assert (x.min() - 1e-6 <= y.min() and y.max() <= x.max() + 1e-6) == facts.within_range
    assert same(run(name, -x, *options), -y) != facts.maxima
    other = run(name, torch.cat([x[:, :1], x[:, 1:] + 1], 1), *options)
    assert y.dim() == x.dim() and same(other[:, 0], y[:, 0]) and not same(other[:, 1], y[:, 1])


@all_of("reduces", "orders", "accumulates")
def test_order_statistics_and_means_lie_within_the_values(name):
    facts, x = TABLE[name], torch.rand(4, 6) + 3
    options = {"kthvalue": (2, 1), "topk": (2,), "logsumexp": (1,), "linalg_vector_norm": (2,), "norm": (2,)}.get(name, ())
    options = (x + 1,) if name == "dist" else options or ((1,) if facts.kind != "reduces" else ())
    named_options = {"segment_reduce": {"lengths": torch.tensor([2, 2]), "axis": 0}, "aminmax": {"dim": 1}}.get(name, {})
    options = ("sum",) if name == "segment_reduce" else options
    result = getattr(aten, name)(x, *options, **named_options)
    assert (isinstance(result, tuple) and not result[1].is_floating_point()) == facts.positions
    values = result if isinstance(result, tuple) and not facts.positions else [run(name, x, *options, **named_options)]
    inside = all(x.min() <= v.min() and v.max() <= x.max() for v in values)
    assert inside == (facts.within_range or name in ("max", "min"))


@all_of("softmax", "log_softmax")
def test_softmax(name):
    y = run(name, X[0], *OPTIONS[name])
    assert same((y.exp() if TABLE[name].kind == "log_softmax" else y).sum(1), torch.ones(4))


@pytest.mark.parametrize("name", [n for n in TABLE if TABLE[n].weight is not None])
def test_parameters_and_channels_of_layers(name):
    """One entry of the weight changes one position along the dimension of channels."""
    torch.manual_seed(0)
    facts, arguments = TABLE[name], [a.name for a in first_schema(name).arguments]
    assert arguments[facts.weight] == "weight" and ("bias" in arguments) == (facts.bias is not None)
    assert facts.bias is None or arguments[facts.bias] == "bias"
    assert facts.transposed == ("output_padding" in arguments)
    n = 4
    x, between = draw(3, n, *[5] * max(facts.space, 1)), {"group_norm": [2], "layer_norm": [[n]], "rms_norm": [[n]]}
    after = {"batch_norm": [None, None, True, 0.1, 1e-5, False], "instance_norm": [None, None, True, 0.1, 1e-5, False]}
    x = x.mT.contiguous() if facts.channel == -1 else x
    shape = {"convolves": (n, n, *[2] * facts.space), "contracts": (n, n)}.get(facts.kind, (n,))
    weight, bias = draw(*shape), ([None] if facts.bias is not None else [])
    changed = weight.clone()
    changed.select(int(facts.transposed), 1).add_(1)
    a, b = (run(name, x, *between.get(name, []), w, *bias, *after.get(name, [])) for w in (weight, changed))
    moved = (a != b).movedim(facts.channel, 0).flatten(1).any(1)
    assert moved.tolist() == [False, True, False, False]


def test_every_layer_with_a_weight_and_one_result_has_its_positions():
    kinds = [
        n for n in operation_names("normalises", "convolves") if len(first_schema(n).returns) == 1 and "weight_norm" not in n
    ]
    assert all(TABLE[n].weight is not None for n in [*kinds, "linear"])


@pytest.mark.parametrize("name", [n for n in TABLE if TABLE[n].training is not None])
def test_dropouts_are_switched_by_an_argument(name):
    assert first_schema(name).arguments[TABLE[name].training].name in ("train", "training")
    x = torch.ones(4, 64, 3)
    assert torch.equal(run(name, x, 0.5, False), x) and not torch.equal(run(name, x, 0.5, True), x)


def test_batch_norms_by_other_names():
    x, one, zero = draw(4, 3), torch.ones(3), torch.zeros(3)
    y = aten.batch_norm(x, one, zero, zero, one, False, 0.1, 1e-5, False)
    native = aten._native_batch_norm_legit_no_training(x, one, zero, zero, one, 0.1, 1e-5)[0]
    assert same(y, native) and len(operation_names("normalises", same_as="batch_norm")) == 2


class Wide(nn.Module):
    """Writes its width into operations that take sizes."""

    def __init__(self, width, shift=1):
        super().__init__()
        self.a, self.b, self.width, self.shift = nn.Linear(3, width), nn.Linear(width, 2), width, shift

    def forward(self, x):
        h = self.a(x).narrow(1, 0, self.width).roll(self.shift, 0)
        h = h.view(-1, self.width, 1).reshape(-1, self.width).unflatten(1, (self.width, 1)).split(self.width, 1)[0].flatten(1)
        mean = torch.tile(h.mean(1, keepdim=True), (1, self.width)) + h.amax(1, keepdim=True).expand(-1, self.width)
        return self.b((h + mean + h.new_empty(self.width).fill_(0.5)).tanh())


def test_sizes_are_no_options_of_an_architecture():
    register_sizes(Wide, width=("a.weight", 0))
    assert WassersteinFusion(correction=None).fit([Wide(4), Wide(6)]).graph_.sizes == {"a": 6}
    assert discover(Wide(4)).operations == discover(Wide(6)).operations != discover(Wide(4, shift=2)).operations


def test_operations_of_a_trace_are_records():
    first = discover(nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 2))).operations[1]
    assert first == Operation("aten::leaky_relu", "1", (first.options[0], "0.2")) and str(first).startswith(
        "aten::leaky_relu 1 (%"
    )
