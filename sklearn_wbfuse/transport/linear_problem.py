"""Linear optimal transport between uniform measures."""

from __future__ import annotations

import warnings

import numpy as np

from ..exceptions import FusionWarning, TransportError
from ..network.couplings import Coupling, Permutation, Plan
from .assignment import Prices, assignment, centred
from .sinkhorn import Potentials, sinkhorn

__all__ = ["entropic", "exact", "round_to_marginals", "solve"]

MARGINAL_TOL = 1e-3
"""L1 marginal error at which the iteration for entropic plans stops."""


def solve(
    cost: np.ndarray,
    reg: float = 0.0,
    signed: np.ndarray | None = None,
    *,
    epsilon: float | None = None,
    start: Potentials | None = None,
) -> Coupling:
    r"""Compute the coupling of least cost of two uniform measures.

    .. math:: \min_{\Pi \in \Gamma(1/n, 1/m)} \langle C, \Pi \rangle + \varepsilon \sum_{ts} \Pi_{ts} \log \Pi_{ts},
        \qquad \varepsilon = \mathrm{reg} \cdot \max |C - \text{means of its rows and columns}|

    With a signed part S each source is doubled, :math:`\{v, -v\}`, with the costs :math:`C - S` and :math:`C + S`: an exact
    plan chooses the better of the two signs, an entropic one mixes them.

    Parameters
    ----------
    cost : ndarray of shape (n, m)
    reg : float
        Entropic regularisation relative to the largest cost after the means of rows and columns are subtracted, which do not
        affect the optimum; 0 is exact.
    signed : ndarray of shape (n, m), optional
    epsilon : float, optional
        The absolute regularisation, instead of `reg`.
    start : Potentials, optional
        Potentials of a similar problem with `reg` > 0; replaced by those of this one.

    Returns
    -------
    Coupling
        A permutation if n = m and reg = 0.

    Raises
    ------
    TransportError
        If a cost is not finite, or the solver loses mass.

    Examples
    --------
    >>> import numpy as np
    >>> solve(np.array([[3.0, 0.0], [0.0, 3.0]])).index
    array([1, 0])
    """
    if epsilon is None and reg > 0:
        _check_finite(cost)
        scale = largest(cost, signed)
        epsilon = reg * scale
        if signed is None and scale <= 1e-14 * np.abs(cost).max():
            return Plan(np.full(cost.shape, 1 / cost.size))  # all plans have the same cost
    epsilon = epsilon or 0.0
    if signed is None:
        return entropic(cost, epsilon, start) if epsilon > 0 else exact(cost)
    size = np.abs(signed)
    if not epsilon > 0:
        coupling = exact(cost - size)
        if isinstance(coupling, Permutation):
            return Permutation(coupling.index, _sign(signed[np.arange(len(cost)), coupling.index]))
        return Plan(coupling.plan * _sign(signed), coupling.plan)
    coupling = entropic(cost - size - epsilon * np.log1p(np.exp(-2 * size / epsilon)), epsilon, start)
    return Plan(coupling.plan * np.tanh(signed / epsilon), coupling.plan)


def largest(cost: np.ndarray, signed: np.ndarray | None = None) -> float:
    """Return the largest cost of either sign after the means of rows and columns are subtracted; `reg` is relative to it."""
    return float((np.abs(centred(cost)) + (0 if signed is None else np.abs(signed))).max())


def _sign(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, -1.0, 1.0)


def _shifted(cost: np.ndarray) -> np.ndarray:
    """Shift and scale costs to [0, 1], which the solvers need and which does not change the optimum."""
    cost = np.asarray(cost, dtype=np.float64)
    _check_finite(cost)
    cost = cost - cost.min()
    top = cost.max()
    return cost / top if top > 0 else cost


def _check_finite(cost: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        total = cost.sum()  # four times as fast as checking each entry
    if not np.isfinite(total) and not np.isfinite(cost).all():
        raise TransportError(
            f"The cost matrix must be finite. Got NaN or infinite entries in shape {cost.shape}; look for "
            "huge weights in the models."
        )


def exact(cost: np.ndarray, prices: Prices | None = None) -> Coupling:
    """Solve exactly: as an assignment for equal sizes, by the network simplex otherwise; see `solve` and `assignment`."""
    rows, columns = cost.shape
    if rows == columns:
        _check_finite(cost)
        return Permutation(assignment(cost, prices))
    import ot  # imported here: it loads every backend that it finds, half of scikit-learn, and networkx

    cost = _shifted(cost)
    # With integer masses the vertices of the polytope are integer, and no source is split without need.
    common = np.gcd(rows, columns)
    supply, demand = np.full(rows, columns / common), np.full(columns, rows / common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = ot.emd(supply, demand, cost, numItermax=10_000_000, check_marginals=False)
    plan = np.asarray(plan) / supply.sum()
    coupling = Plan(plan)
    if coupling.marginal_error() > 1e-9:
        raise TransportError(
            f"The network simplex returned a plan of shape {cost.shape} with a marginal error of {coupling.marginal_error():.1e}."
        )
    return coupling


def entropic(cost: np.ndarray, epsilon: float, start: Potentials | None = None) -> Coupling:
    """Solve by Sinkhorn's iteration to an L1 marginal error of 1e-3, and round to both marginals; see `solve`."""
    _check_finite(cost)
    if not float(np.ptp(cost)):
        return Plan(np.full(cost.shape, 1 / cost.size))
    plan, error = sinkhorn(np.asarray(cost, dtype=np.float64), epsilon, start or Potentials(), MARGINAL_TOL)
    if not error <= MARGINAL_TOL:
        warnings.warn(
            f"Sinkhorn at an epsilon of {epsilon / float(np.ptp(cost)):.1e} of the largest difference of costs did not reach a "
            f"marginal error of {MARGINAL_TOL:g} on a cost of shape {cost.shape}; its plan was rounded to the marginals. "
            "A larger reg, or reg=0, is safer.",
            FusionWarning,
            stacklevel=2,
        )
    return Plan(round_to_marginals(np.nan_to_num(plan)))


def round_to_marginals(plan: np.ndarray) -> np.ndarray:
    """Nearest feasible plan by Altschuler, Weed and Rigollet (2017), Algorithm 2, for uniform marginals.

    Rows, then columns, are scaled down to at most their mass; what is missing is added as a product.
    """
    rows, columns = plan.shape
    plan = plan * np.minimum(1, (1 / rows) / np.maximum(plan.sum(1), 1e-300))[:, None]
    plan = plan * np.minimum(1, (1 / columns) / np.maximum(plan.sum(0), 1e-300))
    missing_rows, missing_columns = np.maximum(1 / rows - plan.sum(1), 0), np.maximum(1 / columns - plan.sum(0), 0)
    total = missing_rows.sum()
    return plan + np.outer(missing_rows, missing_columns) / total if total > 0 else plan
