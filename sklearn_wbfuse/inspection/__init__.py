"""Displays of fusions and of searches over fusions. Matplotlib is only imported when something is drawn."""

from .coupling import CouplingDisplay
from .interpolation import InterpolationDisplay
from .plane import LossPlaneDisplay
from .probes import ProbeDisplay
from .search import GridSearchDisplay

__all__ = ["CouplingDisplay", "GridSearchDisplay", "InterpolationDisplay", "LossPlaneDisplay", "ProbeDisplay"]
