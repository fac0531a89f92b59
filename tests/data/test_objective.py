"""Rows and labels as a loss and a score: torch's losses, the fusions' score, and networks left as they are."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_wbfuse import FusionInput, VanillaAveraging
from sklearn_wbfuse.alignment import Identity
from sklearn_wbfuse.averaging import WeightedMean
from sklearn_wbfuse.data import Objective
from sklearn_wbfuse.exceptions import FusionError
from sklearn_wbfuse.fusion import Roles


def network(outputs, *last, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs), *last).double().eval()


X = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
BIT, CLASS = np.arange(50) % 2, np.arange(50) % 3
KINDS = {
    "classes": (network(3), CLASS, lambda z, y: F.cross_entropy(z, torch.as_tensor(y))),
    "probabilities of classes": (
        network(3, nn.Softmax(1)),
        CLASS,
        lambda p, y: F.nll_loss(p.log(), torch.as_tensor(y)),
    ),
    "one logit": (network(1), BIT, lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], torch.as_tensor(y).double())),
    "one logit, flat": (
        network(1, nn.Flatten(0)),
        BIT,
        lambda z, y: F.binary_cross_entropy_with_logits(z, torch.as_tensor(y).double()),
    ),
    "one probability": (
        network(1, nn.Sigmoid()),
        BIT,
        lambda p, y: F.binary_cross_entropy(p[:, 0], torch.as_tensor(y).double()),
    ),
    "targets": (
        network(2),
        np.random.default_rng(0).normal(size=(50, 2)),
        lambda z, y: F.mse_loss(z, torch.as_tensor(y)),
    ),
    "one target": (network(1), np.random.default_rng(0).normal(size=50), lambda z, y: F.mse_loss(z[:, 0], torch.as_tensor(y))),
}


@pytest.fixture(params=KINDS)
def case(request):
    """A network, its objective, labels and the loss that torch has for them."""
    model, y, loss = KINDS[request.param]
    return model, Objective(FusionInput([], X), y, probabilities="probabilit" in request.param, batch_size=7), y, loss


def test_the_loss_is_that_of_torch(case):
    model, objective, y, loss = case
    torch.testing.assert_close(objective.loss(model), loss(model(X), y))
    torch.testing.assert_close(objective.loss(model, rows=slice(10, 25)), loss(model(X[10:25]), y[10:25]))
    batches = [objective.loss(model, rows=slice(i, i + 10)) for i in range(0, len(objective), 10)]
    torch.testing.assert_close(torch.stack(batches).mean(), objective.loss(model))


def test_the_loss_is_differentiable_in_the_state_and_changes_nothing(case):
    model, objective, *_ = case
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: (p.detach() * 1.1).requires_grad_() for k, p in model.named_parameters()}
    gradients = torch.autograd.grad(objective.loss(model, state), list(state.values()))
    step = {k: p.detach() - 1e-4 * g for (k, p), g in zip(state.items(), gradients, strict=True)}
    expected = -1e-4 * sum(g.square().sum() for g in gradients)
    change = objective.loss(model, step) - objective.loss(model, state).detach()
    torch.testing.assert_close(change, expected, rtol=0.05, atol=1e-9)
    objective.score(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not model.training


def test_the_score_is_that_of_a_fusion_whatever_the_batches(case):
    model, objective, y, _ = case
    fusion = VanillaAveraging(example_inputs=(X[:2],)).fit([model, model])
    assert objective.score(fusion.fused_model_) == pytest.approx(fusion.score(X.numpy(), y), abs=1e-9)
    other = {k: v * 1.5 for k, v in model.state_dict().items() if v.is_floating_point()}
    loaded = network(model[3].out_features, *model[4:])
    loaded.load_state_dict({**model.state_dict(), **other})
    assert objective.score(model, other) == pytest.approx(objective.score(loaded), abs=1e-9)


def test_scores_of_networks_in_training_mode_put_it_back():
    model = network(3).train()
    objective, statistics = Objective(FusionInput([], X), CLASS), model[1].running_mean.clone()
    assert objective.score(model, dict(model.named_parameters())) == objective.score(model)
    assert model.training and model[1].training and torch.equal(model[1].running_mean, statistics)


def test_whole_numbers_for_rows_are_cast_to_what_a_network_takes():
    model, rows = network(3), np.arange(20).reshape(5, 4)
    y = np.array([0, 1, 2, 0, 1])
    loss = Objective(FusionInput([], rows), y).loss(model)
    torch.testing.assert_close(loss, F.cross_entropy(model(torch.as_tensor(rows).double()), torch.as_tensor(y)))


def test_one_label_for_each_row():
    with pytest.raises(FusionError, match="X has 50 rows but y has 3"):
        Objective(FusionInput([], X), [0, 1, 2])


class Noting(WeightedMean):
    """Keeps the objectives that it is given."""

    def __init__(self):
        self.notes = []

    def average(self, parents, objective=None):
        self.notes.append(objective)
        return super().average(parents, objective)


class Noted(VanillaAveraging):
    def roles(self):
        self.averager = Noting()
        return Roles(Identity(), self.averager)


def test_fit_gives_averagers_an_objective_where_there_are_rows_and_labels():
    model = network(3)
    fusion = Noted().fit(FusionInput([model, model], X), CLASS)
    (objective,) = fusion.averager.notes
    assert objective.score(model) == fusion.score(X.numpy(), CLASS)
    assert Noted().fit(FusionInput([model, model], X)).averager.notes == Noted().fit([model, model]).averager.notes == [None]
