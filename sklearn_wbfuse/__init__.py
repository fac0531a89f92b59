"""Fuse trained PyTorch networks of different seeds, data and widths into one, as a scikit-learn estimator."""

from .fusion import VanillaAveraging, WassersteinFusion
from .graph import discover
from .layers import declare, register_rule, register_sizes
from .model_selection import FusionClassifier, FusionInput, FusionRegressor, compare
from .persistence import load

__version__ = "0.1.0"

__all__ = [
    "FusionClassifier",
    "FusionInput",
    "FusionRegressor",
    "VanillaAveraging",
    "WassersteinFusion",
    "compare",
    "declare",
    "discover",
    "load",
    "register_rule",
    "register_sizes",
]
