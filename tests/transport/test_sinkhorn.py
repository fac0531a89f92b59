"""Sinkhorn's iteration against POT's in the log domain, from potentials that are far off."""

import numpy as np
import ot
import pytest

from sklearn_wbfuse.transport.sinkhorn import Potentials, iterate, sinkhorn

RNG = np.random.default_rng(0)
COST = ((RNG.normal(size=(25, 1, 4)) - RNG.normal(size=(20, 4))) ** 2).sum(2)
COST /= np.ptp(COST)


def best(epsilon):
    a, b = (np.full(n, 1 / n) for n in COST.shape)
    return ot.bregman.sinkhorn_log(a, b, COST, epsilon, numItermax=200_000, stopThr=1e-12)


def distances(epsilon, g):
    """Of the plan from these potentials to the best plan, and to that which the potentials found lead to."""
    plan, error, found = iterate(COST, epsilon, g, 1e-8, 100_000)
    assert error <= 1e-8
    again, _, _ = iterate(COST, epsilon, found, 1e-8, 1)
    return np.abs(plan - best(epsilon)).sum(), np.abs(again - plan).sum()


@pytest.mark.parametrize("epsilon", [0.1, 0.02, 0.005])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_scalings_that_grow_large_go_into_the_potentials(epsilon, offset):
    far = offset * np.linspace(0, 60 * epsilon, COST.shape[1])  # columns of e^-60 of the largest: within the range of doubles
    assert max(distances(epsilon, far)) < 1e-6


@pytest.mark.parametrize("epsilon", [0.02, 0.005])
def test_a_kernel_that_underflows_begins_again(epsilon):
    far = np.linspace(0, 5000 * epsilon, COST.shape[1])  # whole columns are 0
    assert max(distances(epsilon, far)) < 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_start_that_leads_nowhere_is_left(value):
    start = Potentials()
    start.g = np.resize([value, 0.0], COST.shape[1])
    plan, error = sinkhorn(COST, 0.02, start, 1e-6)
    assert error <= 1e-6
    assert np.isfinite(start.g).all() and abs(start.g.mean()) < 1e-12
    np.testing.assert_allclose(plan, best(0.02), atol=1e-5)


def test_potentials_that_would_swallow_the_costs_are_left():
    start = Potentials()
    start.g = 1e15 * np.random.default_rng(1).normal(size=COST.shape[1])
    np.testing.assert_allclose(sinkhorn(COST, 0.02, start, 1e-6)[0], best(0.02), atol=1e-5)
