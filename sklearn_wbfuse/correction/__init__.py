"""Corrections of the averaged network, which bring its layers closer to the parents' activations."""

from ..execution import PROBES, Probe
from .base import Correction
from .batchnorm import recompute_batchnorm
from .regression import Regression
from .statistics import BatchNorm, Repair

__all__ = ["CORRECTIONS", "PROBES", "BatchNorm", "Correction", "Probe", "Regression", "Repair", "recompute_batchnorm"]

CORRECTIONS = {"batchnorm": BatchNorm, "repair": Repair, "regression": Regression}
"""Corrections by the names that fusions accept."""
