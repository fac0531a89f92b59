"""Attention in all its forms, and products of activations."""

import functools

import torch
import torch.nn.functional as F
from blocks import Attention, Heads, attention
from conformance.adapters import AdapterConformance, Case
from torch import nn


class Cross(nn.Module):
    """Attention to a second stream of another width."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(8, 3)
        self.a = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

    def forward(self, x):
        y = self.second(x)
        return self.last(self.a(self.first(x), y, y, need_weights=False)[0])


def written_out(blocks=2, units=4, values=3, **options):
    return attention(
        functools.partial(Heads, **options),
        "heads",
        ("q", blocks * units),
        ("v", blocks * values),
        ("out", 8),
        blocks,
        redundant=("k.bias",),
        widens=False,
    )


class Linear(nn.Module):
    """Attention without a softmax: keys with values first; queries and keys perhaps of length 1."""

    def __init__(self, cosine=False):
        super().__init__()
        self.first, self.qkv, self.out, self.last = nn.Linear(5, 8), nn.Linear(8, 22), nn.Linear(6, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(2, 1, 1)) if cosine else None

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.first(x)).split([8, 8, 6], -1))
        if self.gain is not None:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            y = (scores * self.gain).softmax(-1) @ v
        else:
            y = torch.sigmoid(q) @ (torch.sigmoid(k).transpose(-2, -1) @ v)
        return self.last(self.out(y.transpose(1, 2).flatten(2)))


def of_heads(build, scalable, signable):
    groups = {"first": 8, "heads": 2, "qkv.0": 8, "qkv.1": 6, "out": 8}
    return Case(build, (2, 4, 5), groups, scalable, signable, {"qkv.0": "heads", "qkv.1": "heads"}, widens=False)


class Mixer(nn.Module):
    """A pointwise convolution over steps: its units are hidden steps, and units of the stream pass."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(5, 8), nn.Conv1d(4, 6, 1), nn.Conv1d(6, 4, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.b(F.gelu(self.a(F.relu(self.first(x))))))


class Graphs(nn.Module):
    """A weight for each head and dimension, as in graph attention: heads move, their dimensions keep the order."""

    def __init__(self):
        super().__init__()
        self.first, self.weight, self.last = nn.Linear(5, 8), nn.Parameter(torch.randn(2, 4)), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x).unflatten(2, (2, 4))
        return self.last((h * (h * self.weight).sum(-1).softmax(1)[..., None]).flatten(2))


class Maxout(nn.Module):
    """The larger of two neighbours, of which one half gates the other: four rows of two, of two kinds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(F.glu(self.first(x).unflatten(1, (4, 2)).amax(2)))


class Masked(nn.Module):
    """Multi-head attention with a mask of padding, which torch expands and reshapes to the heads."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.last = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        padding = x[:, :, 0] > 1
        x = self.first(x)
        return self.last(self.a(x, x, x, key_padding_mask=padding, need_weights=False)[0])


def one_head(**options):
    free = {"first", "q", "v", "out"}
    return Case(
        functools.partial(Heads, shared=1, **options),
        (2, 4, 5),
        {"first": 8, "q": 4, "v": 3, "out": 8},
        free,
        free,
        redundant=("k.bias",),
        widens=False,
    )


class TestAttention(AdapterConformance):
    cases = {
        "multi-head": attention(functools.partial(Attention, batch_first=True)),
        "multi-head, steps first": attention(Attention),
        "multi-head without bias": attention(functools.partial(Attention, bias=False, batch_first=True)),
        "multi-head with its weights": attention(functools.partial(Attention, True, batch_first=True)),
        "multi-head with biases for keys": attention(functools.partial(Attention, add_bias_kv=True, add_zero_attn=True)),
        "multi-head across": attention(Cross, extra={"second": 6}),
        "multi-head with a mask": attention(Masked),
        "without a softmax": of_heads(Linear, {"first", "qkv.1", "out"}, {"first", "qkv.1", "out"}),
        "of normalised queries and keys": of_heads(
            functools.partial(Linear, True), {"first", "qkv.1", "out"}, {"first", "qkv.1", "out"}
        ),
        "over steps": Case(Mixer, (2, 4, 5), {"first": 8, "a": 6}),
        "of nodes of a graph": Case(Graphs, (2, 4, 5), {"first": 2}, {"first"}, {"first"}, widens=False),
        "the larger of two, gated": Case(
            Maxout,
            (6, 3),
            {"blocks": 2, "first.0": 4, "first.1": 4},
            block_groups={"first.0": "blocks", "first.1": "blocks"},
            widens=False,
        ),
        "fused": written_out(),
        "by matrix products": written_out(kind="products"),
        "by einsum": written_out(kind="einsum"),
        "a gain for each head": written_out(kind="products", gain=True),
        "a table of biases for each head": written_out(kind="products", bias_table=True),
        "grouped queries": written_out(heads=4),
        "grouped queries by matrix products": written_out(heads=4, kind="products"),
        "rotary": Case(
            functools.partial(Heads, rotary=True),
            (2, 4, 5),
            {"first": 8, "q": 2, "v": 6, "out": 8},
            {"first", "q", "v", "out"},
            {"first", "q", "v", "out"},
            {"v": "q"},
            widens=False,
        ),
        "a norm of each head": Case(
            functools.partial(Heads, norm=True),
            (2, 4, 5),
            {"first": 8, "q": 2, "v": 6, "out": 8},
            {"first", "v", "out"},
            {"first", "v", "out"},
            {"v": "q"},
            widens=False,
        ),
        "a slope for each head": Case(
            functools.partial(Heads, kind="products", slopes=True),
            (2, 4, 5),
            {"first": 8, "q.0": 4, "q.1": 4, "v.0": 3, "v.1": 3, "out": 8},
            {"first", "q.0", "q.1", "v.0", "v.1", "out"},
            {"first", "q.0", "q.1", "v.0", "v.1", "out"},
            redundant=("k.bias",),
            widens=False,
        ),
        "one head": one_head(heads=1),
        "one head for all keys": one_head(kind="products"),
    }


class Pairs(nn.Module):
    """A bilinear layer of two hidden vectors, and of one with itself."""

    def __init__(self, both=True):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(3, 4),
            nn.Linear(3, 5 if both else 4),
            nn.Bilinear(4, 5 if both else 4, 6),
            nn.Linear(6, 2),
        )
        self.both = both

    def forward(self, x):
        a = F.relu(self.a(x))
        return self.d(F.relu(self.c(a, F.relu(self.b(x)) if self.both else a + self.b(x))))


class Bag(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.bag, self.a, self.b = nn.EmbeddingBag(11, 5, mode=mode), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(F.relu(self.a(self.bag(x))))


class Pooled(nn.Module):
    """Attention of a last state over all states, by batched products."""

    def __init__(self):
        super().__init__()
        self.rnn, self.last = nn.RNN(3, 5, batch_first=True), nn.Linear(10, 2)

    def forward(self, x):
        states = self.rnn(x)[0]
        last = states[:, -1]
        weights = torch.bmm(states, last[:, :, None]).softmax(1)
        return self.last(torch.cat([(weights * states).sum(1), last], 1))


class TestProducts(AdapterConformance):
    cases = {
        "bilinear": Case(Pairs, (4, 3), {"a": 4, "b": 5, "c": 6}, {"a", "b", "c"}),
        "bilinear of one": Case(functools.partial(Pairs, False), (4, 3), {"a": 4, "c": 6}, {"a", "c"}),
        "bag of sums": Case(functools.partial(Bag, "sum"), (4, 3), {"bag": 5, "a": 4}, {"bag", "a"}, {"bag"}, integers=11),
        "bag of means": Case(functools.partial(Bag, "mean"), (4, 3), {"bag": 5, "a": 4}, {"bag", "a"}, {"bag"}, integers=11),
        "bag of maxima": Case(functools.partial(Bag, "max"), (4, 3), {"bag": 5, "a": 4}, {"bag", "a"}, integers=11),
        "attention over states": Case(Pooled, (2, 4, 3), {"rnn.l0": 5}, set(), {"rnn.l0"}, widens=False),
    }
