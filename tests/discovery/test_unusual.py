"""Networks that real users brought and that went wrong: each kind on small networks, right or refused by name."""

import copy
import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Distribution, Independent, Normal

from sklearn_wbfuse import WassersteinFusion, declare, discover
from sklearn_wbfuse.discovery import floating_state, plain_copy, validate_models
from sklearn_wbfuse.exceptions import DiscoveryError, FusionWarning, NonFiniteError
from sklearn_wbfuse.network.groups import relabel


def network(forward, **parts):
    """A module class made of parts and a forward function."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, make in parts.items():
                setattr(self, name, make())

        def forward(self, *inputs):
            return forward(self, *inputs)

    return Net


def pair(kind):
    torch.manual_seed(0)
    return [kind().double().eval() for _ in range(2)]


def carried_exactly(models, inputs, others=()):
    """Fuse; transformed models must compute what they did, on other inputs as well. Returns the graph."""
    fusion = WassersteinFusion(example_inputs=inputs, correction=None).fit(models)
    with torch.no_grad():
        for model, moved in zip(models, fusion.transform(models), strict=True):
            for x in (inputs, *others):
                torch.testing.assert_close(moved(*x), model(*x), rtol=1e-9, atol=1e-10)
    return fusion.graph_


def moves_back(kind, inputs, sizes):
    """The groups are these, and a permuted copy fuses back."""
    model = pair(kind)[0]
    spec = discover(model, inputs)
    assert dict(spec.sizes) == sizes
    order = spec.orders(np.random.default_rng(1).permutation)
    twin = plain_copy(model)
    twin.load_state_dict({n: relabel(t, spec.tensors[n], order, {}) for n, t in floating_state(model).items()}, strict=False)
    fused = WassersteinFusion(example_inputs=inputs, correction=None).fit([model, twin]).fused_model_
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs), model(*inputs), rtol=1e-8, atol=1e-9)


class TestTables:
    """Rows beyond the length of the example stay in place, whatever is done to the table before it is cut."""

    CUTS = {
        "slice": lambda net, n: net.table.weight[:n],
        "narrow": lambda net, n: net.table.weight.narrow(0, 1, n),
        "after dropout": lambda net, n: F.dropout(net.table.weight, 0.1, net.training)[:n],
        "after a norm": lambda net, n: F.layer_norm(net.table.weight, (8,))[:n],
        "after a layer": lambda net, n: net.mix(net.table.weight)[:n],
        "less the mean of all rows": lambda net, n: (net.table.weight - net.table.weight.mean(0))[:n],
        "over a norm of all rows": lambda net, n: (net.table.weight / net.table.weight.norm(dim=0))[:n],
        "over a norm of all": lambda net, n: (net.table.weight / net.table.weight.norm())[:n],
        "after attention": lambda net, n: F.scaled_dot_product_attention(*[net.table.weight] * 3)[:n],
        "transposed": lambda net, n: net.table.weight.t()[:, :n].t(),
        "looked up": lambda net, n: net.table(torch.arange(n)),
        "every other": lambda net, n: net.table.weight[: 2 * n : 2],
    }

    @pytest.mark.filterwarnings("ignore::sklearn_wbfuse.exceptions.FusionWarning")
    @pytest.mark.parametrize("cut", CUTS)
    def test_longer_inputs(self, cut):
        kind = network(
            lambda net, x: net.head(torch.relu(net.mix(net.embed(x) + self.CUTS[cut](net, x.shape[1]))).mean(1)),
            embed=lambda: nn.Linear(5, 8),
            table=lambda: nn.Embedding(20, 8),
            mix=lambda: nn.Linear(8, 8),
            head=lambda: nn.Linear(8, 3),
        )
        short, long = (torch.randn(2, n, 5).double() for n in (4, 9))
        assert {"embed", "mix"} >= set(carried_exactly(pair(kind), (short,), [(long,)]).groups)


def loop(cell):
    def forward(net, x):
        state, outputs = x.new_zeros(len(x), 8), []
        for t in range(x.shape[1]):
            state = cell(net, x[:, t], state)
            outputs.append(state)
        return net.head(torch.stack(outputs, 1).mean(1))

    return forward


def in_place(net, x):
    state = torch.zeros(len(x), 8, dtype=x.dtype)
    outputs = torch.zeros(len(x), x.shape[1], 8, dtype=x.dtype)
    for t in range(x.shape[1]):
        state = torch.tanh(net.ih(x[:, t]) + net.hh(state))
        outputs[:, t] = state
    return net.head(outputs.amax(1))


def in_halves(net, x):
    left, right = torch.split(torch.zeros(len(x), 8, dtype=x.dtype), 4, dim=1)
    for t in range(x.shape[1]):
        both = torch.cat([x[:, t], left, right], 1)
        left, right = torch.tanh(net.one(both)), torch.tanh(net.two(both))
    return net.head(torch.cat([left, right], 1))


def convolved(net, x):
    state = torch.zeros(len(x), 8, *x.shape[3:], dtype=x.dtype)
    for t in range(x.shape[1]):
        state = torch.tanh(net.conv(torch.cat([x[:, t], state], 1)))
    return net.head(state.mean((2, 3)))


class TestLoops:
    """Recurrent loops by hand that start from a constant state."""

    LAYERS = {"ih": lambda: nn.Linear(6, 8), "hh": lambda: nn.Linear(8, 8), "head": lambda: nn.Linear(8, 3)}
    GATES = {"ih": lambda: nn.Linear(6, 16), "hh": lambda: nn.Linear(8, 16, bias=False), "head": lambda: nn.Linear(8, 3)}
    CASES = {
        "apart": (loop(lambda net, x, h: torch.tanh(net.ih(x) + net.hh(h))), LAYERS),
        "from ones": (loop(lambda net, x, h: torch.tanh(net.ih(x) + net.hh(h + 1))), LAYERS),
        "beside": (
            loop(lambda net, x, h: torch.tanh(net.ih(torch.cat([x, h], 1)))),
            {"ih": lambda: nn.Linear(14, 8), "head": LAYERS["head"]},
        ),
        "matrix": (
            loop(lambda net, x, h: torch.relu(net.ih(x) + h @ net.w.T)),
            {"ih": LAYERS["ih"], "w": lambda: nn.Parameter(torch.randn(8, 8) / 3), "head": LAYERS["head"]},
        ),
        "gated": (
            loop(lambda net, x, h: h + torch.sigmoid((g := net.ih(x) + net.hh(h))[:, :8]) * (torch.tanh(g[:, 8:]) - h)),
            GATES,
        ),
        "written in place": (in_place, LAYERS),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_hidden_units_are_free(self, case):
        forward, parts = self.CASES[case]
        moves_back(network(forward, **parts), (torch.randn(2, 4, 6).double(),), {"ih": 8})

    def test_states_that_are_split(self):
        parts = {"one": lambda: nn.Linear(14, 4), "two": lambda: nn.Linear(14, 4), "head": lambda: nn.Linear(8, 3)}
        moves_back(network(in_halves, **parts), (torch.randn(2, 4, 6).double(),), {"one": 4, "two": 4})

    def test_convolutions(self):
        parts = {"conv": lambda: nn.Conv2d(10, 8, 3, padding=1), "head": lambda: nn.Linear(8, 3)}
        moves_back(network(convolved, **parts), (torch.randn(2, 4, 2, 5, 5).double(),), {"conv": 8})


class TestWarnings:
    """Whenever neurons are held in place, a warning says which and why."""

    def test_hidden_units_that_are_returned(self):
        def forward(net, x):
            h = torch.relu(net.a(x))
            return net.b(h), h

        kind = network(forward, a=lambda: nn.Linear(3, 6), b=lambda: nn.Linear(6, 2))
        with pytest.warns(FusionWarning, match=r"Net has no neurons that can move.* a.weight: returned by the network"):
            spec = discover(kind())
        assert spec.free_share == 0 and "0.0% of all values belong to these neurons" in str(spec)

    def test_no_hidden_axis_is_no_warning(self, recwarn):
        assert discover(nn.Linear(3, 2)).groups == {}
        assert not [w for w in recwarn if issubclass(w.category, FusionWarning)]

    def test_neurons_without_effect_stay_in_place(self):
        kind = network(
            lambda net, x: net.c(net.a(x)) + 0 * net.d(torch.relu(net.b(x))),
            a=lambda: nn.Linear(3, 5), b=lambda: nn.Linear(3, 6), c=lambda: nn.Linear(5, 2), d=lambda: nn.Linear(6, 2),
        )  # fmt: skip
        with pytest.warns(FusionWarning, match=r"(b|d)\.\w+: on the example inputs the output does not depend on them"):
            assert dict(discover(kind()).sizes) == {"a": 5}

    def test_share_of_values_that_move(self):
        spec = discover(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        assert spec.free_share == pytest.approx(24 / 26)  # all but the last bias


class TestPrecision:
    """The self-check knows what a network can hold: code that leaves double precision, and masks as large as they can be."""

    def test_a_norm_in_single_precision(self):
        def forward(net, x):
            h = F.relu(net.a(x), inplace=True)
            scale = torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1e-5)
            return net.b(net.gain * (h * scale).type_as(x))

        kind = network(forward, a=lambda: nn.Linear(5, 8), gain=lambda: nn.Parameter(torch.ones(8)), b=lambda: nn.Linear(8, 3))
        assert dict(discover(kind(), torch.randn(4, 5)).sizes) == {"a": 8}

    def test_rows_that_attend_to_nothing(self):
        def forward(net, x):
            h = net.a(x)
            mask = torch.full((x.shape[1],) * 2, torch.finfo(h.dtype).min, dtype=h.dtype).triu(0)  # nothing before the first
            weights = torch.softmax(net.q(h) @ h.transpose(-1, -2) + mask, -1, dtype=torch.float32)
            return net.b(weights.to(h.dtype) @ h)

        kind = network(forward, a=lambda: nn.Linear(5, 8), q=lambda: nn.Linear(8, 8), b=lambda: nn.Linear(8, 3))
        assert dict(discover(kind(), torch.randn(2, 4, 5)).sizes) == {"a": 8}


class TestNames:
    @pytest.mark.parametrize("name", ["code", "graph", "meta", "recompile", "delete_submodule", "print_readable"])
    def test_parts_called_like_attributes_of_a_traced_graph(self, name):
        def forward(net, x):
            return net.b(F.relu(getattr(net, name)(x), inplace=True))

        kind = network(forward, **{name: lambda: nn.Linear(5, 8)}, b=lambda: nn.Linear(8, 3))
        assert list(discover(kind(), torch.randn(2, 5)).sizes.values()) == [8]

    def test_a_parameter_of_such_a_name(self):
        kind = network(
            lambda net, x: net.b(F.relu(x @ net.spec, inplace=True)),
            spec=lambda: nn.Parameter(torch.randn(5, 8)), b=lambda: nn.Linear(8, 3),
        )  # fmt: skip
        assert list(carried_exactly(pair(kind), (torch.randn(2, 5).double(),)).sizes.values()) == [8]


class Hidden(nn.Module):
    """Reads its parameters from a dict and a list, as cells of other packages do."""

    def __init__(self, hold=lambda p: p):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(3, 8))
        self.held = {"w": hold(self.w), "rest": [hold(self.v)]}

    def forward(self, x):
        return torch.tanh(x @ self.held["w"].T) @ self.held["rest"][0].T


class TestPastTheModule:
    def test_parameters_in_dicts_and_lists(self):
        models, x = pair(Hidden), torch.randn(4, 5).double()
        assert dict(carried_exactly(models, (x,)).sizes) == {"w": 8}
        wide = WassersteinFusion(2.0, example_inputs=x, correction=None).fit(models[:1]).fused_model_
        assert wide.held["w"] is wide.w and wide.w.shape == (16, 5)
        with torch.no_grad():
            torch.testing.assert_close(wide(x), models[0](x))

    @pytest.mark.parametrize("hold", [lambda p: p.data, lambda p: p.detach().numpy()], ids=["view", "array"])
    def test_numbers_that_no_copy_follows(self, hold):
        class Past(Hidden):
            def __init__(self):
                super().__init__(hold)

        with pytest.raises(DiscoveryError, match=r"Got views .* of \['w', 'v'\] in Past"):
            discover(Past(), torch.randn(4, 5))


class TestTracing:
    def test_distributions_that_check_their_arguments(self):
        def forward(net, x):
            policy = Independent(Normal(net.mean(torch.tanh(net.body(x))), 1.0, validate_args=True), 1)
            return policy.mean, policy.log_prob(torch.zeros(len(x), 3))

        kind = network(forward, body=lambda: nn.Linear(6, 8), mean=lambda: nn.Linear(8, 3))
        initial = Distribution.__init__
        assert discover(kind(), torch.randn(4, 6)).sizes["body"] == 8
        assert Distribution.__init__ is initial
        with pytest.raises(ValueError, match="invalid values"):
            Normal(torch.tensor(float("nan")), 1.0, validate_args=True)

    def test_the_line_that_stops_a_trace_is_named(self):
        def forward(net, x):
            return net.a(x) if float(x.sum()) > 0 else net.a(-x)

        with pytest.raises(DiscoveryError, match=r"at 'return net.a\(x\) if|at 'return forward"):
            discover(network(forward, a=lambda: nn.Linear(6, 8))())

    def test_buffers_with_a_gradient(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
                self.register_buffer("last", self.a.weight.sum(1) * 0 + 1, persistent=False)

            def forward(self, x):
                return self.b(torch.relu(self.a(x) * self.last))

        models = [Scaled(), Scaled()]
        assert models[0].last.grad_fn is not None
        assert WassersteinFusion(correction=None).fit(models).fused_model_.a.weight.shape == (6, 3)

    def test_states_of_other_networks_are_left_alone(self):
        class Spiking(nn.Module):
            alive = []

            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
                self.register_buffer("potential", torch.zeros(6), persistent=False)
                self.alive.append(self)

            def forward(self, x):
                for net in self.alive:  # of every network of the process
                    net.potential = torch.zeros_like(net.potential)
                self.potential = self.potential + self.a(x)
                return self.b(torch.relu(self.potential))

        models, bystander = [Spiking(), Spiking()], Spiking()
        bystander.potential = torch.full((6,), 3.0)
        WassersteinFusion(example_inputs=torch.randn(2, 3), correction=None).fit(models)
        assert all(type(net.potential) is torch.Tensor for net in Spiking.alive)
        assert bystander.potential.tolist() == [3.0] * 6 and models[0].potential.shape == (6,)
        copy.deepcopy(bystander)

    def test_copies_of_declared_modules_are_let_go(self):
        class Squared(nn.Module):
            def __init__(self):
                super().__init__()
                self.gain = nn.Parameter(torch.randn(6))

            def forward(self, x):
                return x * x * self.gain

        declare(Squared, {"gain": ("unit",)})
        held = []
        for _ in range(3):
            models = [nn.Sequential(nn.Linear(3, 6), Squared(), nn.Linear(6, 2)) for _ in range(2)]
            WassersteinFusion(correction="regression").fit(models)
            gc.collect()
            held.append(sum(isinstance(o, Squared) for o in gc.get_objects()))
        assert held[0] == held[-1]  # torch itself keeps its last trace


class Rotary(nn.Module):
    """Attention whose queries and keys are turned in part, at several frequencies."""

    def __init__(self, turned, heads=2, head_size=12):
        super().__init__()
        self.heads, self.head_size, self.turned = heads, head_size, turned
        self.embed, self.head = nn.Linear(5, 10), nn.Linear(10, 3)
        self.qkv, self.out = nn.Linear(10, 3 * heads * head_size), nn.Linear(heads * head_size, 10)

    def turn(self, x):
        r, rest = x.split([self.turned, self.head_size - self.turned], -1)
        angle = torch.arange(x.shape[2])[:, None] * 10.0 ** -torch.arange(self.turned // 2)
        angle = torch.cat([angle, angle], -1).to(x.dtype)
        a, b = r.chunk(2, -1)
        return torch.cat([r * angle.cos() + torch.cat([-b, a], -1) * angle.sin(), rest], -1)

    def forward(self, x):
        x = torch.relu(self.embed(x))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_size)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.head(self.out(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("turned", [4, 8, 12])
def test_heads_that_are_turned_in_part(turned):
    rest = {"qkv.1": 2 * (12 - turned), "qkv.2": 24} if turned < 12 else {"qkv.1": 24}
    sizes = {"embed": 10, "heads": 2, "qkv.0": 2, **rest, "out": 10}
    if turned == 12:  # a head is one unit of its queries and keys, in which its values lie
        sizes.pop("heads")
    moves_back(lambda: Rotary(turned), (torch.randn(2, 4, 5).double(),), sizes)


class Mixed(nn.Module):
    """Halves of the hidden units that are moved apart along steps."""

    def __init__(self, move):
        super().__init__()
        self.move, self.a, self.b = move, nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.relu(torch.cat(self.move(*self.a(x).chunk(2, -1)), -1)).mean(1))


MOVES = {
    "flip": lambda p, q: (p, q.flip(1)),
    "roll": lambda p, q: (p.roll(1, 1), q),
    "shift": lambda p, q: (F.pad(p, (0, 0, 1, 0))[:, :-1], q),
    "step": lambda p, q: (p[:, :1].expand_as(q), q),
}


@pytest.mark.parametrize("move", MOVES)
def test_units_that_are_moved_in_part_are_groups_of_their_own(move):
    moves_back(lambda: Mixed(MOVES[move]), (torch.randn(2, 4, 5).double(),), {"a.0": 4, "a.1": 4})


class TestReadPastTheParts:
    def test_a_closure(self):
        class Closed(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = weight = nn.Parameter(torch.randn(8, 5))
                self.b = nn.Linear(8, 3)
                self.f = lambda x: F.linear(x, weight)

            def forward(self, x):
                return self.b(torch.relu(self.f(x)))

        with pytest.raises(DiscoveryError, match="Got 'w' of Closed, read through a closure"):
            discover(Closed(), torch.randn(4, 5))

    def test_layers_in_a_plain_list(self):
        class Listed(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers, self.b = [nn.Linear(5, 8)], nn.Linear(8, 3)

            def forward(self, x):
                return self.b(torch.relu(self.layers[0](x)))

        with pytest.raises(DiscoveryError, match=r"Got layers of Listed in 'layers', .*Use nn\.ModuleList"):
            discover(Listed(), torch.randn(4, 5))

    def test_parts_in_a_list_whose_parameters_are_the_networks_own_and_a_copy_with_other_names(self):
        """As Keras keeps its layers, beside a dict of their parameters, which a copy names otherwise."""

        class Kept(nn.Module):
            def __init__(self, title="network"):
                super().__init__()
                self.layers = [nn.Linear(5, 8), nn.Linear(8, 3)]
                named = [(k, *kv) for k, m in enumerate(self.layers) for kv in m.named_parameters()]
                self.held = nn.ParameterDict({f"{title}_{k}_{name}": p for k, name, p in named})

            def forward(self, x):
                return self.layers[1](torch.relu(self.layers[0](x)))

            def __deepcopy__(self, memo):
                twin = Kept("copy")
                for mine, other in zip(twin.parameters(), self.parameters(), strict=True):
                    mine.data.copy_(other.data)
                return twin

        model, other, order = Kept(), Kept(), torch.randperm(8)
        first, second = model.layers
        moved = first.bias[order], first.weight[order], second.bias, second.weight[:, order]  # in the order of their names
        for parameter, values in zip(other.parameters(), moved, strict=True):
            parameter.data.copy_(values)
        x = torch.randn(4, 5)
        fused = WassersteinFusion(correction=None, example_inputs=x).fit([model, other]).fused_model_
        torch.testing.assert_close(fused(x), model(x))

    def test_parameters_tied_by_their_data(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(5, 8, bias=False), nn.Linear(5, 8, bias=False)
                self.b.weight.data = self.a.weight.data

            def forward(self, x):
                return torch.relu(self.a(x)) @ torch.relu(self.b(x)).T

        with pytest.raises(DiscoveryError, match=r"must not share memory.*'a\.weight' and 'b\.weight' of Tied"):
            discover(Tied(), torch.randn(4, 5))


def test_filters_made_in_forward_move_with_no_channel():
    kind = network(
        lambda net, x: net.b(F.conv2d(net.a(x), torch.ones(8, 1, 3, 3, dtype=x.dtype) / 9, groups=8)),
        a=lambda: nn.Conv2d(3, 8, 3),
        b=lambda: nn.Conv2d(8, 2, 1),
    )
    moves_back(kind, (torch.randn(2, 3, 8, 8).double(),), {"a": 8})


def test_a_sum_over_units_and_places():
    grid = torch.linspace(-1, 1, 4, dtype=torch.double)
    kind = network(
        lambda net, x: torch.einsum("nig,iog->no", torch.exp(-((net.a(x)[..., None] - grid) ** 2)), net.w),
        a=lambda: nn.Linear(5, 8),
        w=lambda: nn.Parameter(torch.randn(8, 3, 4)),
    )
    moves_back(kind, (torch.randn(6, 5).double(),), {"a": 8})


def test_finite_weights_may_have_a_sum_that_is_not():
    """Of single precision; infinite ones do not pass for them."""
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(3e38)
    assert validate_models([model]) == [model]
    model.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="'weight' of shape"):
        validate_models([model])
