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
    """Brings the activations of a fused network closer to its parents': abstract.

    Parameters are those of a scikit-learn estimator; saved fusions refer to a correction by the name of its class. A network
    that computes what its parents compute is unchanged.

    Attributes
    ----------
    max_rows : int
        Number of positions at which the parents are recorded.
    uses_mixtures : bool
        Whether mixed rows are added if there are few rows of data.
    """

    max_rows: int = MAX_ROWS
    uses_mixtures: bool = False
    _parameter_constraints: ClassVar[dict] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ESTIMATORS[cls.__name__] = cls

    @abstractmethod
    def correct(self, fused: Runner, parents: AlignedParents) -> dict[str, Tensor]:
        """Correct a fused network.

        Parameters
        ----------
        fused : Runner
            The fused network on the inputs of the probe, to be run once. ``fused.state`` holds its tensors, which may be
            replaced.
        parents : AlignedParents
            The parents; `sklearn_wbfuse.execution.run_in_lockstep` records them on the same inputs.

        Returns
        -------
        dict of str to Tensor
            All tensors of the corrected network.
        """
