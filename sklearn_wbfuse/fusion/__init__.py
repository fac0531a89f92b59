"""The estimators, one file each, over one small base."""

from ..data import FusionInput
from .agreement import Agreement
from .base import BaseFusion
from .roles import Roles
from .vanilla import VanillaAveraging
from .wasserstein import WassersteinFusion

__all__ = ["Agreement", "BaseFusion", "FusionInput", "Roles", "VanillaAveraging", "WassersteinFusion"]
