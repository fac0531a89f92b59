"""The energy over couplings and target, its costs and closed forms, and the schedules that lower it."""

from .balance import balance, level, scaled
from .carry import carry_state, mean_scales, mean_state
from .energy import energy, mean_target
from .features import features
from .schedules import Problem, Solution, joint, layerwise, match, match_all, random_start

__all__ = [
    "Problem",
    "Solution",
    "balance",
    "carry_state",
    "energy",
    "features",
    "joint",
    "layerwise",
    "level",
    "match",
    "match_all",
    "mean_scales",
    "mean_state",
    "mean_target",
    "random_start",
    "scaled",
]
