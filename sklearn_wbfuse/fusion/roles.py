"""The roles of which a fusion is composed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..alignment import Aligner
from ..averaging import Averager, WeightedMean
from ..base import short_text

__all__ = ["Roles"]


@dataclass(frozen=True)
class Roles:
    """A fusion as a composition of an aligner and an averager; corrections are a parameter of every estimator.

    Attributes
    ----------
    aligner : Aligner
        Determines the sizes of the target and couples the neurons of the parents with it.
    averager : Averager
        Averages the aligned parents.
    """

    aligner: Aligner
    averager: Averager = field(default_factory=WeightedMean)

    def __post_init__(self) -> None:
        for name, role in (("aligner", Aligner), ("averager", Averager)):
            if not isinstance(getattr(self, name), role):
                raise TypeError(f"{name} must be an instance of {role.__name__}. Got {short_text(getattr(self, name))}.")
