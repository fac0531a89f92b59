"""What neurons are compared by where norms stand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_wbfuse import WassersteinFusion


class Twice(nn.Module):
    """One norm behind two layers with biases of their own, whose difference its mean can't take off."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Linear(4, 7), nn.Linear(7, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.norm(self.b(torch.relu(self.norm(self.a(x))))))


class Read(nn.Module):
    """A norm that is not alone in reading what a layer computes."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.head = nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)

    def forward(self, x):
        x = self.a(x)
        return self.head(torch.relu(self.norm(x)) + torch.sigmoid(x))


class KeptUp(nn.InstanceNorm2d):
    """By the statistics of its inputs, and running ones kept up beside them."""

    def forward(self, x):
        return F.instance_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True)


def images(norm):
    return nn.Sequential(nn.Conv2d(2, 7, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3))


def rows(norm):
    return nn.Sequential(nn.Linear(4, 7), norm, nn.ReLU(), nn.Linear(7, 3))


NETWORKS = {
    "batch": lambda: images(nn.BatchNorm2d(7)),
    "batch, not affine": lambda: rows(nn.BatchNorm1d(7, affine=False)),
    "batch, not tracked": lambda: rows(nn.BatchNorm1d(7, track_running_stats=False)),
    "instance": lambda: images(nn.InstanceNorm2d(7, affine=True)),
    "instance, tracked": lambda: images(nn.InstanceNorm2d(7, affine=True, track_running_stats=True)),
    "instance, kept up": lambda: images(KeptUp(7, affine=True, track_running_stats=True)),
    "layer": lambda: rows(nn.LayerNorm(7)),
    "groups": lambda: images(nn.GroupNorm(1, 7)),
    "used twice": Twice,
    "not alone": Read,
}


def built(name):
    """A network with random numbers, and inputs."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(0.5 + torch.rand_like(tensor))
    first = next(model.parameters())
    return model, torch.randn(3, first.shape[1], *[6] * (first.dim() - 2)).double()


def with_other(name, is_meant):
    """The fusion by weights of a network and a copy with other numbers where names are meant."""
    model, x = built(name)
    other = copy.deepcopy(model)
    meant = [t for key, t in other.state_dict().items() if is_meant(key) and t.is_floating_point()]
    assert meant
    for tensor in meant:
        tensor += 10 * torch.rand_like(tensor)
    return WassersteinFusion(cost="weight", correction=None, example_inputs=(x,)).fit([model, other])


@pytest.mark.parametrize(
    "name", ["batch", "batch, not affine", "instance, tracked", "instance, kept up", "used twice", "not alone"]
)
def test_running_statistics_move_no_neuron(name):
    fusion = with_other(name, lambda key: "running" in key)
    assert fusion.energy_ == pytest.approx(0, abs=1e-9)
    assert all((plan.argmax(1) == range(len(plan))).all() for plan in fusion.couplings_[1].values())


FRONT = ("0.bias", "a.bias", "b.bias")


@pytest.mark.parametrize(
    "name, counts",
    {
        **dict.fromkeys(
            ["batch", "batch, not affine", "batch, not tracked", "instance", "instance, tracked", "instance, kept up"], False
        ),
        **dict.fromkeys(["layer", "groups", "used twice", "not alone"], True),
    }.items(),
)
def test_a_bias_that_a_norm_takes_off_is_not_compared(name, counts):
    assert (with_other(name, FRONT.__contains__).energy_ > 0.1) == counts


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_weight_and_bias_of_a_norm_count_as_they_are(which):
    model, x = built("batch")
    other = copy.deepcopy(model)
    getattr(other[1], which).data[2] += 0.5
    fusion = WassersteinFusion(cost="weight", symmetry="permutation", correction=None, example_inputs=(x,)).fit([model, other])
    assert fusion.energy_ == pytest.approx(0.5**2 / 4)  # both are half of the way from their mean


def test_neurons_are_found_behind_statistics_of_other_data():
    model, x = built("batch")
    order = torch.tensor([3, 6, 0, 5, 1, 2, 4])
    other = copy.deepcopy(model)
    for tensor in [*other[0].state_dict().values(), *other[1].state_dict().values()]:
        if tensor.dim():
            tensor.copy_(tensor[order].clone())
    other[5].weight.data = model[5].weight.data[:, order]
    other[1].running_mean.mul_(-20)
    other[1].running_var.mul_(400)
    fusion = WassersteinFusion(cost="weight", correction=None, example_inputs=(x,)).fit([model, other])
    assert (fusion.couplings_[1]["0"].argmax(1) == order.argsort().numpy()).all()
    torch.testing.assert_close(fusion.fused_model_[0].weight, model[0].weight)
