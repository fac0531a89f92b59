"""Random networks that know their own neuron groups.

Each network writes down, while it is built, where the units of each group stand: `places[name]` is a list of places (tensor,
axis, exponent, offset, copies, odd). Permuted, scaled and signed copies are made from this table and not from what the
library finds.
"""

import copy
import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

HOMOGENEOUS = {"relu": F.relu, "leaky": F.leaky_relu}
OTHERS = {"tanh": torch.tanh, "gelu": F.gelu}


@dataclass
class Place:
    tensor: str
    axis: int
    exponent: int
    offset: int = 0
    copies: int = 1
    odd: bool = True
    role: str = ""

    def __post_init__(self):
        self.role = self.role or ("in" if self.exponent < 0 else "out")

    def columns(self, size):
        """Positions of all units, one array per copy."""
        return list((self.offset + np.arange(size * self.copies).reshape(size, self.copies)).T)


@dataclass
class Truth:
    sizes: dict = field(default_factory=dict)
    places: dict = field(default_factory=dict)
    scalable: dict = field(default_factory=dict)
    signable: dict = field(default_factory=dict)
    block_groups: dict = field(default_factory=dict)
    diagonal: dict = field(default_factory=dict)

    def open(self, name, size, scalable, signable=False, block_group=None):
        self.sizes[name], self.places[name], self.scalable[name], self.signable[name] = size, [], scalable, signable
        if block_group is not None:
            self.block_groups[name] = block_group

    def orders(self, rng):
        """A random permutation of every group that keeps blocks together."""
        orders = {name: rng.permutation(size) for name, size in self.sizes.items()}
        for name, within in self.block_groups.items():
            block_size = self.sizes[name] // self.sizes[within]
            orders[name] = np.concatenate([block * block_size + rng.permutation(block_size) for block in orders[within]])
        return orders

    def write(self, name, path, bias, norm=None, affine=True):
        """A layer computes the group, perhaps followed by a norm."""
        self.places[name].append(Place(f"{path}.weight", 0, 0 if norm else 1, odd=not norm))
        if bias:
            self.places[name].append(Place(f"{path}.bias", 0, 0 if norm else 1, odd=not norm))
        if norm:
            if affine:
                self.places[name] += [Place(f"{norm}.weight", 0, 1), Place(f"{norm}.bias", 0, 1)]
            self.places[name] += [Place(f"{norm}.{s}", 0, 0, odd=False) for s in ("running_mean", "running_var")]
            self.scalable[name] &= affine
            self.signable[name] &= affine

    def read(self, name, path, copies=1, offset=0):
        self.places[name].append(Place(f"{path}.weight", 1, -1, offset, copies))


class MLP(nn.Module):
    """Linear layers with or without biases, norms and dropout."""

    def __init__(self, widths, bias=True, norm=None, activation="relu"):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(widths))
        hidden = widths[1:-1]
        self.norms = nn.ModuleList(nn.BatchNorm1d(h, affine=norm == "affine") if norm else nn.Identity() for h in hidden)
        self.activation = {**HOMOGENEOUS, **OTHERS}[activation]
        self.example = torch.zeros(3, widths[0])
        self.truth = Truth()
        for i, h in enumerate(hidden):
            name = f"linears.{i}"
            self.truth.open(name, h, activation in HOMOGENEOUS, activation == "tanh")
            self.truth.write(name, name, bias, f"norms.{i}" if norm else None, norm == "affine")
            self.truth.read(name, f"linears.{i + 1}")

    def forward(self, x):
        for linear, norm in zip(self.linears, self.norms, strict=False):
            x = F.dropout(self.activation(norm(linear(x))), 0.3, self.training)
        return self.linears[-1](x)


class CNN(nn.Module):
    """Two branches of convolutions side by side, pooled, a strided or dilated convolution, flattened into a linear layer."""

    def __init__(self, a, b, c, stride=1, dilation=1, pool="max", flatten=True, norm=None, activation="relu", classes=3):
        super().__init__()
        self.left = nn.Conv2d(2, a, 3, padding=1)
        self.right = nn.Conv2d(2, b, 1, bias=False)
        self.conv = nn.Conv2d(a + b, c, 3, stride=stride, dilation=dilation, padding=dilation)
        self.norm = nn.BatchNorm2d(c, affine=norm == "affine") if norm else nn.Identity()
        self.pool = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2)}[pool]
        self.flatten = flatten
        self.activation = {**HOMOGENEOUS, **OTHERS}[activation]
        side = 4 if stride == 1 else 2
        self.head = nn.Linear(c * side**2 if flatten else c, classes)
        self.example = torch.zeros(2, 2, 8, 8)
        self.truth = t = Truth()
        scales = activation in HOMOGENEOUS
        t.open("left", a, scales)
        t.write("left", "left", True)
        t.read("left", "conv")
        t.open("right", b, scales)
        t.write("right", "right", False)
        t.read("right", "conv", offset=a)
        t.open("conv", c, scales)
        t.write("conv", "conv", True, "norm" if norm else None, norm == "affine")
        t.read("conv", "head", copies=side**2 if flatten else 1)

    def forward(self, x):
        x = torch.cat([self.activation(self.left(x)), self.activation(self.right(x))], 1)
        x = self.activation(self.norm(self.conv(self.pool(x))))
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


class ResNet(nn.Module):
    """A stem, then residual blocks, the first with a projection; functional code, batch norms with affine parameters."""

    def __init__(self, stem, stream, inner, blocks=2, activation="relu", classes=3):
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.project = nn.Conv2d(stem, stream, 1)
        self.first = nn.ModuleList(nn.Conv2d(stem if not i else stream, inner, 3, padding=1, bias=False) for i in range(blocks))
        self.first_norm = nn.ModuleList(nn.BatchNorm2d(inner) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(inner, stream, 3, padding=1) for _ in range(blocks))
        self.second_norm = nn.ModuleList(nn.BatchNorm2d(stream) for _ in range(blocks))
        self.activation = {**HOMOGENEOUS, **OTHERS}[activation]
        self.head = nn.Linear(stream, classes)
        self.example = torch.zeros(2, 1, 5, 5)
        self.truth = t = Truth()
        scales = activation in HOMOGENEOUS
        t.open("stem", stem, scales)
        t.write("stem", "stem", False, "stem_norm")
        t.read("stem", "project")
        t.read("stem", "first.0")
        t.open("second.0", stream, scales)  # computed before the projection
        t.write("second.0", "project", True)
        for i in range(blocks):
            t.open(f"first.{i}", inner, scales)
            t.write(f"first.{i}", f"first.{i}", False, f"first_norm.{i}")
            t.read(f"first.{i}", f"second.{i}")
            t.write("second.0", f"second.{i}", True, f"second_norm.{i}")
            if i:
                t.read("second.0", f"first.{i}")
        t.read("second.0", "head")

    def forward(self, x):
        x = self.activation(self.stem_norm(self.stem(x)))
        for i in range(len(self.first)):
            y = self.second_norm[i](self.second[i](self.activation(self.first_norm[i](self.first[i](x)))))
            x = self.activation(y + (self.project(x) if not i else x))
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    """Layers of multi-head attention and of two linear ones, each with a norm before it or after the sum."""

    def __init__(self, heads, dims, hidden, layers=2, norm="layer", norm_first=True, bias=True, activation="gelu", classes=3):
        super().__init__()
        width = heads * dims
        build = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm]
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, classes)
        self.norms = nn.ModuleList(build(width) for _ in range(2 * layers + norm_first))
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, heads, bias=bias, batch_first=True) for _ in range(layers))
        self.first = nn.ModuleList(nn.Linear(width, hidden) for _ in range(layers))
        self.second = nn.ModuleList(nn.Linear(hidden, width) for _ in range(layers))
        self.norm_first, self.activation = norm_first, {**HOMOGENEOUS, **OTHERS}[activation]
        self.example = torch.zeros(2, 4, 4)
        self.truth = t = Truth()
        t.open("embed", width, True, True)
        free = 0 if norm_first else 2 * layers - 1  # the norm whose output is nothing but read
        stream = [("embed", 0), *((f"norms.{k}", int(k == free)) for k in range(len(self.norms)))]
        stream += [(f"{path}.{i}", 0) for i in range(layers) for path in ("second",)]
        for path, scale in stream:
            for leaf in ("weight", *(["bias"] if path[:5] != "norms" or norm == "layer" else [])):
                t.places["embed"].append(Place(f"{path}.{leaf}", 0, scale, odd=bool(scale), role="out"))
        readers = [f"attention.{i}.in_proj_weight" for i in range(layers)] + [f"first.{i}.weight" for i in range(layers)]
        for tensor in [*readers, "head.weight"]:
            scale = -int(tensor == (readers[0] if norm_first else "head.weight"))
            t.places["embed"].append(Place(tensor, 1, scale, odd=bool(scale), role="in"))
        for i in range(layers):
            path = f"attention.{i}"
            t.open(f"{path}.heads", heads, False)
            t.open(f"{path}.0", width, True, True, f"{path}.heads")
            t.open(f"{path}.1", width, True, True, f"{path}.heads")
            for tensor in ("in_proj_weight", *(["in_proj_bias"] if bias else [])):
                for part, (group, scale) in enumerate([("0", 1), ("0", -1), ("1", 1)]):
                    t.places[f"{path}.{group}"].append(Place(f"{path}.{tensor}", 0, scale, part * width, role="out"))
            t.read(f"{path}.1", f"{path}.out_proj")
            for leaf in ("weight", *(["bias"] if bias else [])):
                t.places["embed"].append(Place(f"{path}.out_proj.{leaf}", 0, 0, odd=False, role="out"))
            t.open(f"first.{i}", hidden, activation in HOMOGENEOUS, activation == "tanh")
            t.write(f"first.{i}", f"first.{i}", True)
            t.read(f"first.{i}", f"second.{i}")

    def forward(self, x):
        x = self.embed(x)
        for i, attention in enumerate(self.attention):
            for norm, layer in ((self.norms[2 * i], attention), (self.norms[2 * i + 1], self._hidden(i))):
                y = norm(x) if self.norm_first else x
                y = layer(y, y, y, need_weights=False)[0] if layer is attention else layer(y)
                x = x + y if self.norm_first else norm(x + y)
        return self.head((self.norms[-1](x) if self.norm_first else x)[:, 0])

    def _hidden(self, i):
        return lambda y: self.second[i](self.activation(self.first[i](y)))


class Grouped(nn.Module):
    """A convolution in groups between two others, norms over groups of channels, a transposed convolution at the end."""

    def __init__(self, blocks, channels_per_block, out, norms, bias=True, activation="relu", classes=3):
        super().__init__()
        a, b = blocks * channels_per_block, blocks * out
        self.stem, self.groups = nn.Conv2d(1, a, 3, padding=1), nn.Conv2d(a, b, 3, groups=blocks, bias=bias)
        self.depth, self.mix = nn.Conv2d(b, b, 3, padding=1, groups=b), nn.Conv2d(b, 2 * norms, 1)
        self.norm, self.head = nn.GroupNorm(norms, 2 * norms), nn.ConvTranspose2d(2 * norms, classes, 2, stride=2)
        self.activation = {**HOMOGENEOUS, **OTHERS}[activation]
        self.example = torch.zeros(2, 1, 5, 5)
        self.truth = t = Truth(diagonal={"groups.weight": blocks})
        scales = activation in HOMOGENEOUS
        t.open("groups.blocks", blocks, False)
        t.open("stem", a, scales, block_group="groups.blocks")
        t.write("stem", "stem", True)
        t.read("stem", "groups")
        t.open("groups", b, True, True, "groups.blocks")  # up to the depthwise convolution, which undoes it
        t.write("groups", "groups", bias)
        t.places["groups"].append(Place("depth.weight", 0, -1, role="out"))
        t.places["groups"].append(Place("depth.bias", 0, 0, odd=False, role="out"))
        t.places["groups"].append(Place("mix.weight", 1, 0, odd=False, role="in"))
        inner = {"block_group": "norm.blocks"} if norms > 1 else {}
        if inner:
            t.open("norm.blocks", norms, False)
        t.open("mix", 2 * norms, scales, **inner)
        t.write("mix", "mix", True, "norm")
        t.places["mix"] = [p for p in t.places["mix"] if "running" not in p.tensor]
        t.places["mix"].append(Place("head.weight", 0, -1))

    def forward(self, x):
        x = self.depth(self.groups(self.activation(self.stem(x))))
        return self.head(self.activation(self.norm(self.mix(F.gelu(x))))).mean((2, 3))


KINDS = {
    "rnn_tanh": (nn.RNN, nn.RNNCell, {}, 1, 0),
    "rnn_relu": (nn.RNN, nn.RNNCell, {"nonlinearity": "relu"}, 1, 0),
    "lstm": (nn.LSTM, nn.LSTMCell, {}, 4, 2),
    "gru": (nn.GRU, nn.GRUCell, {}, 3, 2),
}
"""Layer, cell, options, number of gates, and the gate that goes with the sign of a unit."""


class Recurrent(nn.Module):
    """A stack of recurrent layers of any kind, or a hand-written loop over a cell, behind an embedding or not; two heads."""

    def __init__(
        self,
        kind,
        hidden,
        levels=1,
        bidirectional=False,
        bias=True,
        batch_first=True,
        projection=0,
        tokens=0,
        loop=False,
        readout="last",
    ):
        super().__init__()
        layer, cell, options, self.gates, self.writer = KINDS[kind]
        inputs = 4
        self.table = nn.Embedding(tokens, inputs) if tokens else None
        self.batch_first, self.loop, self.readout, self.levels = batch_first, loop, readout, levels
        directions = ("", "_reverse") if bidirectional else ("",)
        out = projection or hidden
        if loop:
            self.rnn = cell(inputs, hidden, bias=bias, **options)
        else:
            options = {**options, "bidirectional": bidirectional, "batch_first": batch_first}
            options |= {"proj_size": projection} if projection else {}
            self.rnn = layer(inputs, hidden, levels, bias=bias, **options)
        self.fc, self.aux = nn.Linear(out * len(directions), 3), nn.Linear(out * len(directions), 2)
        shape = (3, 5) if batch_first or loop else (5, 3)
        self.example = torch.zeros(shape, dtype=torch.long) if tokens else torch.zeros(*shape, inputs)
        self.truth = Truth()
        if tokens:
            self.truth.open("table", inputs, True, True)
            self.truth.places["table"] = [Place("table.weight", 1, 1)]
        relu = kind == "rnn_relu"
        below = {"table": 0} if tokens else {}
        for level in range(levels):
            above = {}
            for k, direction in enumerate(directions):
                suffix = "" if loop else f"_l{level}{direction}"
                name = "rnn" if loop else f"rnn.l{level}{direction}"
                state = f"{name}_proj" if projection else name
                self._level(name, state, suffix, hidden, out, relu, bias, below)
                above[state] = k * out
            below = above
        for name, offset in below.items():
            for head in ("fc", "aux"):
                self.truth.read(name, head, offset=offset)

    def _level(self, name, state, suffix, hidden, out, relu, bias, below):
        """One direction of one level."""
        truth, ih, hh = self.truth, f"rnn.weight_ih{suffix}", f"rnn.weight_hh{suffix}"
        truth.open(name, hidden, relu, not relu)
        if state != name:
            truth.open(state, out, True, True)
            truth.places[state].append(Place(f"rnn.weight_hr{suffix}", 0, 1))
            truth.places[name].append(Place(f"rnn.weight_hr{suffix}", 1, -1))
        rows = [ih, hh, *((f"rnn.bias_ih{suffix}", f"rnn.bias_hh{suffix}") if bias else ())]
        for gate in range(self.gates):
            truth.places[name] += [Place(row, 0, 1, gate * hidden, odd=gate == self.writer) for row in rows]
        truth.places[state].append(Place(hh, 1, -1))
        for other, offset in below.items():
            truth.places[other].append(Place(ih, 1, -1, offset))

    def forward(self, x):
        x = self.table(x) if self.table is not None else x
        if self.loop:
            state, outputs = None, []
            for t in range(x.shape[1]):
                state = self.rnn(x[:, t], state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            out = torch.stack(outputs, 1)
        else:
            out, state = self.rnn(x)
            out = out if self.batch_first else out.transpose(0, 1)
        h = {"last": out[:, -1], "mean": out.mean(1)}.get(self.readout)
        if self.readout == "state":
            state = state[0] if isinstance(state, tuple) else state
            h = state if self.loop else torch.cat([*state[-self.rnn.bidirectional - 1 :]], 1)
        return torch.cat([self.fc(h), self.aux(h)], 1)


def randomised(network, rng, dtype=torch.float64):
    """The network in eval mode with random values in every parameter and buffer."""
    network = network.to(dtype).eval()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            fan_in = max(int(np.prod(tensor.shape[1:])), 1)
            positive = name.endswith("running_var") or ("norm" in name and name.endswith("weight"))
            drawn = (
                rng.uniform(0.5, 1.5, tuple(tensor.shape))
                if positive
                else rng.normal(size=tuple(tensor.shape)) * (2 / fan_in) ** 0.5
            )
            tensor.copy_(torch.as_tensor(drawn))
    shape = tuple(network.example.shape)
    shape = (6, *shape[1:]) if getattr(network, "batch_first", True) else (shape[0], 6, *shape[2:])
    if network.example.is_floating_point():
        network.example = torch.as_tensor(rng.normal(size=shape), dtype=dtype)
    else:
        network.example = torch.as_tensor(rng.integers(0, network.table.num_embeddings, shape))
    return network


def disguised(network, rng, *, scales=False):
    """A copy with permuted (and scaled and signed) units, made from the network's own table of groups."""
    twin = copy.deepcopy(network)
    groups = network.truth.diagonal
    state = {name: whole(tensor, groups.get(name)) for name, tensor in twin.state_dict().items()}
    orders = network.truth.orders(rng)
    for name, size in network.truth.sizes.items():
        order = orders[name]
        factor = np.exp(rng.uniform(-0.7, 0.7, size)) if scales and network.truth.scalable[name] else np.ones(size)
        sign = rng.choice([-1.0, 1.0], size) if scales and network.truth.signable[name] else np.ones(size)
        for place in network.truth.places[name]:
            tensor = state[place.tensor]
            index, vector = np.arange(tensor.shape[place.axis]), np.ones(tensor.shape[place.axis])
            for units in place.columns(size):
                index[units] = units[order]
                vector[units] = factor**place.exponent * (sign if place.odd else 1)
            view = [-1 if a == place.axis else 1 for a in range(tensor.dim())]
            moved = tensor.index_select(place.axis, torch.as_tensor(index))
            state[place.tensor] = moved * torch.as_tensor(vector, dtype=tensor.dtype).view(view)
    twin.load_state_dict({name: diagonal(tensor, groups.get(name)) for name, tensor in state.items()})
    return twin


def whole(weight, groups):
    """The weight of a convolution in groups as that of one that reads all channels."""
    if groups is None:
        return weight
    blocks = [
        torch.nn.functional.pad(b, (0, 0, 0, 0, k * b.shape[1], (groups - 1 - k) * b.shape[1]))
        for k, b in enumerate(weight.chunk(groups))
    ]
    return torch.cat(blocks)


def diagonal(weight, groups):
    """What a convolution in groups keeps of such a weight."""
    if groups is None:
        return weight
    width = weight.shape[1] // groups
    return torch.cat([b[:, k * width : (k + 1) * width] for k, b in enumerate(weight.chunk(groups))])


widths = st.integers(2, 9)


@st.composite
def mlps(draw, activations=("relu", "leaky", "tanh", "gelu")):
    hidden = draw(st.lists(widths, min_size=1, max_size=3))
    return MLP(
        [draw(st.integers(3, 6)), *hidden, draw(st.integers(2, 4))],
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from([None, "affine", "plain"])),
        activation=draw(st.sampled_from(activations)),
    )


@st.composite
def cnns(draw, activations=("relu", "leaky", "gelu")):
    return CNN(
        draw(widths),
        draw(widths),
        draw(widths),
        stride=draw(st.sampled_from([1, 2])),
        dilation=draw(st.sampled_from([1, 2])),
        pool=draw(st.sampled_from(["max", "avg"])),
        flatten=draw(st.booleans()),
        norm=draw(st.sampled_from([None, "affine", "plain"])),
        activation=draw(st.sampled_from(activations)),
    )


@st.composite
def resnets(draw, activations=("relu", "leaky", "gelu")):
    return ResNet(
        draw(widths), draw(widths), draw(widths), blocks=draw(st.integers(1, 3)), activation=draw(st.sampled_from(activations))
    )


@st.composite
def recurrents(draw, kinds=tuple(KINDS)):
    kind, hidden, loop = draw(st.sampled_from(kinds)), draw(widths), draw(st.booleans())
    bidirectional = not loop and draw(st.booleans())
    return Recurrent(
        kind,
        hidden,
        levels=1 if loop else draw(st.integers(1, 2)),
        bidirectional=bidirectional,
        bias=draw(st.booleans()),
        batch_first=loop or draw(st.booleans()),
        projection=draw(st.integers(1, hidden - 1)) if kind == "lstm" and not loop and draw(st.booleans()) else 0,
        tokens=draw(st.sampled_from([0, 7])),
        loop=loop,
        # the last step alone does not depend on the reverse direction's recurrent weights
        readout=draw(st.sampled_from(["mean", "state"] if bidirectional else ["last", "mean", "state"])),
    )


@st.composite
def encoders(draw):
    return Encoder(
        draw(st.integers(2, 3)),
        draw(st.integers(2, 4)),
        draw(widths),
        layers=draw(st.integers(1, 2)),
        norm=draw(st.sampled_from(["layer", "rms"])),
        norm_first=draw(st.booleans()),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "gelu"])),
    )


@st.composite
def grouped(draw):
    return Grouped(
        draw(st.integers(2, 4)),
        draw(st.integers(2, 3)),
        draw(st.integers(2, 3)),
        draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "gelu"])),
    )


def networks(blocks=True):
    """Any of the families, random values; without blocks every width may be any number."""
    seeds, permutation_units = (
        st.integers(0, 2**31 - 1),
        [mlps(), cnns(), resnets(), recurrents(), *([encoders(), grouped()] if blocks else [])],
    )
    return st.tuples(st.one_of(permutation_units), seeds).map(lambda drawn: randomised(drawn[0], np.random.default_rng(drawn[1])))
