"""Which layers write one value, on networks whose equations are known by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from architectures.convnets import VGG11, DenseLayer, ResNet18, Transition, UNet
from architectures.several import Siamese
from hypothesis import given
from networks import CNN, MLP, Encoder, Recurrent, ResNet, networks
from running import TRACED, at_end, channels_last, expected, outputs, steps_of, traced
from torch import nn

from sklearn_wbfuse.execution import program_of
from sklearn_wbfuse.execution.lockstep import run_in_lockstep
from sklearn_wbfuse.execution.sites import batch_norms, regression_sites
from sklearn_wbfuse.layers.operations import operation


def sites_of(runner):
    return regression_sites(runner.nodes, runner.parameters)


def weights(site):
    """The names of an equation's layers, those of batch norms behind them in brackets."""
    cells = [cell.w_ih.removesuffix(".weight") for cell in site.cells]
    short = [(w.weight, w.norm_names.get("weight", w.norm_names.get("mean"))) for w in site.layers]
    return {*cells, *(w.removesuffix(".weight") + (f" [{n.rpartition('.')[0]}]" if n else "") for w, n in short)}


def layers_of(network, *inputs):
    """The layers of each equation, in the order of their values."""
    network = network.double().eval()
    runner = at_end(network, *inputs)
    sites = sites_of(runner)
    assert_consistent(runner, sites)
    return [weights(sites[node]) for node in sorted(sites, key=runner.position.__getitem__)]


def assert_consistent(runner, sites):
    """Between layers and value nothing else is computed, and the value is the sum of the layers' maps and of other terms."""
    seen = [n for e in sites.values() for n in e.path]
    assert len(seen) == len(set(seen))
    for node, site in sites.items():
        assert site.node is node is site.path[-1]
        assert [runner.position[n] for n in site.path] == sorted(runner.position[n] for n in site.path)
        for inner in site.path[:-1]:
            (user,) = inner.users
            assert user in site.path and not (operation(user) == "add" and user.args[0] is user.args[1])
        if site.cells:
            assert not site.layers and site.path == [node]
            continue
        terms = {n for inner in site.path for n in inner.args[:2] if operation(inner) == "add"}
        value = runner.read(node, 0)
        channel = site.layers[0].channel
        total = sum((channels_last(runner.read(n, 0), channel) for n in terms.difference(site.path)), torch.zeros(()))
        for w in site.layers:
            assert w.node in site.path and w.end in site.path
            matrix, offset = w.affine(runner.state)
            chosen = torch.arange(value.numel() // value.shape[channel], device=value.device)
            rows = w.rows(w.read(runner, 0), chosen)
            total = total + (rows @ matrix.mT + offset[:, None]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(total, channels_last(value, channel))


@given(network=networks())
def test_values_are_what_the_layers_write(device, network):
    """Nothing else needs what lies between layers and value, so that it can wait until the value is there."""
    x = (network.example,)
    program = program_of(network, x, torch.zeros((), dtype=torch.float64, device=device))
    runner = steps_of(network, [x], device, program)
    for node in runner.nodes:
        runner.run(node)
    sites = sites_of(runner)
    assert_consistent(runner, sites)
    runner, seen = steps_of(network, [x], device, program), []
    run_in_lockstep(runner, [], sites, seen.append)
    assert [e.node for e in seen] == sorted(sites, key=runner.position.__getitem__)
    torch.testing.assert_close(outputs(runner), expected(network, x, device))


LEFT_OUT = {
    "gpt": {"lm_head.weight"},  # the table of tokens is its weight
    "siamese": {"conv1.weight", "conv2.weight", "fc.weight"},  # each runs twice
}
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@pytest.mark.parametrize("name", TRACED)
def test_every_weight_is_in_one_equation(device, name):
    network, batches, program = traced(name, device)
    runner = steps_of(network, batches[:1], device, program)
    for node in runner.nodes:
        runner.run(node)
    sites = sites_of(runner)
    assert_consistent(runner, sites)
    names = [n for e in sites.values() for w in e.layers for n in (w.weight, w.norm_names.get("weight")) if n]
    names += [n for e in sites.values() for cell in e.cells for n in (cell.w_ih, cell.w_hh)]
    modules = dict(network.named_modules())
    layers = {f"{n}.weight" for n, m in modules.items() if isinstance(m, LAYERS)}
    layers |= {f"{n}.in_proj_weight" for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)}
    layers |= {
        f"{n}.{k}" for n, m in modules.items() if isinstance(m, nn.RNNBase) for k, _ in m.named_parameters() if "weight" in k
    }
    assert len(names) == len(set(names))
    assert layers - set(names) == LEFT_OUT.get(name, set())
    assert set(names) <= layers


IMAGES = torch.randn(2, 2, 8, 8, dtype=torch.float64)


class PreActivation(nn.Module):
    """Two residual blocks, norms in front of the convolutions, the second one with a projection."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norm1, self.norm2 = (nn.ModuleList(nn.BatchNorm2d(c) for c in cs) for cs in ((3, 3), (3, 4)))
        self.conv1 = nn.ModuleList(nn.Conv2d(3, c, 3, padding=1, bias=False) for c in (3, 4))
        self.conv2 = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1, bias=False) for c in (3, 4))
        self.project, self.last, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        for i in range(2):
            y = F.relu(self.norm1[i](x))
            x = self.project(y) if i else x
            x = x + self.conv2[i](F.relu(self.norm2[i](self.conv1[i](y))))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Mixer(nn.Module):
    """Tokens are mixed by a convolution, channels by linear layers, into one sum."""

    def __init__(self, swap):
        super().__init__()
        self.conv, self.linear, self.swap = nn.Conv1d(3, 3, 1), nn.Linear(5, 5), swap

    def forward(self, x):
        a, b = self.conv(x), self.linear(x)
        return (b + a if self.swap else a + b).relu()


class TestArchitectures:
    def test_mlp(self):
        network = MLP([3, 4, 5, 2], norm="affine")
        assert layers_of(network, network.example) == [{"linears.0 [norms.0]"}, {"linears.1 [norms.1]"}, {"linears.2"}]
        network = MLP([3, 4, 2], norm="plain")
        assert layers_of(network, network.example) == [{"linears.0 [norms.0]"}, {"linears.1"}]

    def test_cnn(self):
        network = CNN(3, 2, 4, norm="affine")
        assert layers_of(network, network.example) == [{"left"}, {"right"}, {"conv [norm]"}, {"head"}]

    def test_vgg(self):
        x = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
        layers = [{f"convs.{i} [norms.{i}]"} for i in range(8)] + [{f"classifier.{i}"} for i in range(3)]
        assert layers_of(VGG11(2, norm=True), x) == layers

    def test_resnet(self):
        """The projection has no norm here, and stands in front of the other branch."""
        network = ResNet(3, 4, 5)
        assert layers_of(network, network.example) == [
            {"stem [stem_norm]"},
            {"first.0 [first_norm.0]"},
            {"second.0 [second_norm.0]", "project"},
            {"first.1 [first_norm.1]"},
            {"second.1 [second_norm.1]"},
            {"head"},
        ]

    def test_published_resnet(self):
        """Shortcuts are projected in every other block from the third on."""
        layers = [{"conv1 [bn1]"}]
        for i in range(8):
            block = f"blocks.{i}"
            project = {f"{block}.down.0 [{block}.down.1]"} if i in (2, 4, 6) else set()
            layers += [{f"{block}.conv1 [{block}.bn1]"}, {f"{block}.conv2 [{block}.bn2]"} | project]
        assert layers_of(ResNet18(2), torch.zeros(1, 3, 32, 32, dtype=torch.float64)) == [*layers, {"fc"}]

    def test_norms_in_front(self):
        """A norm of a stream is alone; the stem writes the stream that the first norm and the first sum read."""
        assert layers_of(PreActivation(), IMAGES) == [
            {"stem"},
            {"norm1.0"},
            {"conv1.0 [norm2.0]"},
            {"conv2.0"},
            {"norm1.1"},
            {"conv1.1 [norm2.1]"},
            {"conv2.1", "project"},
            {"last"},
            {"head"},
        ]

    def test_densenet(self):
        network = nn.Sequential(nn.Conv2d(2, 4, 3), DenseLayer(4, 2), DenseLayer(6, 2), Transition(8))
        dense = [[{f"{i}.norm1"}, {f"{i}.conv1 [{i}.norm2]"}, {f"{i}.conv2"}] for i in (1, 2)]
        assert layers_of(network, IMAGES) == [{"0"}, *itertools.chain(*dense), {"3.norm"}, {"3.conv"}]

    @pytest.mark.parametrize("norm_first", [True, False])
    def test_encoder(self, norm_first):
        """Attention and the second linear layer each write the stream, the first norm of both kinds reads it."""
        network = Encoder(2, 2, 5, layers=1, norm_first=norm_first)
        attention = [{"attention.0.in_proj_weight"}, {"attention.0.out_proj"}]
        middle = [{"first.0"}, {"second.0"}]
        if norm_first:
            expected = [{"embed"}, {"norms.0"}, *attention, {"norms.1"}, *middle, {"norms.2"}, {"head"}]
        else:
            expected = [{"embed"}, *attention, {"norms.0"}, *middle, {"norms.1"}, {"head"}]
        assert layers_of(network, network.example) == expected

    def test_unet(self):
        """A transposed convolution goes into a concatenation: alone."""
        down = [[{f"down.{i}.conv{k} [down.{i}.norm{k}]"} for k in (1, 2)] for i in range(5)]
        up = [[{f"up.{i}"}, *({f"join.{i}.conv{k} [join.{i}.norm{k}]"} for k in (1, 2))] for i in range(4)]
        x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
        assert layers_of(UNet(2), x) == [*itertools.chain(*down, *up), {"head"}]

    def test_siamese(self):
        x = torch.randn(1, 1, 28, 28, dtype=torch.float64)
        assert layers_of(Siamese(2), x, x) == [{"head"}]

    def test_recurrent(self):
        network = Recurrent("lstm", 3, levels=2, bidirectional=True, readout="mean")
        levels = {f"rnn.weight_ih_l{level}{reverse}" for level in (0, 1) for reverse in ("", "_reverse")}
        assert layers_of(network, network.example) == [levels, {"fc"}, {"aux"}]

    @pytest.mark.parametrize("swap", [False, True])
    def test_layers_along_different_dimensions_are_apart(self, swap):
        """The one that comes first may have the sum; of the other's output the sum is no equation."""
        x = torch.randn(2, 3, 5, dtype=torch.float64)
        assert layers_of(Mixer(swap), x) == [{"linear"}, {"conv"}]


class Layers(nn.Module):
    """Some layers, and a function of them and of an input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def linears(function, **more):
    """Networks of linear layers a, b, c of as many outputs as inputs."""
    return Layers(function, **{name: nn.Linear(4, 4) for name in "abc"}, **more)


VECTORS = torch.randn(4, 4, dtype=torch.float64)

CHAINS = {
    "sum": (lambda m, x: (m.a(x) + m.b(x)).relu(), [{"a", "b"}]),
    "sums of sums": (lambda m, x: (m.a(x) + (m.b(x) + m.c(x)) + x).relu(), [{"a", "b", "c"}]),
    "one after the other": (lambda m, x: m.c(m.a(x) + m.b(x)).relu(), [{"a", "b"}, {"c"}]),
    "output that is read twice": (lambda m, x: (m.a(x) + m.b(x)) * (m.a.bias + 1), [{"b"}]),  # a's bias is shared
    "layer that is read twice": (lambda m, x: (lambda y: y.relu() + (y + m.b(x)))(m.a(x)), [{"a"}, {"b"}]),
    "sum that is read twice": (lambda m, x: (lambda y: y.relu() + (y + m.c(x)))(m.a(x) + m.b(x)), [{"a", "b"}, {"c"}]),
    "with itself": (lambda m, x: (lambda y: y + y)(m.a(x)), [{"a"}]),
    "sum with itself": (lambda m, x: (lambda y: y + y)(m.a(x) + m.b(x)), [{"a", "b"}]),
    "alpha": (lambda m, x: torch.add(m.a(x), m.b(x), alpha=2), [{"a"}, {"b"}]),
    "alpha of one": (lambda m, x: torch.add(m.a(x), m.b(x), alpha=1), [{"a", "b"}]),
    "broadcast": (lambda m, x: m.a(x) + m.b(x[:1]), [{"a"}, {"b"}]),
    "broadcast within": (lambda m, x: (m.a(x) + m.b(x)) + x[0], [{"a", "b"}]),
    "number": (lambda m, x: m.a(x) + 1.0, [{"a"}]),
    "difference": (lambda m, x: m.a(x) - m.b(x), [{"a"}, {"b"}]),
    "in place": (lambda m, x: m.a(x).add_(m.b(x)).relu_(), [{"a", "b"}]),
    "parameter": (lambda m, x: m.a(x) + m.c.weight, [{"a"}]),
    "itself a parameter": (lambda m, x: F.linear(x, m.a.weight) + m.a.weight, []),
    "output": (lambda m, x: (lambda y: (y, y + m.b(x)))(m.a(x)), [{"a"}, {"b"}]),
    "sum that is an output": (lambda m, x: (lambda y: (y, y + m.c(x)))(m.a(x) + m.b(x)), [{"a", "b"}, {"c"}]),
    "dropout": (lambda m, x: F.dropout(m.a(x), 0.5, m.training) + F.dropout(m.b(x), 0.5, m.training).clone(), [{"a", "b"}]),
    "dropout that is read twice": (lambda m, x: (lambda y: y * (y + m.b(x)))(F.dropout(m.a(x), 0.5, False)), [{"a"}, {"b"}]),
    "cast to the same": (lambda m, x: m.a(x).to(torch.float64) + m.b(x), [{"a", "b"}]),
    "cast to another": (lambda m, x: m.a(x).float().double() + m.b(x), [{"a"}, {"b"}]),
    "shape": (lambda m, x: m.a(x).unflatten(1, (2, 2)).flatten(1) + m.b(x), [{"a"}, {"b"}]),
    "nothing reads it": (lambda m, x: (m.a(x), m.b(x).mean())[0] + m.c(x), [{"a", "c"}]),
    "used twice": (lambda m, x: m.b(m.a(m.a(x))), [{"b"}]),
    "shared bias": (lambda m, x: F.linear(x, m.a.weight, m.a.bias) + F.linear(x, m.b.weight, m.a.bias) + m.c(x), [{"c"}]),
    "its own weight": (lambda m, x: F.layer_norm(x, (4,), m.a.bias, m.a.bias) + m.b(x), [{"b"}]),
}


class TestChains:
    @pytest.mark.parametrize("case", CHAINS)
    def test_layers_of_a_value(self, case):
        function, layers = CHAINS[case]
        assert layers_of(linears(function), VECTORS) == layers

    def test_random_dropout_is_no_identity(self):
        network = linears(lambda m, x: F.dropout(m.a(x), 0.5, True) + m.b(x)).double().eval()
        assert [weights(e) for e in sites_of(at_end(network, VECTORS)).values()] == [{"a"}, {"b"}]

    def test_tied_weights(self):
        network = linears(lambda m, x: m.c(m.b(m.a(x).relu()).relu()))
        network.b.weight = network.a.weight
        assert layers_of(network, VECTORS) == [{"c"}]
        network.c.bias = network.a.bias
        assert layers_of(network, VECTORS) == []

    @pytest.mark.parametrize(
        "names", [("weight_hh_l1", "weight_hh_l0"), ("bias_ih_l1", "bias_ih_l0"), ("weight_hh_l0", "weight_ih_l0")]
    )
    def test_tied_cells(self, names):
        network = nn.Sequential(nn.RNN(4, 4, 2, batch_first=True))
        x = VECTORS[:, None]
        runner = at_end(network.double().eval(), x)
        assert [weights(e) for e in sites_of(runner).values()] == [{"0.weight_ih_l0", "0.weight_ih_l1"}]
        setattr(network[0], names[0], getattr(network[0], names[1]))
        assert not sites_of(at_end(network, x))


def norms(function):
    norms = {"n": nn.BatchNorm1d(4), "p": nn.BatchNorm1d(4, affine=False), "u": nn.BatchNorm1d(4, track_running_stats=False)}
    return linears(function, **norms)


NORMED = {
    "into a sum": (lambda m, x: m.n(m.a(x)) + m.p(m.b(x)), [{"a [n]", "b [p]"}]),
    "twice": (lambda m, x: m.p(m.n(m.a(x))), [{"a [n]"}]),
    "twice, the other way": (lambda m, x: m.n(m.p(m.a(x))), [{"a [p]"}, {"n"}]),
    "dropout before it": (lambda m, x: m.n(F.dropout(m.a(x), 0.5, False)) + m.b(x), [{"a [n]", "b"}]),
    "in place": (lambda m, x: m.n(m.a(x)).relu_() + m.p(m.b(x)).relu_(), [{"a [n]"}, {"b [p]"}]),
    "of a layer that is read twice": (lambda m, x: (lambda y: m.n(y) + y)(m.a(x)), [{"a"}, {"n"}]),
    "that is read twice": (lambda m, x: (lambda y: m.b(y) + y)(m.n(m.a(x))), [{"a [n]"}, {"b"}]),
    "of a sum": (lambda m, x: m.n(m.a(x) + m.b(x)) + m.c(x), [{"a", "b"}, {"n"}, {"c"}]),
    "of a norm": (lambda m, x: m.n(F.layer_norm(x, (4,), m.u.weight)), [{"u"}, {"n"}]),
    "of the batch in spite of statistics": (
        lambda m, x: F.batch_norm(m.a(x), m.n.running_mean, m.n.running_var, m.n.weight, training=True),
        [{"a"}, {"n"}],
    ),
    "of the batch": (lambda m, x: m.u(m.a(x)).relu(), [{"a"}, {"u"}]),
    "used twice": (lambda m, x: m.n(m.a(x)) * m.n(m.b(x)), [{"a"}, {"b"}]),
    "with another's statistics": (
        lambda m, x: m.n(m.a(x)) * F.batch_norm(m.b(x), m.n.running_mean, m.n.running_var, m.u.weight, m.u.bias),
        [{"a"}, {"n"}, {"b"}, {"u"}],
    ),
    "computed": (lambda m, x: F.batch_norm(m.a(x), m.n.running_mean, m.n.running_var, m.n.weight * 2), [{"a"}]),
    "along steps": (lambda m, x: m.n(m.a(x[:, :, None].expand(4, 4, 4))), [{"a"}, {"n"}]),
}


class TestBatchNorms:
    @pytest.mark.parametrize("case", NORMED)
    def test_layers_of_a_value(self, case):
        function, layers = NORMED[case]
        assert layers_of(norms(function), VECTORS) == layers

    def test_of_a_convolution_without_batch(self):
        """What a norm takes for its channels are positions here."""
        network = Layers(lambda m, x: m.n(m.a(x)), a=nn.Conv1d(4, 4, 1), n=nn.BatchNorm1d(4))
        assert layers_of(network, VECTORS) == [{"a"}, {"n"}]

    def test_alone(self, device):
        """For their statistics each is an equation of its own, unless it has none, or uses them twice."""
        network = norms(lambda m, x: m.p(m.n(m.a(x))) + m.u(m.b(x))).double().eval()
        runner = at_end(network, VECTORS, device=device)
        n, p = (node for node in runner.nodes if operation(node) == "batch_norm" and node.args[3] is not None)
        batch_norm_sites = batch_norms(runner.nodes, runner.parameters)
        assert {node: (e.node, e.path) for node, e in batch_norm_sites.items()} == {n: (n, [n]), p: (p, [p])}
        names = [e.layers[0].norm_names for e in batch_norm_sites.values()]
        statistics = [{"mean": f"{norm}.running_mean", "var": f"{norm}.running_var"} for norm in "np"]
        assert names == [{"weight": "n.weight", "bias": "n.bias", **statistics[0]}, statistics[1]]
        shared = at_end(norms(lambda m, x: m.n(m.a(x)) * m.n(m.b(x))).double().eval(), VECTORS)
        assert batch_norms(shared.nodes, shared.parameters) == {}
