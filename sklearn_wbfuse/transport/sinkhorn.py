r"""Entropic transport: Sinkhorn's iteration, stabilised, from large to small regularisation.

.. math:: \Pi_{ts} = \exp\big((f_t + g_s - C_{ts}) / \varepsilon\big), \qquad
    f_t = \varepsilon \log \tfrac1n - \varepsilon \log \sum_s e^{(g_s - C_{ts}) / \varepsilon}, \quad
    g_s = \varepsilon \log \tfrac1m - \varepsilon \log \sum_t e^{(f_t - C_{ts}) / \varepsilon}.

Each :math:`\varepsilon` begins with one such step in the log domain and goes on with scalings u, v of the kernel that this
leaves, which are taken into f and g before they grow large (Schmitzer, 2019), and overrelaxed (Thibault et al., 2021). POT's
`sinkhorn_stabilized` does not overrelax, and takes three to four times as long for 400 neurons of an MLPNet at an
:math:`\varepsilon` of 1e-3 of the largest cost: 75 ms for 20 to 30 ms. Starting from the potentials of the time before takes a
layerwise fit of the MLPNets from 0.30 to 0.22 s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Potentials", "sinkhorn"]

_OVERRELAXED = 1.8
"""Exponent of a scaling's change while the marginal error falls, less after it has risen; 1 is Sinkhorn's own."""

_LARGEST = 1e12
"""Scalings beyond this are taken into the potentials."""

_EVERY = 10
"""Iterations between two looks at the marginal error."""


class Potentials:
    """Potentials f and g of the last problem, from which the next one starts."""

    def __init__(self) -> None:
        self.f: Tensor | None = None
        self.g: Tensor | None = None


def sinkhorn(cost: Tensor, epsilon: float, start: Potentials, tol: float, max_iter: int = 20_000) -> tuple[Tensor, float]:
    r"""Plan of two uniform measures of least :math:`\langle C, \Pi \rangle + \varepsilon \sum \Pi \log \Pi`.

    Parameters
    ----------
    cost : Tensor of shape (n, m), double precision
    epsilon : float
    start : Potentials
        Of a similar problem, if any; replaced by those that are found.
    tol : float
        L1 error of the marginals.
    max_iter : int

    Returns
    -------
    plan : Tensor
    error : float
        The L1 error that is left.
    """
    span = float(cost.max() - cost.min())
    if start.f is not None and start.g is not None:
        plan, error = _at(cost, epsilon, start, tol, max_iter // 10)
        if error <= tol:
            return plan, error
    start.f, start.g = cost.new_zeros(cost.shape[0]), cost.new_zeros(cost.shape[1])
    scale = max(epsilon, span / 4)
    while scale > epsilon:
        _at(cost, scale, start, 0.1, 100)
        scale = max(epsilon, scale / 4)
    return _at(cost, epsilon, start, tol, max_iter)


def _at(cost: Tensor, epsilon: float, start: Potentials, tol: float, max_iter: int) -> tuple[Tensor, float]:
    """Iterate at one regularisation."""
    n, m = cost.shape
    f, g = _transformed(cost, epsilon, start.g)  # type: ignore[arg-type]
    kernel = _kernel(cost, f, g, epsilon)
    u, v = torch.ones_like(f), torch.ones_like(g)
    error, omega, most = math.inf, 1.0, _OVERRELAXED
    for k in range(max_iter + 1):
        rows = kernel @ v
        if k % _EVERY == 0 or k == max_iter:
            columns = u @ kernel
            before, error = error, float((u * rows - 1 / n).abs().sum() + (v * columns - 1 / m).abs().sum())
            if error <= tol:
                break
            size = float(torch.cat([u, v]).log().abs().max())
            if not size <= math.log(_LARGEST):
                if math.isfinite(size):
                    f, g = f + epsilon * u.log(), g + epsilon * v.log()
                else:  # the kernel underflowed
                    (f, g), error = _transformed(cost, epsilon, g), math.inf
                kernel, u, v = _kernel(cost, f, g, epsilon), torch.ones_like(f), torch.ones_like(g)
                rows = kernel.sum(1)
            most = 1 + (most - 1) / 2 if error > before else most
            omega = most if error < before < math.inf else 1.0
        change = 1 / (n * rows * u)
        u = u * (change if omega == 1 else change**omega)
        change = 1 / (m * (u @ kernel) * v)
        v = v * (change if omega == 1 else change**omega)
    start.f, start.g = f + epsilon * u.log(), g + epsilon * v.log()
    return u[:, None] * kernel * v, error


def _transformed(cost: Tensor, epsilon: float, g: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration in the log domain."""
    f = -epsilon * (torch.logsumexp((g - cost) / epsilon, 1) + math.log(cost.shape[0]))
    return f, -epsilon * (torch.logsumexp((f[:, None] - cost) / epsilon, 0) + math.log(cost.shape[1]))


def _kernel(cost: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    return ((f[:, None] + g - cost) / epsilon).exp_()
