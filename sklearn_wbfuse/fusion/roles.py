"""What a fusion is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..alignment import Aligner
from ..averaging import Averager, WeightedMean
from ..base import short_text

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

    def __post_init__(self) -> None:
        for name, role in (("aligner", Aligner), ("averager", Averager)):
            if not isinstance(getattr(self, name), role):
                raise TypeError(f"{name} must be an instance of {role.__name__}. Got {short_text(getattr(self, name))}.")
