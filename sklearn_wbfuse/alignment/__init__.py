"""The energy over couplings and target, its costs and closed forms, and the schedules that lower it."""

from .activations import activation_features, activations_of
from .alignment import Alignment, Network, blocks_within, pinned_groups
from .carry import carry_map, carry_state, check_blocks, mean_scales, mean_state
from .gauge import balance, scaled
from .problem import Problem, Solution, random_start
from .schedules import layerwise, match, match_all
from .sweeps import blurred, joint
from .view import Feature, features, with_activations

__all__ = [
    "Alignment",
    "Feature",
    "Network",
    "Problem",
    "Solution",
    "activation_features",
    "activations_of",
    "balance",
    "blocks_within",
    "blurred",
    "carry_map",
    "carry_state",
    "check_blocks",
    "features",
    "joint",
    "layerwise",
    "match",
    "match_all",
    "mean_scales",
    "mean_state",
    "pinned_groups",
    "random_start",
    "scaled",
    "with_activations",
]
