"""The energy against its definition, with the 4-way tensor built in full."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.barycenter.energy import carried, cost, energy, mean_target
from sklearn_wbfuse.barycenter.view import Feature
from sklearn_wbfuse.couplings import Coupling
from sklearn_wbfuse.transport import round_to_marginals

FEATURES = [
    Feature("first", ("a",), ("out",), (1.0,)),
    Feature("second", ("b", "a"), ("out", "in"), (1.0, -1.0), 0.7),
    Feature("bias", ("b",), ("out",), (1.0,)),
    Feature("recurrent", ("b", "b"), ("out", "in"), (1.0, -1.0), 2.0),
    Feature("last", ("b",), ("in",), (-1.0,)),
]


def problem(seed, target=(4, 3), source=(5, 2)):
    rng = np.random.default_rng(seed)
    size, own = dict(zip("ab", target, strict=True)), dict(zip("ab", source, strict=True))

    def arrays(sizes):
        return [torch.as_tensor(rng.normal(size=(*[sizes[g] for g in f.groups], 2))) for f in FEATURES]

    plans = {g: Coupling(round_to_marginals(rng.random((size[g], own[g])) + 1e-3)) for g in "ab"}
    return arrays(size), arrays(own), plans


def by_definition(targets, models, plans):
    """E = sum alpha (prod_out n / prod_in n) <(D - D^i)^2, tensor product of plans>, with D = T prod_in n."""
    total = 0.0
    for feature, t, s in zip(FEATURES, targets, models, strict=True):
        factor, dense_t, dense_s = 1.0, t.numpy().copy(), s.numpy().copy()
        for axis, role in enumerate(feature.roles):
            n, n_source = t.shape[axis], s.shape[axis]
            factor *= n if role == "out" else 1 / n
            if role == "in":
                dense_t, dense_s = dense_t * n, dense_s * n_source
        for at in itertools.product(*(range(n) for n in t.shape[:-1])):
            for of in itertools.product(*(range(n) for n in s.shape[:-1])):
                mass = np.prod([plans[g].plan[q, r] for g, q, r in zip(feature.groups, at, of, strict=True)])
                total += feature.alpha * factor * mass * ((dense_t[at] - dense_s[of]) ** 2).sum()
    return total


@pytest.mark.parametrize("source", [(5, 2), (4, 3), (2, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_the_energy_is_its_definition(seed, source):
    targets, model, plans = problem(seed, source=source)
    moved = [carried(f, a, plans) for f, a in zip(FEATURES, model, strict=True)]
    assert energy(FEATURES, targets, [model], [moved], [1.0]) == pytest.approx(by_definition(targets, model, plans))


@pytest.mark.parametrize("group", ["a", "b"])
def test_the_cost_matrix_holds_the_groups_share_of_the_energy(group):
    targets, model, plans = problem(0)
    matrix = cost(group, FEATURES, targets, model, plans).numpy()
    share = 0.0
    for f, t, s in zip(FEATURES, targets, model, strict=True):
        if group in f.groups:
            share += f.groups.count(group) * energy([f], [t], [[s]], [[carried(f, s, plans)]], [1.0])
    assert (matrix * plans[group].plan).sum() == pytest.approx(share)


def test_cost_differences_are_energy_differences():
    """For a group that stands once in every tensor the energy is linear in its plan."""
    targets, model, plans = problem(1)
    other = {**plans, "a": problem(2)[2]["a"]}
    matrix = cost("a", FEATURES, targets, model, plans).numpy()
    values = [by_definition(targets, model, p) for p in (plans, other)]
    assert ((other["a"].plan - plans["a"].plan) * matrix).sum() == pytest.approx(values[1] - values[0])


@given(st.integers(0, 1000))
def test_the_mean_of_carried_models_is_the_best_target(seed):
    _, one, plans = problem(seed)
    _, two, others = problem(seed + 1)
    weights = [0.3, 0.7]
    moved = [[carried(f, a, p) for f, a in zip(FEATURES, m, strict=True)] for m, p in ((one, plans), (two, others))]
    best = mean_target(moved, weights)
    lowest = energy(FEATURES, best, [one, two], moved, weights)
    rng = np.random.default_rng(seed)
    nudged = [t + 0.1 * torch.as_tensor(rng.normal(size=t.shape)) for t in best]
    assert energy(FEATURES, nudged, [one, two], moved, weights) > lowest


def test_permutations_are_carried_as_gathers():
    rng = np.random.default_rng(0)
    _, model, _ = problem(0, source=(4, 3))
    index = {"a": Coupling(index=rng.permutation(4)), "b": Coupling(index=rng.permutation(3))}
    dense = {g: Coupling(c.plan) for g, c in index.items()}
    for f, a in zip(FEATURES, model, strict=True):
        torch.testing.assert_close(carried(f, a, index), carried(f, a, dense))
