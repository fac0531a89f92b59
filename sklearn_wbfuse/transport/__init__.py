"""Transport problems: cost arrays in, couplings out. The only place that imports POT and scipy.optimize."""

from .linear import exact, largest, round_to_marginals, solve
from .quadratic import Quadratic, Term, solve_quadratic

__all__ = ["Quadratic", "Term", "exact", "largest", "round_to_marginals", "solve", "solve_quadratic"]
