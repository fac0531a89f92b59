"""The energy against its definition, with the 4-way tensor built in full."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.alignment.energy import carried, cost, energy, mean_target
from sklearn_wbfuse.alignment.features import Feature
from sklearn_wbfuse.network.couplings import Permutation, Plan
from sklearn_wbfuse.network.mixture import Mixture
from sklearn_wbfuse.transport import round_to_marginals

FEATURES = [
    Feature("first", ("a",), ("out",), (1.0,), (True,)),
    Feature("second", ("b", "a"), ("out", "in"), (1.0, -1.0), (False, True), 0.7),
    Feature("bias", ("b",), ("out",), (1.0,), (False,)),
    Feature("recurrent", ("b", "b"), ("out", "in"), (1.0, -1.0), (False, True), 2.0),
    Feature("last", ("b",), ("in",), (-1.0,), (True,)),
]


def problem(seed, target=(4, 3), source=(5, 2), device="cpu"):
    rng = np.random.default_rng(seed)
    size, source_size = dict(zip("ab", target, strict=True)), dict(zip("ab", source, strict=True))

    def arrays(sizes):
        return [torch.as_tensor(rng.normal(size=(*[sizes[g] for g in f.groups], 2))).to(device) for f in FEATURES]

    def coupling(shape):
        mass = round_to_marginals(rng.random(shape) + 1e-3)
        return Plan(mass * rng.uniform(-1, 1, shape), mass)

    return arrays(size), arrays(source_size), {g: coupling((size[g], source_size[g])) for g in "ab"}


def by_definition(targets, models, plans):
    """E = sum alpha (prod_out n / prod_in n) <(D - D^i)^2, tensor product of plans>, with D = T prod_in n.

    Each plan couples a target neuron with a source neuron or with its negative; odd axes change sign with it.
    """
    halves = {g: [(c.mass + c.plan) / 2, (c.mass - c.plan) / 2] for g, c in plans.items()}
    total = 0.0
    for feature, t, s in zip(FEATURES, targets, models, strict=True):
        factor, dense_t, dense_s = 1.0, *(array.cpu().numpy().copy() for array in (t, s))
        for axis, role in enumerate(feature.roles):
            n, n_source = t.shape[axis], s.shape[axis]
            factor *= n if role == "out" else 1 / n
            if role == "in":
                dense_t, dense_s = dense_t * n, dense_s * n_source
        for target_index in itertools.product(*(range(n) for n in t.shape[:-1])):
            for of in itertools.product(*(range(n) for n in s.shape[:-1])):
                for flips in itertools.product((0, 1), repeat=len(target_index)):
                    mass = np.prod(
                        [halves[g][k][q, r] for g, k, q, r in zip(feature.groups, flips, target_index, of, strict=True)]
                    )
                    sign = np.prod([-1.0 if k and odd else 1.0 for k, odd in zip(flips, feature.odd, strict=True)])
                    total += feature.alpha * factor * mass * ((dense_t[target_index] - sign * dense_s[of]) ** 2).sum()
    return total


@pytest.mark.parametrize("source", [(5, 2), (4, 3), (2, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_the_energy_is_its_definition(seed, source, device):
    targets, model, plans = problem(seed, source=source, device=device)
    moved = [carried(f, a, plans) for f, a in zip(FEATURES, model, strict=True)]
    assert energy(FEATURES, targets, [model], [moved], Mixture([1.0])) == pytest.approx(by_definition(targets, model, plans))


@pytest.mark.parametrize("group", ["a", "b"])
def test_the_cost_matrix_holds_the_groups_share_of_the_energy(group, device):
    targets, model, plans = problem(0, device=device)
    share = 0.0
    for f, t, s in zip(FEATURES, targets, model, strict=True):
        if group in f.groups:
            share += f.groups.count(group) * energy([f], [t], [[s]], [[carried(f, s, plans)]], Mixture([1.0]))
    assert inner(cost(group, FEATURES, targets, model, plans), plans[group]) == pytest.approx(share)


def inner(costs, plan):
    total, signed = costs
    return (total.cpu().numpy() * plan.mass).sum() - (signed.cpu().numpy() * plan.plan).sum()


def test_cost_differences_are_energy_differences(device):
    """For a group that stands once in every tensor the energy is linear in its plan."""
    targets, model, plans = problem(1, device=device)
    other = {**plans, "a": problem(2)[2]["a"]}
    costs = cost("a", FEATURES, targets, model, plans)
    values = [by_definition(targets, model, p) for p in (plans, other)]
    assert inner(costs, other["a"]) - inner(costs, plans["a"]) == pytest.approx(values[1] - values[0])


@given(st.integers(0, 1000))
def test_the_mean_of_carried_models_is_the_best_target(device, seed):
    _, one, plans = problem(seed, device=device)
    _, two, others = problem(seed + 1, device=device)
    mixture = Mixture([0.3, 0.7])
    moved = [[carried(f, a, p) for f, a in zip(FEATURES, m, strict=True)] for m, p in ((one, plans), (two, others))]
    best = mean_target(moved, mixture)
    lowest = energy(FEATURES, best, [one, two], moved, mixture)
    rng = np.random.default_rng(seed)
    nudged = [t + 0.1 * torch.as_tensor(rng.normal(size=t.shape)).to(device) for t in best]
    assert energy(FEATURES, nudged, [one, two], moved, mixture) > lowest


def test_permutations_are_carried_as_gathers(device):
    rng = np.random.default_rng(0)
    _, model, _ = problem(0, source=(4, 3), device=device)
    index = {g: Permutation(rng.permutation(n), rng.choice([-1.0, 1.0], n)) for g, n in (("a", 4), ("b", 3))}
    dense = {g: Plan(c.plan) for g, c in index.items()}
    for f, a in zip(FEATURES, model, strict=True):
        torch.testing.assert_close(carried(f, a, index), carried(f, a, dense))
