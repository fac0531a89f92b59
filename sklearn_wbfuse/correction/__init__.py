"""What follows the alignment: statistics recomputed on data."""

from .batchnorm import recompute_batchnorm

__all__ = ["recompute_batchnorm"]
