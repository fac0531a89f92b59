"""Every operation with a rule, in the conformance suite."""

import functools

import pytest
import torch
import torch.nn.functional as F
from conformance.adapters import AdapterConformance, Case
from torch import nn

from sklearn_wbfuse import declare


class Between(nn.Module):
    """linear(3 -> 6), an operation, linear(width -> 2)."""

    def __init__(self, operation, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(width, 2)
        self.operation = operation

    def forward(self, x):
        return self.last(self.operation(F.relu(self.first(x))))


def between(operation, groups=None, scalable=True, width=6, **options):
    build, scales = functools.partial(Between, operation, width), {"first"} if scalable else set()
    return Case(build, (4, 3), groups or {"first": 6}, scales, **options)


class Odd(nn.Module):
    """linear(3 -> 6), tanh, an operation, linear(6 -> 2)."""

    def __init__(self, operation):
        super().__init__()
        self.first, self.last, self.operation = nn.Linear(3, 6), nn.Linear(6, 2), operation

    def forward(self, x):
        return self.last(self.operation(torch.tanh(self.first(x))))


def odd(operation, signs=True):
    return Case(functools.partial(Odd, operation), (4, 3), {"first": 6}, set(), {"first"} if signs else set())


class TestElementwise(AdapterConformance):
    cases = {
        "relu": between(F.relu),
        "leaky_relu": between(F.leaky_relu),
        "gelu": between(F.gelu, scalable=False),
        "tanh": between(torch.tanh, scalable=False),
        "sigmoid times itself": between(lambda x: x * torch.sigmoid(x), scalable=False),
        "softplus": between(F.softplus, scalable=False),
        "power": between(lambda x: x**2, scalable=False),
        "product": between(lambda x: x * x),
        "quotient": between(lambda x: x / (1 + x.detach() ** 2), scalable=False),
        "scalar product": between(lambda x: 2 * x),
        "scalar sum": between(lambda x: x + 1, scalable=False),
        "constant": between(lambda x: x * torch.full((6,), 2.0).to(x), widens=False),
        "in place": between(lambda x: x.clone().mul_(2).relu_()),
        "clamp": between(lambda x: x.clamp(-1, 1), scalable=False),
        "where": between(lambda x: torch.where(x > 0, x, -x), scalable=False),
        "maximum": between(lambda x: torch.maximum(x, 0.5 * x)),
        "softmax": between(lambda x: x.softmax(0), scalable=False),
        "norm of rows": between(lambda x: F.normalize(x, dim=1), scalable=False, widens=False),
        "mean of the batch": between(lambda x: x - x.mean(0, keepdim=True)),
        "dropout": between(nn.Dropout(0.5)),
    }


class TestSigns(AdapterConformance):
    cases = {
        "tanh": odd(lambda x: x),
        "sine": odd(torch.sin),
        "minus": odd(lambda x: -x),
        "cube": odd(lambda x: x * x * x),
        "square": odd(lambda x: x * x),  # its readers keep theirs
        "absolute value": odd(torch.abs, signs=False),
        "sigmoid": odd(torch.sigmoid, signs=False),
        "relu": odd(F.relu, signs=False),
        "gated by itself": odd(lambda x: x * (x * x).sigmoid()),
        "shifted": odd(lambda x: x + 1, signs=False),
        "largest of two": odd(lambda x: torch.maximum(x, 0.5 * x), signs=False),
        "average pooling": odd(lambda x: F.avg_pool1d(x[:, :, None].expand(-1, -1, 2), 2)[:, :, 0]),
        "max pooling": odd(lambda x: F.max_pool1d(x[:, :, None].expand(-1, -1, 2), 2)[:, :, 0], signs=False),
        "batch norm": Case(functools.partial(Odd, nn.BatchNorm1d(6)), (4, 3), {"first": 6}, {"first"}, {"first"}),
        "half of them": Case(
            functools.partial(Odd, lambda x: torch.cat([x[:, :3], x[:, 3:].abs()], 1)),
            (4, 3),
            {"first.0": 3, "first.1": 3},
            set(),
            {"first.0"},
            widens=False,
        ),
    }


class TestMovement(AdapterConformance):
    cases = {
        "transpose": between(lambda x: x.t().contiguous().t()),
        "view": between(lambda x: x.view(-1, x.shape[1], 1).flatten(1)),
        "roll": between(lambda x: torch.cat([x, x.roll(0, 1)], 1), width=12),
        "twice": between(lambda x: torch.cat([x, 2 * x], 1), width=12),
        "stacked": between(lambda x: torch.stack([x, x.relu()], 2).flatten(1), width=12),
        "chunks": between(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), {"first": 6}),
        "gate": between(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), {"first": 3}, width=3),
        "padding": between(lambda x: F.pad(x, (1, 2)), width=9),
        "selection": between(lambda x: torch.cat([x[:, :2], x[:, 2:]], 1), {"first": 6}),
    }


class Outer(nn.Module):
    """An outer product of units, flattened: no rule, so both factors stay in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(20, 2)

    def forward(self, x):
        return self.c((F.relu(self.a(x))[:, :, None] * F.relu(self.b(x))[:, None]).flatten(1))


class Chosen(nn.Module):
    """The index of the largest unit picks a row of a table."""

    def __init__(self):
        super().__init__()
        self.a, self.table, self.b = nn.Linear(3, 6), nn.Embedding(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.table(self.a(x).argmax(1)))


@pytest.mark.filterwarnings("ignore::sklearn_wbfuse.exceptions.FusionWarning")
class TestFrozen(AdapterConformance):
    cases = {
        "outer product": Case(Outer, (4, 3), {}),
        "index of a unit": Case(Chosen, (4, 3), {"table": 4}, {"table"}, {"table"}),
    }


class Convolutions(nn.Module):
    """Convolutions of any dimension with all their options, flattened or pooled."""

    def __init__(self, dims, head, **options):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.a, self.b, self.head = conv(2, 4, 3, **options), conv(4, 5, 1, bias=False), nn.LazyLinear(2)
        self.pool = head
        self.double()
        self(torch.zeros(1, 2, *[7] * dims, dtype=torch.float64))

    def forward(self, x):
        return self.head(self.pool(F.relu(self.b(F.relu(self.a(x))))).flatten(1))


def convolutions(dims, head, **options):
    return Case(functools.partial(Convolutions, dims, head, **options), (2, 2, *[7] * dims), {"a": 4, "b": 5}, {"a", "b"})


class TestConvolution(AdapterConformance):
    cases = {
        "1d": convolutions(1, nn.MaxPool1d(2)),
        "1d strided": convolutions(1, nn.AvgPool1d(2), stride=2, padding=1),
        "2d": convolutions(2, nn.MaxPool2d(2)),
        "2d strided and dilated": convolutions(2, nn.AdaptiveAvgPool2d(1), stride=2, dilation=2, padding=2),
        "2d without bias": convolutions(2, nn.AvgPool2d(2), bias=False, padding="same"),
        "3d": convolutions(3, nn.AdaptiveAvgPool3d(2), dilation=2),
        "upsampled": convolutions(2, nn.Upsample(scale_factor=2)),
        "padded": convolutions(2, nn.ZeroPad2d(1)),
    }


class Norms(nn.Module):
    """A batch norm behind a convolution or before it."""

    def __init__(self, affine=True, first=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 3)
        self.norm = nn.BatchNorm2d(5, affine=affine)
        self.first = first

    def forward(self, x):
        x = self.norm(F.relu(self.a(x))) if self.first else F.relu(self.norm(self.a(x)))
        return self.b(x).mean((2, 3))


class NormOfInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm1d(3), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(F.relu(self.a(self.norm(x))))


class Written(nn.Module):
    """A normalised weight, and norms in a network that changes values in place, so that its trace has other names for them."""

    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5, 1))
        self.norm, self.b, self.c = nn.BatchNorm1d(5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(F.linear(x, torch._weight_norm(self.v, self.g))).relu_()
        return self.c(F.batch_norm(self.b(x), None, None, training=True).relu_())


class TestBatchNorm(AdapterConformance):
    cases = {
        "affine": Case(Norms, (2, 2, 6, 6), {"a": 5}, {"a"}),
        "plain": Case(functools.partial(Norms, affine=False), (2, 2, 6, 6), {"a": 5}),
        "after the activation": Case(functools.partial(Norms, first=True), (2, 2, 6, 6), {"a": 5}, {"a"}, {"a"}),
        "of the inputs": Case(NormOfInputs, (3, 3), {"a": 5}, {"a"}),
        "written in place": Case(Written, (4, 3), {"norm": 5, "b": 4}, {"norm"}, redundant=("b.bias",)),
    }


class Residual(nn.Module):
    """x + W x: one group on both axes of a weight."""

    def __init__(self):
        super().__init__()
        self.a, self.w, self.b = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(F.relu(x + self.w(x)))


class Shared(nn.Module):
    """A module used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.w, self.b = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(10, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        y = F.relu(self.w(x))
        return self.b(torch.cat([y, F.relu(self.w(y))], 1))


class Siamese(nn.Module):
    """Two inputs in one tensor through the same encoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.b = nn.Linear(3, 5), nn.Linear(10, 2)

    def forward(self, x):
        return self.b(torch.cat([F.relu(self.encoder(x)), F.relu(self.encoder(-x))], 1))


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder transposed."""

    def __init__(self):
        super().__init__()
        self.a, self.bias = nn.Linear(3, 5), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.linear(F.relu(self.a(x)), self.a.weight.t(), self.bias)


class TiedModules(nn.Module):
    """One tensor under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class Functional(nn.Module):
    """Bare parameters and matrix products."""

    def __init__(self):
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(6))
        self.gain, self.second = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x):
        return (torch.relu(x @ self.first + self.bias) * self.gain) @ self.second


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(11, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(F.relu(self.a(self.table(x)))).mean(1)


class Outputs(nn.Module):
    """Hidden units that are outputs as well stay in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.c(F.relu(self.b(h))) + h


class Halves(nn.Module):
    """Two halves of one layer that different operations see can't be exchanged."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        u, v = F.relu(self.a(x)).chunk(2, 1)
        return self.b(torch.cat([F.max_pool2d(u, 2), F.avg_pool2d(v, 2)], 1))


class Gain(nn.Module):
    """A declared module: what it computes is not looked at."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return torch.special.bessel_j0(x) * self.gain


declare(Gain, {"gain": ("unit",)})


class TestStructure(AdapterConformance):
    cases = {
        "two halves": Case(Halves, (2, 1, 8, 8), {"a.0": 4, "a.1": 4}, {"a.0", "a.1"}, widens=False),
        "residual": Case(Residual, (4, 3), {"a": 5}, {"a"}),
        "used twice": Case(Shared, (4, 3), {"a": 5}, {"a"}),
        "siamese": Case(Siamese, (4, 3), {"encoder": 5}, {"encoder"}),
        "tied transposed": Case(Tied, (4, 3), {"a": 5}, widens=False),
        "tied modules": Case(TiedModules, (4, 3), {"a": 4}, {"a"}),
        "functional": Case(Functional, (4, 3), {"first": 6}, {"first"}),
        "embedding": Case(Tokens, (4, 3), {"table": 5, "a": 4}, {"table", "a"}, {"table"}, integers=11),
        "declared": Case(lambda: nn.Sequential(nn.Linear(3, 5), Gain(), nn.Linear(5, 2)), (4, 3), {"0": 5}),
        "an output": Case(Outputs, (4, 3), {"b": 5}, {"b"}),
    }
