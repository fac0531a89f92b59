"""Transport problems: cost arrays in, couplings out. The only place that imports POT and scipy.optimize."""

from .assignment import Prices
from .blocks import BlockCoupledTerm, assemble, check_multiple, solve_nested
from .linear_problem import exact, largest, round_to_marginals, solve
from .quadratic_problem import Quadratic, Term, solve_quadratic
from .sinkhorn import Potentials

__all__ = [
    "BlockCoupledTerm",
    "Potentials",
    "Prices",
    "Quadratic",
    "Term",
    "assemble",
    "check_multiple",
    "exact",
    "largest",
    "round_to_marginals",
    "solve",
    "solve_nested",
    "solve_quadratic",
]
