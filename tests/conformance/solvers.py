"""What every transport solver must pass. A subclass says how to solve and how close to the optimum it comes."""

import numpy as np
import ot
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

costs = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=st.floats(-1e3, 1e3, width=32))
)


class SolverConformance:
    """Inherit, and set `solve` (cost -> Coupling), `marginal_tol`, `gap` and `rounding`.

    `gap` is the excess over the optimum, relative to the span; `rounding` what the order of sums may change in a cost.
    """

    marginal_tol = 1e-9
    gap = 1e-9
    rounding = 1e-6

    def solve(self, cost):
        raise NotImplementedError

    @given(costs)
    def test_both_marginals_are_uniform_and_the_mass_is_one(self, cost):
        coupling = self.solve(cost)
        plan = coupling.plan
        assert plan.shape == cost.shape and plan.dtype == np.float64
        assert (plan >= 0).all() and abs(plan.sum() - 1) < 1e-9
        assert coupling.marginal_error() <= self.marginal_tol

    @given(costs)
    def test_the_plan_is_as_cheap_as_that_of_pot(self, cost):
        a, b = (np.full(n, 1 / n) for n in cost.shape)
        best = ot.emd2(a, b, cost - cost.min()) + cost.min()
        assert (self.solve(cost).plan * cost).sum() <= best + self.gap * max(np.ptp(cost), 1e-9) + 1e-9

    @given(costs, st.floats(-1e6, 0))
    def test_large_negative_costs_lose_no_mass(self, cost, shift):
        assert abs(self.solve(cost + shift).plan.sum() - 1) < 1e-9

    @given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31 - 1))
    def test_relabelling_the_neurons_relabels_the_plan(self, rows, columns, seed):
        rng = np.random.default_rng(seed)
        cost = rng.random((rows, columns))
        p, q = rng.permutation(rows), rng.permutation(columns)
        moved, plan = self.solve(cost[p][:, q]).plan, self.solve(cost).plan[p][:, q]
        np.testing.assert_allclose((moved * cost[p][:, q]).sum(), (plan * cost[p][:, q]).sum(), atol=self.rounding)

    def test_the_cost_is_not_modified(self):
        cost = np.random.default_rng(0).random((5, 4))
        before = cost.copy()
        self.solve(cost)
        np.testing.assert_array_equal(cost, before)
