"""Rows of data that travel with models, and the outputs and scores of networks on them."""

from .fusion_input import FusionInput, noise_like, rows_of
from .objective import Objective
from .scores import (
    are_probabilities,
    as_array,
    check_labels,
    class_scores,
    holds_targets,
    outputs,
    outputs_for,
    score_outputs,
    sum_to_one,
)

__all__ = [
    "FusionInput",
    "Objective",
    "are_probabilities",
    "as_array",
    "check_labels",
    "class_scores",
    "holds_targets",
    "noise_like",
    "outputs",
    "outputs_for",
    "rows_of",
    "score_outputs",
    "sum_to_one",
]
