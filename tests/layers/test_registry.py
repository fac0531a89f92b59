"""Teaching the library: a rule for an own operation, a declaration for an own module."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_wbfuse import WassersteinFusion, declare, discover, register_rule, register_sizes
from sklearn_wbfuse.exceptions import FusionWarning, SelfCheckError


class Bessel(nn.Module):
    """No rule covers Bessel functions, but which axes are units is clear."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n_out, n_in)), nn.Parameter(torch.randn(n_out))
        self.n_in = n_in

    def forward(self, x):
        return torch.special.bessel_j0(F.linear(x, self.weight)) + self.bias


class Gain(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(n))

    def forward(self, x):
        return torch.special.bessel_j0(x) * self.gain


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gain, self.bessel, self.b = nn.Linear(3, 6), Gain(6), Bessel(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(F.relu(self.bessel(self.gain(F.relu(self.a(x))))))


def test_declared_modules_take_part():
    torch.manual_seed(0)
    x = torch.randn(3, 3)
    with pytest.warns(FusionWarning, match="bessel_j0"):
        assert discover(Net(), (x,)).sizes == {}
    declare(Bessel, {"weight": ("out", "in"), "bias": ("out",)}, sizes={"n_in": ("weight", 1)})
    declare(Gain, {"gain": ("unit",)})
    models = [Net(), Net()]
    fusion = WassersteinFusion(example_inputs=(x,), correction=None).fit(models)
    assert fusion.graph_.sizes == {"a": 6, "bessel": 5}
    for model, moved in zip(models, fusion.transform(models), strict=True):
        torch.testing.assert_close(moved(x), model(x), rtol=1e-4, atol=1e-5)
    wide = WassersteinFusion(2.0, example_inputs=(x,), correction=None).fit(models[:1]).fused_model_
    torch.testing.assert_close(wide(x), models[0](x), rtol=1e-4, atol=1e-5)
    assert wide.bessel.n_in == 12 and "forward" not in vars(wide.bessel)


def test_a_wrong_declaration_is_refuted():
    class Wrong(Gain):
        def forward(self, x):
            return x.cumsum(-1) * self.gain

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.wrong, self.b = nn.Linear(3, 6), Wrong(6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.wrong(self.a(x)))

    declare(Wrong, {"gain": ("unit",)})
    with pytest.raises(SelfCheckError, match="Permuting neuron group 'a'"):
        discover(Small())


@pytest.mark.parametrize(
    ("axes", "message"), [({"w": ("rows",)}, "must be 'in', 'out', 'unit' or None"), ({"w": ("unit", "in")}, "one kind of layer")]
)
def test_declarations_are_validated(axes, message):
    with pytest.raises(ValueError, match=message):
        declare(Gain, axes)


def test_a_rule_for_an_own_operation():
    @torch.library.custom_op("tests_wbfuse::soft", mutates_args=())
    def soft(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 2

    soft.register_fake(torch.empty_like)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(soft(self.a(x)))

    with pytest.warns(FusionWarning, match="tests_wbfuse::soft"):
        assert discover(Small()).sizes == {}

    @register_rule("tests_wbfuse::soft")
    def rule(constraints, x):
        constraints.no_scale(*x.label_maps)
        return x

    assert discover(Small()).sizes == {"a": 6}


def test_sizes_of_an_own_module_follow_its_parameters():
    class Mine(nn.Linear):
        def __init__(self, n_in, n_out):
            super().__init__(n_in, n_out)
            self.units = n_out

    register_sizes(Mine, units=("weight", 0), out_features=("weight", 0), in_features=("weight", 1))
    wide = WassersteinFusion(2.0, correction=None).fit([nn.Sequential(Mine(3, 4), nn.ReLU(), Mine(4, 2))]).fused_model_
    assert (wide[0].units, wide[2].in_features, wide[2].units) == (8, 8, 2)
