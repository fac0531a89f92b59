"""Neurons in blocks against exhaustive search, and against the same problem solved block by block."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.exceptions import WidthError
from sklearn_wbfuse.transport import BlockCoupledTerm, assemble, exact, solve_nested

seeds = st.integers(0, 2**31 - 1)


def value(costs, couplings):
    total = 0.0
    for (cost, signed), c in zip(costs, couplings, strict=True):
        total += (cost * c.mass).sum() - (0 if signed is None else (signed * c.plan).sum())
    return total


@given(seeds, st.booleans())
def test_no_other_permutation_that_keeps_blocks_is_cheaper(seed, signable):
    rng = np.random.default_rng(seed)
    n, ds = 3, (2, 3)
    block_cost = rng.normal(size=(n, n))
    costs = [(rng.normal(size=(n * d, n * d)), rng.normal(size=(n * d, n * d)) if signable else None) for d in ds]
    blocks, couplings = solve_nested(costs, (n, n), block_cost)
    assert all(c.is_permutation for c in couplings)
    for c, d in zip(couplings, ds, strict=True):
        np.testing.assert_array_equal(c.index.reshape(n, d) // d, np.repeat(blocks.index[:, None], d, 1))
    best = np.inf
    for order in itertools.permutations(range(n)):
        total = block_cost[np.arange(n), order].sum() / n
        for (cost, signed), d in zip(costs, ds, strict=True):
            cheapest = cost if signed is None else cost - np.abs(signed)
            for t, s in enumerate(order):
                pair = cheapest[t * d : (t + 1) * d, s * d : (s + 1) * d]
                total += min(pair[np.arange(d), p].sum() for p in itertools.permutations(range(d))) / (n * d)
        best = min(best, total)
    assert (block_cost * blocks.plan).sum() + value(costs, couplings) == pytest.approx(best)


@given(
    seeds, st.sampled_from([((2, 2), (3, 4)), ((4, 2), (3, 3)), ((4, 2), (2, 4)), ((3, 1), (2, 2))]), st.sampled_from([0.0, 0.01])
)
def test_plans_of_unequal_sizes_keep_blocks_and_marginals(seed, sizes, reg):
    (n, m), (d, d_source) = sizes
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(n * d, m * d_source))
    blocks, (coupling,) = solve_nested([(cost, None)], (n, m), reg=reg)
    assert coupling.marginal_error() < 1e-9
    assert ((blocks.plan > 0).sum(1) == 1).all()
    mass = coupling.plan.reshape(n, d, m, d_source).sum((1, 3))
    np.testing.assert_allclose(mass, blocks.plan, atol=1e-9)


@given(seeds)
def test_one_block_is_a_problem_without_blocks(seed):
    cost = np.random.default_rng(seed).normal(size=(5, 5))
    _, (coupling,) = solve_nested([(cost, None)], (1, 1))
    np.testing.assert_array_equal(coupling.index, exact(cost).index)


def test_blocks_that_are_matched_stay():
    rng = np.random.default_rng(0)
    cost = rng.normal(size=(6, 6))
    blocks, _ = solve_nested([(cost, None)], (3, 3))
    again = assemble((cost, None), blocks)
    assert again.is_permutation and again.shape == (6, 6)


def test_a_target_that_is_no_multiple_has_its_error():
    with pytest.raises(WidthError, match=r"'attn.heads' in the target .*multiple of .* 2\. Got 3"):
        solve_nested([(np.zeros((6, 4)), None)], (3, 2), name="attn.heads")


@given(seeds, st.booleans())
def test_tied_groups_find_a_permuted_copy(seed, signable):
    """Two groups without any cost of their own but that of what ties them would be ambiguous: one has some."""
    rng = np.random.default_rng(seed)
    n, d, e = 3, 3, 2
    target, block_rows = rng.normal(size=(n, d, e, 2)), rng.normal(size=(n * d, 6))
    order = rng.permutation(n)
    inner = [np.array([rng.permutation(size) for _ in range(n)]) for size in (d, e)]
    signs = [rng.choice([-1.0, 1.0], (n, size)) if signable else np.ones((n, size)) for size in (d, e)]
    source, inputs = np.empty_like(target), np.empty((n, d, 6))
    for t, s in enumerate(order):
        block = target[t] * signs[0][t][:, None, None] * signs[1][t][:, None]
        source[s][np.ix_(inner[0][t], inner[1][t])] = block
        inputs[s][inner[0][t]] = block_rows.reshape(n, d, 6)[t] * signs[0][t][:, None]
    products = 2 * n * d * block_rows @ inputs.reshape(n * d, 6).T
    nothing = np.zeros((n * e, n * e))
    costs = [(0 * products, products), (nothing, nothing)] if signable else [(-products, None), (nothing, None)]
    blocks, couplings = solve_nested(costs, (n, n), terms=[BlockCoupledTerm((0, 1), target, source, (signable, signable), 2.0)])
    np.testing.assert_array_equal(blocks.index, order)
    for c, within, sign, size in zip(couplings, inner, signs, (d, e), strict=True):
        np.testing.assert_array_equal(c.index, (order[:, None] * size + within).ravel())
        np.testing.assert_array_equal(np.ones(n * size) if c.signs is None else c.signs, sign.ravel())
