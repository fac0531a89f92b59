"""Linear optimal transport between uniform measures."""

from __future__ import annotations

import warnings

import numpy as np
import ot
from scipy.optimize import linear_sum_assignment

from ..couplings import Coupling
from ..exceptions import FusionWarning, TransportError

__all__ = ["entropic", "exact", "round_to_marginals", "solve"]

MARGINAL_TOL = 1e-3
"""Entropic plans are iterated until their L1 marginal error is below this."""


def solve(cost: np.ndarray, reg: float = 0.0, signed: np.ndarray | None = None, *, epsilon: float | None = None) -> Coupling:
    r"""Coupling of two uniform measures of least cost.

    .. math:: \min_{\Pi \in \Gamma(1/n, 1/m)} \langle C, \Pi \rangle + \varepsilon \sum_{ts} \Pi_{ts} \log \Pi_{ts},
        \qquad \varepsilon = \mathrm{reg} \cdot \max |C|

    With a signed part S each source is there twice, :math:`\{v, -v\}`, at the costs :math:`C - S` and :math:`C + S`: an exact
    plan takes the better of the two signs, an entropic one both in their proportion.

    Parameters
    ----------
    cost : ndarray of shape (n, m)
    reg : float
        Entropic regularisation relative to the largest cost; 0 is exact.
    signed : ndarray of shape (n, m), optional
    epsilon : float, optional
        The regularisation itself instead of `reg`.

    Returns
    -------
    Coupling
        A permutation where n = m and reg = 0.

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
    if epsilon is None:
        epsilon = reg * largest(cost, signed)
    if signed is None:
        return entropic(cost, epsilon) if epsilon > 0 else exact(cost)
    size = np.abs(signed)
    if not epsilon > 0:
        found = exact(cost - size)
        if found.index is not None:
            return Coupling(index=found.index, signs=_sign(signed[np.arange(len(cost)), found.index]))
        return Coupling(found.plan * _sign(signed), found.plan)
    found = entropic(cost - size - epsilon * np.log1p(np.exp(-2 * size / epsilon)), epsilon)
    return Coupling(found.plan * np.tanh(signed / epsilon), found.plan)


def largest(cost: np.ndarray, signed: np.ndarray | None = None) -> float:
    """The largest cost, of either sign, to which `reg` is relative."""
    return float((np.abs(cost) + (0 if signed is None else np.abs(signed))).max())


def centred(cost: np.ndarray) -> np.ndarray:
    """Without row and column offsets, which say nothing of which neurons belong together."""
    cost = cost - cost.mean(1, keepdims=True)
    return cost - cost.mean(0, keepdims=True)


def _sign(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, -1.0, 1.0)


def _shifted(cost: np.ndarray) -> np.ndarray:
    """Costs in [0, 1]: subtracting a constant and dividing by one moves no optimum, and the solvers need it."""
    cost = np.asarray(cost, dtype=np.float64)
    if not np.isfinite(cost).all():
        raise TransportError(
            f"The cost matrix of shape {cost.shape} has NaN or infinite entries; look for huge weights in the models."
        )
    cost = cost - cost.min()
    top = cost.max()
    return cost / top if top > 0 else cost


def exact(cost: np.ndarray) -> Coupling:
    """Assignment for equal sizes, network simplex otherwise; see `solve`."""
    cost = _shifted(cost)
    rows, columns = cost.shape
    if rows == columns:
        return Coupling(index=linear_sum_assignment(centred(cost))[1])  # strong offsets slow the assignment down tenfold
    # Integer masses: vertices of the polytope are then integer, and no source is split without need.
    common = np.gcd(rows, columns)
    supply, demand = np.full(rows, columns / common), np.full(columns, rows / common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = ot.emd(supply, demand, cost, numItermax=10_000_000, check_marginals=False)
    plan = np.asarray(plan) / supply.sum()
    coupling = Coupling(plan)
    if coupling.marginal_error() > 1e-9:
        raise TransportError(
            f"The network simplex returned a plan of shape {cost.shape} with a marginal error of {coupling.marginal_error():.1e}."
        )
    return coupling


def entropic(cost: np.ndarray, epsilon: float) -> Coupling:
    """Stabilised Sinkhorn with epsilon scaling, stopped at an L1 marginal error of 1e-3 and rounded; see `solve`."""
    span = float(np.ptp(cost))
    scaled = _shifted(cost)
    rows, columns = scaled.shape
    if not span:
        return Coupling(np.full(scaled.shape, 1 / scaled.size))
    target = epsilon / span
    a, b = np.full(rows, 1 / rows), np.full(columns, 1 / columns)
    stop = MARGINAL_TOL / columns**0.5  # POT stops on the L2 error of the columns; rows are exact after each iteration
    eps, potentials = max(target, 1.0), None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        while True:
            limit = 20_000 if eps == target else 100
            plan, log = ot.bregman.sinkhorn_stabilized(
                a, b, scaled, eps, numItermax=limit, stopThr=stop, warmstart=potentials, print_period=10, log=True
            )
            if eps == target or not np.isfinite(plan).all():
                break
            eps, potentials = max(target, eps / 4), log["warmstart"]
        if not _fits(plan):  # the kernel underflowed: the log domain is slow and sure
            plan = ot.bregman.sinkhorn_log(a, b, scaled, target, numItermax=100_000, stopThr=stop)
    if not _fits(plan):
        warnings.warn(
            f"Sinkhorn at an epsilon of {target:.1e} of the largest difference of costs did not reach a marginal error of "
            f"{MARGINAL_TOL:g} on a cost of shape {scaled.shape}; its plan was rounded to the marginals. A larger reg, or reg=0, "
            "is safer.",
            FusionWarning,
            stacklevel=2,
        )
    return Coupling(round_to_marginals(np.nan_to_num(plan)))


def _fits(plan: np.ndarray) -> bool:
    return bool(np.isfinite(plan).all()) and Coupling(plan).marginal_error() <= MARGINAL_TOL


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
