"""Couplings: what they do to an axis, composed and undone, against their matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.network.couplings import Coupling, Permutation, Plan, coupling_from

ROLES = ("out", "in", "mass")


def permutation(rng, n, signed=True):
    return Permutation(rng.permutation(n), rng.choice([-1.0, 1.0], n) if signed else None)


def plan(rng, p, q, signed=True):
    """A plan with these marginals: two products of them with an orthogonal shift between; perhaps with signs that cancel."""
    mass = np.outer(p, q)
    if min(len(p), len(q)) > 1:
        (i, k), (j, m) = rng.choice(len(p), 2, replace=False), rng.choice(len(q), 2, replace=False)
        step = rng.uniform(0, 1) * min(mass[i, m], mass[k, j])
        mass[i, j] += step
        mass[k, m] += step
        mass[i, m] -= step
        mass[k, j] -= step
    share = rng.uniform(-1, 1, mass.shape) if signed else 1.0
    uniform = np.allclose(p, 1 / len(p)) and np.allclose(q, 1 / len(q))
    return Plan(mass * share, mass, None if uniform else (p, q))


def masses(rng, n, uniform=False):
    p = np.full(n, 1.0) if uniform else rng.uniform(0.1, 1, n)
    return p / p.sum()


@st.composite
def chains(draw):
    """Two couplings that can be composed, the first of them first; of any kinds."""
    rng, signed = np.random.default_rng(draw(st.integers(0, 2**31 - 1))), draw(st.booleans())
    sizes = [draw(st.integers(1, 5)) for _ in range(3)]
    kinds = draw(st.sampled_from(["permutations", "plans", "uniform plans", "permutation first", "permutation last"]))
    if kinds == "permutations":
        return [permutation(rng, sizes[0], signed) for _ in range(2)]
    uniform = kinds == "uniform plans"
    between = masses(rng, sizes[1], uniform)
    if kinds == "permutation first":
        return [permutation(rng, sizes[1], signed), plan(rng, masses(rng, sizes[2]), between, signed)]
    first = plan(rng, between, masses(rng, sizes[0], uniform), signed)
    if kinds == "permutation last":
        return [first, permutation(rng, sizes[1], signed)]
    return [first, plan(rng, masses(rng, sizes[2], uniform), between, signed)]


def dense(coupling, role, odd):
    """The matrix of the formula, written out."""
    matrix, (p, q) = coupling.plan if odd else coupling.mass, coupling.marginals
    return {"out": matrix / p[:, None], "in": matrix / q[None], "mass": matrix}[role]


@given(chains(), st.sampled_from(ROLES), st.booleans(), st.integers(-3, 2))
def test_an_axis_is_multiplied_by_the_dense_matrix(chain, role, odd, axis):
    for coupling in chain:
        x = torch.randn([coupling.shape[1] if a == axis % 3 else 2 + a for a in range(3)], dtype=torch.float64)
        wanted = np.moveaxis(np.tensordot(dense(coupling, role, odd), x.numpy(), ([1], [axis % 3])), 0, axis % 3)
        np.testing.assert_allclose(coupling.apply(x, axis, role, odd).numpy(), wanted, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(coupling.barycentric_map(role, odd), dense(coupling, role, odd), rtol=1e-10, atol=1e-12)
        assert coupling.marginal_error() < 1e-12


@given(chains(), st.sampled_from(["out", "in"]), st.booleans())
def test_a_composition_is_one_after_the_other(chain, role, odd):
    first, then = chain
    x = torch.randn(first.shape[1], 3, dtype=torch.float64)
    both = then.compose(first)
    torch.testing.assert_close(both.apply(x, 0, role, odd), then.apply(first.apply(x, 0, role, odd), 0, role, odd))
    assert both.is_permutation == (first.is_permutation and then.is_permutation)
    assert both.marginal_error() < 1e-12
    assert Coupling.identity(then.shape[0]).compose(both).same_as(both) and both.compose(Coupling.identity(len(x))).same_as(both)


@given(chains())
def test_inverses(chain):
    for c in chain:
        twice = c.inverse().inverse()
        assert type(twice) is type(c) and twice.same_as(c, 0.0)
        assert (c.inverse().plan == c.plan.T).all() and (c.inverse().mass == c.mass.T).all()
        assert all((a == b).all() for a, b in zip(c.inverse().marginals, c.marginals[::-1], strict=True))
        if c.is_permutation:
            assert c.compose(c.inverse()).is_identity and c.inverse().compose(c).is_identity
    first, then = chain
    assert then.compose(first).inverse().same_as(first.inverse().compose(then.inverse()), 1e-12)


@given(chains())
def test_arrays_make_the_same_coupling(chain):
    for c in chain:
        again = coupling_from(**c.arrays)
        assert type(again) is type(c) and again.same_as(c, 0.0) and repr(again) == repr(c)
        assert all((a == b).all() for a, b in zip(again.marginals, c.marginals, strict=True))


@given(st.integers(1, 6), st.integers(0, 2**31 - 1), st.booleans())
def test_a_permutation_and_its_plan_agree_on_everything(n, seed, signed):
    rng = np.random.default_rng(seed)
    c = permutation(rng, n, signed)
    twin, other = Plan(c.plan, c.mass), permutation(rng, n, signed)
    assert c.same_as(twin) and twin.same_as(c) and c.shape == twin.shape
    assert all((a == b).all() for a, b in zip(c.marginals, twin.marginals, strict=True))
    x = torch.randn(2, n, dtype=torch.float64)
    for role in ROLES:
        for odd in (False, True):
            torch.testing.assert_close(twin.apply(x, 1, role, odd), c.apply(x, 1, role, odd))
    assert twin.inverse().same_as(c.inverse()) and twin.compose(other).same_as(c.compose(other))
    assert other.compose(twin).same_as(other.compose(c)) and c.same_as(other) == twin.same_as(other)
    assert c.is_permutation and not twin.is_permutation


def test_neurons_without_mass_carry_nothing():
    c = Plan(np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]), None, (np.array([1.0, 0.0]), np.array([0.5, 0.5, 0.0])))
    x = torch.arange(1.0, 4.0)
    assert c.apply(x, 0).tolist() == [1.5, 0.0] and c.apply(x, 0, "in").tolist() == [3.0, 0.0]
    assert c.marginal_error() == 0 and torch.isfinite(c.inverse().apply(torch.ones(2), 0)).all()


def test_what_stays_is_the_same_tensor_and_what_is_given_is_not_changed():
    x, mass = torch.randn(3, 2), np.full((3, 3), 1 / 9)
    assert Permutation(np.arange(3), np.ones(3)).apply(x, 0, odd=True) is x and Coupling.identity(3).is_identity
    c = Plan(mass)
    c.apply(x, 0)
    c.plan[:] = 7
    assert (mass == 1 / 9).all() and (c.plan == 1 / 9).all() and not c.is_identity
    with pytest.raises(ValueError, match="plan or an index"):
        coupling_from()
