"""Networks between networks: points on the lines and planes through them, and their losses and errors."""

from .evaluation import Evaluator
from .geometry import affine_weights, plane_coordinates
from .networks import AffineNetworks

__all__ = ["AffineNetworks", "Evaluator", "affine_weights", "plane_coordinates"]
