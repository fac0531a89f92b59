import numpy as np
import ot
import pytest
from conformance.solvers import SolverConformance
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.exceptions import TransportError
from sklearn_wbfuse.transport import Potentials, exact, round_to_marginals, solve


class TestExact(SolverConformance):
    def solve(self, cost):
        return solve(cost)

    def test_equal_sizes_give_a_permutation(self):
        assert exact(np.random.default_rng(0).random((9, 9))).is_permutation

    @given(st.integers(2, 6), st.integers(2, 4), st.integers(0, 1000))
    def test_integer_multiples_split_no_target(self, size, factor, seed):
        plan = exact(np.random.default_rng(seed).random((size * factor, size))).plan
        assert ((plan > 0).sum(1) == 1).all()


class TestEntropic(SolverConformance):
    gap = 0.05
    rounding = 1e-3  # the marginal error at which iterations stop

    def solve(self, cost):
        return solve(cost, reg=1e-3 * np.ptp(cost) / max(np.abs(cost).max(), 1e-300) if np.ptp(cost) else 1e-3)

    def test_reg_is_relative_to_the_largest_cost(self):
        cost = np.random.default_rng(0).random((20, 20))
        np.testing.assert_allclose(solve(cost, 0.1).plan, solve(1e6 * cost, 0.1).plan, atol=1e-6)

    def test_reg_does_not_see_offsets_of_rows_and_columns(self):
        rng = np.random.default_rng(0)
        cost = rng.random((20, 15))
        moved = cost + 5 * rng.random((20, 1)) + 5 * rng.random(15)
        assert np.abs(solve(cost, 0.1).plan - solve(moved, 0.1).plan).sum() < 5e-3

    @pytest.mark.parametrize("epsilon", [0.003, 0.01, 0.1, 1.0])
    @pytest.mark.parametrize("kind", ["uniform", "offsets", "permuted"])
    def test_the_objective_is_that_of_pot_in_the_log_domain(self, epsilon, kind):
        rng = np.random.default_rng(1)
        cost = rng.random((30, 20))
        if kind == "offsets":
            cost = cost + 3 * rng.random((30, 1))
        elif kind == "permuted":
            cost = ((rng.normal(size=(30, 1, 4)) - rng.normal(size=(20, 4))) ** 2).sum(2)
            cost /= np.ptp(cost)
        a, b = (np.full(n, 1 / n) for n in cost.shape)

        def objective(plan):
            return (plan * cost).sum() + epsilon * np.sum(plan * np.log(np.maximum(plan, 1e-300)))

        best = ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=100_000, stopThr=1e-12)
        coupling = solve(cost, epsilon=epsilon)
        assert coupling.marginal_error() < 1e-9
        # what is missing of the marginals is added as a product, at mean costs
        assert abs(objective(coupling.plan) - objective(best)) <= 1e-3 * cost.mean()

    def test_the_potentials_of_a_similar_problem_are_a_start(self):
        rng = np.random.default_rng(0)
        cost = rng.random((40, 30))
        other, known = cost + 0.01 * rng.random((40, 30)), Potentials()
        solve(other, epsilon=0.01, start=known)
        warm, cold = solve(cost, epsilon=0.01, start=known), solve(cost, epsilon=0.01)
        assert np.abs(warm.plan - cold.plan).sum() < 0.02
        assert (warm.plan * cost).sum() == pytest.approx((cold.plan * cost).sum(), rel=1e-3)

    def test_potentials_of_another_problem_do_no_harm(self):
        rng, known = np.random.default_rng(0), Potentials()
        solve(1e3 * rng.random((30, 30)), epsilon=0.1, start=known)
        cost = rng.random((30, 30))
        assert np.abs(solve(cost, epsilon=0.01, start=known).plan - solve(cost, epsilon=0.01).plan).sum() < 0.02

    def test_a_small_reg_comes_close_to_the_exact_plan(self):
        cost = np.random.default_rng(2).random((15, 15))
        gaps = [(solve(cost, reg).plan * cost).sum() - (exact(cost).plan * cost).sum() for reg in (0.1, 0.01, 0.001)]
        assert gaps[0] > gaps[1] > gaps[2] > -1e-9 and gaps[2] < 5e-3

    def test_equal_costs_give_the_product(self):
        np.testing.assert_allclose(solve(np.ones((4, 3)), 0.1).plan, 1 / 12)


@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 1000))
def test_rounding_reaches_both_marginals_and_moves_little(rows, columns, seed):
    rng = np.random.default_rng(seed)
    plan = rng.random((rows, columns))
    plan /= plan.sum()
    rounded = round_to_marginals(plan)
    error = np.abs(plan.sum(1) - 1 / rows).sum() + np.abs(plan.sum(0) - 1 / columns).sum()
    assert (rounded >= 0).all()
    np.testing.assert_allclose(rounded.sum(1), 1 / rows)
    np.testing.assert_allclose(rounded.sum(0), 1 / columns)
    assert np.abs(rounded - plan).sum() <= 2 * error + 1e-9  # Altschuler et al. (2017), Lemma 7


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_costs_that_are_not_finite_have_their_error(bad):
    with pytest.raises(TransportError, match=r"shape \(2, 2\)"):
        solve(np.array([[0, bad], [1, 2.0]]))
