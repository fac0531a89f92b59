"""The role of corrections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from sklearn.base import BaseEstimator
from torch import Tensor

from ..alignment import AlignedParents
from ..base import ESTIMATORS, HelpfulMixin
from ..execution import MAX_ROWS, Runner

__all__ = ["Correction"]


class Correction(HelpfulMixin, BaseEstimator, ABC):
    """Brings a fused network closer to what its parents compute: abstract.

    Parameters are those of a scikit-learn estimator; saved fusions know a correction by the name of its class. A network that
    computes what its parents compute is left as it is.

    Attributes
    ----------
    max_rows : int
        Positions at which it looks at parents.
    uses_mixtures : bool
        Whether a few rows of data are made more by mixtures of them.
    """

    max_rows: int = MAX_ROWS
    uses_mixtures: bool = False
    _parameter_constraints: ClassVar[dict] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ESTIMATORS[cls.__name__] = cls

    @abstractmethod
    def correct(self, fused: Runner, parents: AlignedParents) -> dict[str, Tensor]:
        """Correct.

        Parameters
        ----------
        fused : Steps
            The fused network at its start, on the inputs of the probe, to be run once; ``fused.state`` holds its tensors, which
            may be replaced.
        parents : AlignedParents
            They are recorded on the same inputs when `sklearn_wbfuse.execution.run_in_lockstep` asks for it.

        Returns
        -------
        dict of str to Tensor
            All tensors of the corrected network.
        """
