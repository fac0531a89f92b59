"""Pictures of a fusion and of searches over fusions. Matplotlib is imported when something is drawn."""

from .coupling import CouplingDisplay
from .interpolation import InterpolationDisplay
from .plane import LossPlaneDisplay
from .probes import ProbeDisplay
from .search import GridSearchDisplay

__all__ = ["CouplingDisplay", "GridSearchDisplay", "InterpolationDisplay", "LossPlaneDisplay", "ProbeDisplay"]
