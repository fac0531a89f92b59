"""Transport problems: cost arrays in, couplings out. The only place that imports POT and scipy.optimize."""

from .linear import entropic, exact, round_to_marginals, solve

__all__ = ["entropic", "exact", "round_to_marginals", "solve"]
