"""Plain averaging of parameters, the baseline that every fusion must beat."""

from __future__ import annotations

from ..alignment import Identity
from .base import BaseFusion
from .roles import Roles

__all__ = ["VanillaAveraging"]


class VanillaAveraging(BaseFusion):
    r"""Average parameters without alignment, :math:`T_p = \sum_i \lambda_i T^i_p` (FedAvg).

    Parameters
    ----------
    weights : list of float, optional
        The weights :math:`\lambda_i` of the models; equal by default.
    correction : None, str, correction or tuple of them, default=None
        As in `WassersteinFusion`. It shows the effect of a correction without alignment.
    probe : {"auto", "noise", "data"} or Probe, default="auto"
        Inputs for the correction.
    example_inputs : tuple of Tensor, Tensor or mapping, optional
        Inputs for the discovery, as in `WassersteinFusion`.
    device : str or torch.device, optional
        The device of computation; the models' own by default.
    random_state : int, RandomState or None, default=None
        Random state of the probe.
    verbose : int

    Attributes
    ----------
    agreement_ : Agreement or None
        How often the fused network and its parents predict the same, on held-out samples of the probe. Prints as a table of
        `with_parents`, one number for each, and `among_parents`. Without a correction it is measured on first access.
    agreement_reason_ : str or None
        The reason why there is no `agreement_`.
    fused_model_ : Module
    couplings_ : list of Couplings
        Identities.
    graph_ : NetworkSpec
    energy_ : float
        The energy of the unaligned models, comparable with that of ``WassersteinFusion(symmetry="permutation")``.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    >>> fused = VanillaAveraging().fit([a, b]).fused_model_
    >>> torch.allclose(fused.weight, (a.weight + b.weight) / 2)
    True
    """

    def roles(self) -> Roles:
        """Compose the identity and the weighted mean."""
        return Roles(Identity())
