"""Rows of data for scikit-learn's splitters and searches."""

from .fusion.data import FusionInput

__all__ = ["FusionInput"]
