"""What a fusion is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..alignment import Aligner
from ..averaging import Averager, WeightedMean

__all__ = ["Roles"]


@dataclass(frozen=True)
class Roles:
    """A fusion as a composition; what corrects it is the parameter `correction` of every estimator.

    Attributes
    ----------
    aligner : Aligner
        Which neurons of the parents belong together, and how many the target has.
    averager : Averager
        What is made of parents that are aligned.
    """

    aligner: Aligner
    averager: Averager = field(default_factory=WeightedMean)
