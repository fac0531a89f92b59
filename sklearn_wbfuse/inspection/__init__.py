"""Pictures of a fusion. Matplotlib is imported when something is drawn."""

from .interpolation import InterpolationDisplay

__all__ = ["InterpolationDisplay"]
