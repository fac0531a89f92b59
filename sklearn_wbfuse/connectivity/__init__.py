"""Networks between networks: points on lines and planes through them, and how well they compute."""

from .evaluation import Evaluator
from .geometry import affine_weights, plane_coordinates
from .networks import AffineNetworks

__all__ = ["AffineNetworks", "Evaluator", "affine_weights", "plane_coordinates"]
