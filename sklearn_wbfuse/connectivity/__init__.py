"""Networks between networks: points on lines and planes through them, and how well they compute."""

from .evaluation import Judge
from .geometry import affine_weights, plane_coordinates
from .networks import Combinations

__all__ = ["Combinations", "Judge", "affine_weights", "plane_coordinates"]
