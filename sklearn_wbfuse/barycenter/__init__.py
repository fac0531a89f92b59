"""The energy over couplings and target, its costs and closed forms, and the schedules that lower it."""

from .carry import carry_state, mean_scales, mean_state
from .gauge import balance, scaled
from .schedules import Problem, Solution, joint, layerwise, match, match_all, random_start
from .view import features

__all__ = [
    "Problem",
    "Solution",
    "balance",
    "carry_state",
    "features",
    "joint",
    "layerwise",
    "match",
    "match_all",
    "mean_scales",
    "mean_state",
    "random_start",
    "scaled",
]
