"""Assignments from few entries are as cheap as those of the dense solver."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sklearn_wbfuse.exceptions import TransportError
from sklearn_wbfuse.transport import exact
from sklearn_wbfuse.transport.assignment import Prices, assignment, centred, sparse_assignment


def costs(kind, n, rng):
    a = rng.normal(size=(n, 3 * n // 2))
    if kind == "permuted":
        return -a @ (a[rng.permutation(n)] + rng.normal(size=a.shape)).T
    if kind == "offsets":
        return rng.random((n, n)) + 1e3 * rng.random(n)[:, None] + 1e3 * rng.random(n)
    if kind == "integers":
        return rng.integers(0, 50, (n, n)).astype(float)
    return -a @ rng.normal(size=a.shape).T


@given(st.sampled_from(["random", "permuted", "offsets", "integers"]), st.integers(60, 150), st.integers(0, 2**31 - 1))
def test_few_entries_suffice(kind, n, seed):
    cost = centred(costs(kind, n, np.random.default_rng(seed)))
    found = sparse_assignment(cost.copy())
    found = None if found is None else found[0]
    best = cost[linear_sum_assignment(cost)].sum()
    if found is not None:
        np.testing.assert_array_equal(np.sort(found), np.arange(n))
        assert cost[np.arange(n), found].sum() == pytest.approx(best, abs=1e-9 * np.abs(cost).max())
    assert found is not None or kind == "integers"


@pytest.mark.parametrize("kind", ["random", "permuted", "offsets"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_assignments(kind, dtype):
    cost = costs(kind, 600, np.random.default_rng(0)).astype(dtype)
    index = assignment(cost)
    exact = centred(cost.astype(np.float64))
    best = exact[linear_sum_assignment(exact)].sum()
    assert exact[np.arange(600), index].sum() <= best + (1e-9 if dtype == np.float64 else 1e-4) * abs(best)


@pytest.mark.parametrize("cost", [np.zeros((600, 600)), np.ones((600, 600), dtype=np.float32), -np.eye(600)])
def test_equal_costs(cost):
    index = assignment(cost)
    np.testing.assert_array_equal(np.sort(index), np.arange(600))
    assert cost[np.arange(600), index].sum() == cost.diagonal().sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_an_assignment_that_starts_from_the_last_one(share, dtype):
    """Of costs in the order that was found, a share of whose rows has changed."""
    rng = np.random.default_rng(0)
    first, prices = costs("random", 500, rng).astype(dtype), Prices()
    first = first[:, assignment(first, prices)]
    other = first.copy()
    other[: int(share * 500)] = costs("random", 500, rng)[: int(share * 500)]
    index, kept = assignment(other, prices), prices.columns
    exact = other.astype(np.float64)
    best = exact[linear_sum_assignment(exact)].sum()
    assert exact[np.arange(500), index].sum() <= best + (1e-9 if dtype == np.float64 else 1e-4) * abs(best)
    assert share or (index == np.arange(500)).all()
    reduced = exact[:, index] - kept
    tolerance = (1e-9 if dtype == np.float64 else 1e-4) * np.abs(exact).max()
    assert (reduced >= reduced.diagonal()[:, None] - tolerance).all()  # these potentials prove it


@pytest.mark.parametrize("huge", [1e38, np.inf])
def test_finite_costs_may_have_a_sum_that_is_not(huge):
    cost = np.full((2, 2), huge, dtype=np.float32)
    with contextlib.nullcontext() if huge < np.inf else pytest.raises(TransportError, match="NaN or infinite"):
        assert exact(cost - np.eye(2, dtype=np.float32) * 1e37).is_identity
