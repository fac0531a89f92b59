"""The estimators, one file each, over one small base."""

from .agreement import Agreement
from .averaging import VanillaAveraging
from .data import FusionInput
from .wasserstein import WassersteinFusion

__all__ = ["Agreement", "FusionInput", "VanillaAveraging", "WassersteinFusion"]
