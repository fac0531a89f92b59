"""Fusions under scikit-learn's searches: rows that carry models along, predictors, and tables of controls."""

from ..data import FusionInput
from .comparison import compare
from .predictors import FusionClassifier, FusionRegressor

__all__ = ["FusionClassifier", "FusionInput", "FusionRegressor", "compare"]
