"""What follows the alignment, or serves it: activations of parents, and layers brought to what the parents compute."""

from .activations import activation_features, rows_to_compare, rows_within, units_of
from .alongside import Parent
from .ascent import ascended
from .batchnorm import recompute_batchnorm
from .probe import PROBES, Probe, between, coloured, is_drawn, mixed, procedural, repeated, shares, with_tokens
from .reading import read_as
from .regression import Regression
from .statistics import BatchNorm, Repair

__all__ = [
    "CORRECTIONS",
    "PROBES",
    "BatchNorm",
    "Parent",
    "Probe",
    "Regression",
    "Repair",
    "activation_features",
    "ascended",
    "between",
    "coloured",
    "is_drawn",
    "mixed",
    "procedural",
    "read_as",
    "recompute_batchnorm",
    "repeated",
    "rows_to_compare",
    "rows_within",
    "shares",
    "units_of",
    "with_tokens",
]

CORRECTIONS = {"batchnorm": BatchNorm, "repair": Repair, "regression": Regression}
"""Corrections by the names that fusions know them by."""
