"""Aligned parents in, one state out."""

from .averager import Averager, WeightedMean

__all__ = ["Averager", "WeightedMean"]
