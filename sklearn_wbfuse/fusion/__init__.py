"""The estimators, one file each, over one small base."""

from .averaging import VanillaAveraging
from .data import FusionInput
from .wasserstein import WassersteinFusion

__all__ = ["FusionInput", "VanillaAveraging", "WassersteinFusion"]
