"""Fuse trained PyTorch networks of different seeds, data and widths into one, as a scikit-learn estimator."""

from .fusion import VanillaAveraging, WassersteinFusion
from .graph import discover
from .layers import declare, register_rule, register_sizes
from .model_selection import FusionInput, compare

__version__ = "0.1.0"

__all__ = [
    "FusionInput",
    "VanillaAveraging",
    "WassersteinFusion",
    "compare",
    "declare",
    "discover",
    "register_rule",
    "register_sizes",
]
