import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CNN, MLP, networks, randomised

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.network.couplings import Plan


def family(build, count):
    return [randomised(build(), np.random.default_rng(seed)) for seed in range(count)]


@given(networks(blocks=False), st.sampled_from([None, 0.5, 0.75]))
@settings(max_examples=10)
def test_sweeps_never_raise_the_energy(model, factor):
    rng = np.random.default_rng(0)
    others = [randomised(model, rng) for _ in range(1)]
    models = [model, *others]
    options = {"example_inputs": (model.example,), "target_widths": factor, "random_state": 0}
    first = WassersteinFusion(schedule="layerwise", correction=None, **options).fit(models)
    second = WassersteinFusion(schedule="joint", correction=None, **options).fit(models)
    assert second.energy_ <= first.energy_ * (1 + 1e-9) + 1e-9
    (history,) = second.history_
    assert history[0] == pytest.approx(first.energy_) and all(np.diff(history) <= 1e-9 * abs(history[0]))


def test_energy_falls_when_three_models_are_fused_jointly():
    models = family(lambda: MLP([6, 12, 10, 3]), 3)
    energies = [WassersteinFusion(schedule=s, correction=None).fit(models).energy_ for s in ("layerwise", "joint")]
    assert energies[1] < energies[0]


def test_one_group_on_both_sides_of_a_weight():
    """x + relu(W x): the group stands twice in W, and copies still fuse back."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w, self.b = torch.nn.Linear(2, 9), torch.nn.Linear(9, 9), torch.nn.Linear(9, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(h + torch.relu(self.w(h)))

    torch.manual_seed(0)
    model, twin = Residual().double(), Residual().double()
    p = torch.randperm(9)
    with torch.no_grad():
        twin.load_state_dict(model.state_dict())
        twin.a.weight.copy_(model.a.weight[p]), twin.a.bias.copy_(model.a.bias[p]), twin.w.bias.copy_(model.w.bias[p])
        twin.w.weight.copy_(model.w.weight[p][:, p]), twin.b.weight.copy_(model.b.weight[:, p])
    x = torch.randn(5, 2, dtype=torch.float64)
    fusion = WassersteinFusion(example_inputs=(x,), correction=None).fit([model, twin])
    torch.testing.assert_close(fusion.fused_model_(x), model(x))
    assert fusion.energy_ < 1e-12


@pytest.mark.parametrize("init", ["auto", 0, 1, 2, "random"])
def test_every_start_keeps_the_invariant(init):
    models = family(lambda: CNN(4, 3, 5), 3)
    x = models[0].example
    fusion = WassersteinFusion(init=init, example_inputs=(x,), random_state=0, correction=None).fit(models)
    for model, moved in zip(models, fusion.transform(models), strict=True):
        torch.testing.assert_close(moved(x), model(x))
    assert np.isfinite(fusion.energy_)


def test_a_network_as_the_start():
    models = family(lambda: MLP([5, 8, 6, 3]), 2)
    first = WassersteinFusion(correction=None).fit(models)
    again = WassersteinFusion(init=first.fused_model_, correction=None).fit(models)
    assert again.energy_ <= first.energy_ * (1 + 1e-9)


def test_more_starts_never_give_a_higher_energy():
    models = family(lambda: MLP([5, 8, 6, 3]), 3)
    one, many = (WassersteinFusion(n_init=n, random_state=0, n_jobs=2, correction=None).fit(models) for n in (1, 5))
    assert many.energy_ <= one.energy_ and len(many.history_) == 5


@pytest.mark.parametrize(("seed", "factor"), [(0, 0.5), (2, 0.8), (4, 0.8), (8, 0.5)])
def test_sweeps_between_unequal_widths_are_taken_only_if_the_energy_falls(seed, factor):
    """Each of these raises the energy in some sweep when every step is taken."""
    models = [randomised(MLP([5, a, b, 3]), np.random.default_rng(10 * seed + a)) for a, b in ((6, 8), (9, 4), (12, 12))]
    (history,) = WassersteinFusion(factor, random_state=0, tol=0, correction=None).fit(models).history_
    assert (np.diff(history) <= 1e-9 * history[0]).all()


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3])
def test_parents_of_three_widths_into_any_target(factor):
    models = [randomised(MLP([5, a, b, 3]), np.random.default_rng(a)) for a, b in ((6, 8), (9, 4), (12, 12))]
    fusion = WassersteinFusion(target_widths=factor, merge="all", random_state=0, correction=None).fit(models)
    sizes = {"linears.0": round(12 * factor), "linears.1": round(12 * factor)}
    assert fusion.graph_.sizes == sizes
    assert fusion.fused_model_.linears[0].out_features == sizes["linears.0"]
    for model, couplings in zip(models, fusion.couplings_, strict=True):
        for name, plan in couplings.items():
            assert plan.shape == (sizes[name], model.truth.sizes[name])
            np.testing.assert_allclose(plan.sum(1), 1 / plan.shape[0])
            np.testing.assert_allclose(plan.sum(0), 1 / plan.shape[1])
    assert torch.isfinite(fusion.fused_model_(models[0].example)).all()


def test_widths_by_list_dict_and_sum():
    models = family(lambda: MLP([5, 8, 6, 3]), 2)
    for widths, expected in (([4, 3], [4, 3]), ({"linears.1": 5}, [8, 5]), (0.5, [4, 3])):
        assert list(WassersteinFusion(widths, random_state=0, correction=None).fit(models).graph_.sizes.values()) == expected
    assert list(WassersteinFusion("sum", merge="all", correction=None).fit(models).graph_.sizes.values()) == [16, 12]


@pytest.mark.parametrize("schedule", ["layerwise", "joint"])
def test_entropic_plans_have_their_marginals_and_a_larger_energy(schedule):
    models = family(lambda: MLP([5, 20, 15, 3]), 2)
    exact, soft = (WassersteinFusion(reg=reg, schedule=schedule, correction=None).fit(models) for reg in (0.0, 0.05))
    assert exact.energy_ <= soft.energy_
    for i, couplings in enumerate(soft.couplings_):
        for plan in couplings.values():
            assert (plan > 0).sum() > len(plan) or (i == 0 and schedule == "joint")  # the reference keeps its neurons
            np.testing.assert_allclose(plan.sum(0), 1 / plan.shape[1])


def test_a_tensor_that_all_parents_share_pins_its_neurons():
    class Text(torch.nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table, self.a, self.b = torch.nn.Embedding.from_pretrained(table), torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(self.table(x)))).mean(1)

    torch.manual_seed(0)
    table = torch.randn(9, 6)
    models = [Text(table), Text(table)]
    fusion = WassersteinFusion(example_inputs=(torch.arange(8).view(2, 4),), correction=None).fit(models)
    np.testing.assert_array_equal(fusion.couplings_[1]["table"], np.eye(6) / 6)
    torch.testing.assert_close(fusion.fused_model_.table.weight, table)


@pytest.mark.parametrize("seed", range(3))
def test_one_model_into_a_narrower_target_settles(seed):
    """Clustering: the mean of a cluster moves its neurons, and another fit from there finds nothing lower."""
    model = randomised(MLP([4, 12, 3]), np.random.default_rng(seed))
    with torch.no_grad():
        model.linears[1].weight *= 4
    options = {"target_widths": 0.5, "symmetry": "permutation", "random_state": 0}
    once = WassersteinFusion(correction=None, **options).fit([model])
    again = WassersteinFusion(init=once.fused_model_, correction=None, **options).fit([model])
    assert again.energy_ >= once.energy_ * (1 - 1e-6)


def test_couplings_of_equal_plans_and_different_mass_differ():
    mass = np.full((3, 3), 1 / 9)
    assert not Plan(np.zeros((3, 3)), mass).same_as(Plan(np.zeros((3, 3)), np.eye(3) / 3))
