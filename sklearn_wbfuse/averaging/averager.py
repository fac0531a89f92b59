"""The role of averagers, and the weighted mean."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..alignment import AlignedParents
from ..data import Objective

__all__ = ["Averager", "WeightedMean"]


class Averager(ABC):
    """Averages aligned parents into the tensors of the fused network: abstract.

    The neurons of the parents correspond already, whatever the aligner, and an averager may weight every entry of every tensor
    separately. The average of equal states is that state.
    """

    @abstractmethod
    def average(self, parents: AlignedParents, objective: Objective | None = None) -> dict[str, Tensor]:
        """Average aligned parents.

        Parameters
        ----------
        parents : AlignedParents
            The parents of nonzero weight: ``parent.tensor(name)`` is in the target's neurons, ``parents.mixture`` computes means.
        objective : Objective, optional
            Labelled rows, if there are any.

        Returns
        -------
        dict of str to Tensor
            All tensors of the target.
        """


class WeightedMean(Averager):
    r"""The closed-form target :math:`T_p = \sum_i \lambda_i A^i_p` (eq. 9 of arXiv:2210.06671, with input axes split)."""

    def average(self, parents: AlignedParents, objective: Objective | None = None) -> dict[str, Tensor]:
        """See `Averager`."""
        tensors = parents.target.spec.tensors
        return {n: parents.mixture.mean_tensor([p.tensor(n) for p in parents], tensors[n]) for n in tensors}
