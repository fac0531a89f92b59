"""What follows the alignment, or serves it: activations of parents, and layers brought to what the parents compute."""

from .activations import activation_features
from .alongside import Parent
from .batchnorm import recompute_batchnorm
from .probe import Probe, coloured, mixed, repeated, with_tokens
from .regression import Regression
from .statistics import BatchNorm, Repair

__all__ = [
    "CORRECTIONS",
    "BatchNorm",
    "Parent",
    "Probe",
    "Regression",
    "Repair",
    "activation_features",
    "coloured",
    "mixed",
    "recompute_batchnorm",
    "repeated",
    "with_tokens",
]

CORRECTIONS = {"batchnorm": BatchNorm, "repair": Repair, "regression": Regression}
"""Corrections by the names that fusions know them by."""
