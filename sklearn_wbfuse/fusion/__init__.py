"""The estimators, one file each, over one small base."""

from ..data.fusion_input import FusionInput
from .agreement import Agreement
from .vanilla import VanillaAveraging
from .wasserstein import WassersteinFusion

__all__ = ["Agreement", "FusionInput", "VanillaAveraging", "WassersteinFusion"]
