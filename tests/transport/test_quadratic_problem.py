"""The Gromov-Wasserstein step against its definition, against POT, and against exhaustive search."""

import itertools

import numpy as np
import ot
import pytest
import torch
from conformance.solvers import SolverConformance
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.network.couplings import Permutation, Plan
from sklearn_wbfuse.transport import Quadratic, Term, round_to_marginals, solve_quadratic
from sklearn_wbfuse.transport.quadratic_problem import Iterate, exchanges

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(2, 8)


def random_problem(seed, n, m, *, signable=True, gates=2, device="cpu"):
    """A term for each combination of axes that change sign and axes that do not."""
    rng = np.random.default_rng(seed)
    odd = itertools.product((False, True), repeat=2) if signable else [(False, False)]
    terms = [
        Term(
            torch.as_tensor(rng.normal(size=(n, n, gates))).to(device),
            torch.as_tensor(rng.normal(size=(m, m, gates))).to(device),
            o,
            rng.random() + 0.1,
        )
        for o in odd
    ]
    return Quadratic(rng.normal(size=(n, m)), terms, rng.normal(size=(n, m)) if signable else None), rng


def random_coupling(rng, n, m, *, signable=True):
    mass = round_to_marginals(rng.random((n, m)) + 1e-3)
    return Plan(mass * rng.uniform(-1, 1, (n, m)) if signable else mass, mass)


def by_definition(problem, coupling):
    mass, signed = coupling.mass, coupling.plan
    value = sum((c * p).sum() for c, p in zip(problem.linear, (mass, signed), strict=False))
    for t in problem.terms:
        x, y = (signed if odd else mass for odd in t.odd)
        value -= t.weight * np.einsum("abk,ai,ijk,bj->", t.target.cpu().numpy(), x, t.source.cpu().numpy(), y)
    return value


@given(seeds, sizes, sizes)
def test_value_and_gradient_are_those_of_the_definition(device, seed, n, m):
    problem, rng = random_problem(seed, n, m, device=device)
    one, two = (random_coupling(rng, n, m) for _ in range(2))
    iterate, toward = Iterate(one, problem), Iterate(two, problem)
    assert problem.value(iterate) == pytest.approx(by_definition(problem, one))
    middle = iterate.mixed(toward, 0.3)
    assert problem.value(middle) == pytest.approx(by_definition(problem, Plan(middle.pair[1], middle.pair[0])))
    slope = sum(((b - a) * g).sum() for a, b, g in zip(iterate.pair, toward.pair, problem.gradient(iterate), strict=True))
    assert (problem.value(iterate.mixed(toward, 1e-6)) - problem.value(iterate)) / 1e-6 == pytest.approx(
        slope, rel=1e-3, abs=1e-3
    )


@given(seeds, sizes)
def test_permutations_are_worth_what_their_dense_plans_are(device, seed, n):
    problem, rng = random_problem(seed, n, n, device=device)
    coupling = Permutation(rng.permutation(n), rng.choice([-1.0, 1.0], n))
    assert problem.value(Iterate(coupling, problem)) == pytest.approx(by_definition(problem, coupling))


@given(seeds, sizes, st.booleans())
def test_exchanges_are_differences_of_the_objective(device, seed, n, signable):
    problem, rng = random_problem(seed, n, n, signable=signable, device=device)
    index, signs = rng.permutation(n), rng.choice([-1.0, 1.0], n) if signable else np.ones(n)
    before = Permutation(index, signs)
    change = exchanges(problem, Iterate(before, problem))
    for u, v in itertools.combinations(range(n), 2):
        order = np.arange(n)
        order[[u, v]] = v, u
        after = Permutation(index[order], signs[order])
        assert change[u, v] == pytest.approx(by_definition(problem, after) - by_definition(problem, before), abs=1e-9)


@given(seeds, sizes, sizes, st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
def test_never_worse_than_the_conditional_gradient_of_pot(seed, n, m, share, equal):
    """Fused Gromov-Wasserstein with asymmetric matrices, from the same start."""
    m = n if equal else m
    rng = np.random.default_rng(seed)
    cost, a, b = rng.random((n, m)), rng.normal(size=(n, n)), rng.normal(size=(m, m))
    p, q = np.full(n, 1 / n), np.full(m, 1 / m)
    start = random_coupling(rng, n, m, signable=False)
    theirs = ot.gromov.fused_gromov_wasserstein(
        cost, a, b, p, q, "square_loss", symmetric=False, alpha=share, G0=start.plan, max_iter=1000, tol_rel=1e-12, tol_abs=1e-12
    )
    term = Term(torch.as_tensor(a)[..., None], torch.as_tensor(b)[..., None], (False, False), 2 * share)
    problem = Quadratic((1 - share) * cost, [term])
    ours = solve_quadratic(problem, start, max_iter=1000, tol=1e-14)
    assert problem.value(Iterate(ours, problem)) <= problem.value(Iterate(Plan(theirs), problem)) + 1e-8


@given(seeds, st.integers(2, 5), st.booleans())
def test_permutations_come_close_to_the_best_of_all(device, seed, n, signable):
    """Several starts on problems small enough to try every signed permutation."""
    problem, rng = random_problem(seed, n, n, signable=signable, gates=1, device=device)
    starts = [random_coupling(rng, n, n, signable=signable) for _ in range(20)]
    solutions = [solve_quadratic(problem, s, permutation=True) for s in starts]
    assert all(c.is_permutation for c in solutions)
    flips = list(itertools.product((-1.0, 1.0), repeat=n)) if signable else [(1.0,) * n]
    values = [
        by_definition(problem, Permutation(np.array(index), np.array(signs)))
        for index in itertools.permutations(range(n))
        for signs in flips
    ]
    best = min(problem.value(Iterate(c, problem)) for c in solutions)
    assert best <= min(values) + 0.05 * (max(values) - min(values)) + 1e-9


@given(seeds, sizes, st.booleans())
def test_a_permuted_copy_is_found_from_its_linear_term(device, seed, n, signable):
    rng = np.random.default_rng(seed)
    h, x = rng.normal(size=(n, n)), rng.normal(size=(n, 3))
    index, signs = rng.permutation(n), rng.choice([-1.0, 1.0], n) if signable else np.ones(n)
    moved = np.empty_like(h)
    moved[np.ix_(index, index)] = h * np.outer(signs, signs)
    inputs = np.empty_like(x)
    inputs[index] = x * signs[:, None]
    products = 2 * n * x @ inputs.T
    squares = n * ((x**2).sum(1)[:, None] + (inputs**2).sum(1)[None])
    cost, signed = (squares, products) if signable else (squares - products, None)
    ours, theirs = (torch.as_tensor(matrix)[..., None].to(device) for matrix in (h, moved))
    term = Term(ours, theirs, (signable, signable), 2 * n * n)
    problem = Quadratic(cost, [term], signed)
    solution = solve_quadratic(problem, problem.vertex(problem.linear).coupling, permutation=True)
    np.testing.assert_array_equal(solution.index, index)
    assert np.array_equal(np.ones(n) if solution.signs is None else solution.signs, signs)


@pytest.mark.parametrize("shape", [(6, 6), (5, 7)])
@pytest.mark.parametrize("epsilon", [0.3, 0.05])
def test_entropic_plans_are_stationary_points_of_the_entropic_objective(shape, epsilon):
    """A small step towards any other coupling does not lower it."""
    problem, rng = random_problem(3, *shape, signable=False)
    solution = solve_quadratic(problem, random_coupling(rng, *shape, signable=False), epsilon, tol=1e-12, max_iter=500)

    def objective(plan):
        return by_definition(problem, Plan(plan)) + epsilon * (plan * np.log(np.maximum(plan, 1e-300))).sum()

    value = objective(solution.plan)
    for _ in range(20):
        other = random_coupling(rng, *shape, signable=False).plan
        assert objective(0.98 * solution.plan + 0.02 * other) >= value - 2e-4 * abs(value)


@given(seeds, st.sampled_from([(4, 4), (5, 3)]))
def test_a_smaller_epsilon_has_a_lower_objective(device, seed, shape):
    problem, rng = random_problem(seed, *shape, device=device)
    start = random_coupling(rng, *shape)
    entropic = solve_quadratic(problem, start, 10.0)
    assert entropic.marginal_error() < 1e-3
    exact = solve_quadratic(problem, entropic)
    assert by_definition(problem, exact) <= by_definition(problem, entropic) + 1e-9


class TestLinearProblem(SolverConformance):
    """Without terms it is a transport problem like any other."""

    def solve(self, cost):
        return solve_quadratic(Quadratic(cost, []), Plan(np.full(cost.shape, 1 / cost.size)), tol=1e-14)
