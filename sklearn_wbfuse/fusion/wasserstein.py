"""Fusion by Wasserstein barycenters of neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from ..alignment import WassersteinAligner
from .base import BaseFusion
from .roles import Roles

__all__ = ["WassersteinFusion"]


class WassersteinFusion(BaseFusion):
    r"""Fuse trained networks into one by Wasserstein barycenters of their neurons.

    Every neuron group g of model i is coupled with the target's by :math:`\Pi^i_g \in \Gamma(1/n_g, 1/n^i_g)`. Couplings and
    target minimise one energy over all labelled tensors,

    .. math:: E = \sum_i \lambda_i \sum_p \alpha_p \|T_p - \Pi^i(T^i_p)\|^2

    (written for equal widths; eqs. 8 and 10 of [1]_, summed over all tensors). The fused network is the barycenter T, corrected
    layer by layer towards the parents' activations. No data is needed and nothing is trained.

    Parameters
    ----------
    target_widths : None, float, "sum", dict or list, default=None
        Sizes of the target's groups: the widest parent's, a factor of them, the sum of the parents', a dict by group name
        (others as in the widest parent), or a list in the order of `graph_`. Several models can only be fused into a target
        wider than all of them with ``merge="all"``.
    reg : float, default=0.0
        Entropic regularisation :math:`\varepsilon` relative to the largest cost after the means of rows and columns are
        subtracted; 0 is exact. In the joint schedule the exact sweeps are followed by one entropic step, in which the reference
        keeps its couplings.
    alpha_h : float, default=1.0
        Weight of recurrent tensors (W_hh) in the energy; the paper's :math:`\alpha_H` is this times the layer's hidden units
        over its inputs. 0 ignores them, which is the paper's WB variant.
    weights : list of float, optional
        The weights :math:`\lambda_i` of the models; equal by default.
    schedule : {"joint", "layerwise"}, default="joint"
        Sweeps over incoming and outgoing weights after a layerwise start, or only the paper's Algorithms 1 and 2.
    cost : {"auto", "weight", "activation"} or float, default="auto"
        The features by which neurons are compared: their tensors; their activations on the inputs of `probe` [2]_; or a mix with
        this share of activations, scaled to the tensors. "auto" is 0.5 if a correction runs on rows, images, signals or
        sequences, otherwise (noise, tokens, no correction) "weight".
    measure : {"correlation", "distance"}, default="correlation"
        How activations are compared: correlations after the nonlinearity [3]_, or squared distances before it [2]_.
    symmetry : {"auto", "permutation"}, default="auto"
        With "auto" networks are brought to balanced scales before matching, and neurons may be coupled with their negatives,
        if the activations allow it (ReLU; tanh, LSTM and GRU).
    merge : {"auto", "all"}, default="auto"
        For targets wider than every parent: "all" is the paper's barycenter.
    correction : None, {"auto", "batchnorm", "repair", "regression"}, a correction or a tuple of them, default="auto"
        Corrections after the alignment, in order: `BatchNorm`, `Repair` or `Regression` of `sklearn_wbfuse.correction`, by name
        with their defaults or as instances, ``Regression(ridge=0.1)``. "auto" is the regression, on fewer samples for large
        networks; if inputs cannot be drawn, or there are fewer than 5 rows, it warns and does nothing. None is the pure
        barycenter: `fused_model_` is then the weighted mean of the results of `transform`. `couplings_` and `energy_` are those
        of the alignment.
    probe : {"auto", "images", "signals", "sequences", "tokens", "noise", "data"} or Probe, default="auto"
        Inputs for activations and corrections: the unlabelled rows of `fit` if there are any, otherwise inputs drawn for the
        layer that reads them; see `sklearn_wbfuse.correction.Probe`.
    init : "auto", int, "random" or Module, default="auto"
        The start: the neuron order of the parent closest in size, or of the parent with an index, random couplings, or a
        network to match to first.
    n_init : int, default=1
        Number of starts. The start whose corrected network agrees best with the parents is chosen, without a correction that of
        lowest energy; `history_` holds all. Further starts are the other parents' orders, then random couplings. For recurrent
        groups they are the linear costs, these propagated through the recurrent weights, the uniform plan, then perturbed plans.
    max_iter : int, default=100
        Largest number of sweeps.
    tol : float, default=1e-6
        Sweeps stop when the energy falls by less than this fraction.
    example_inputs : tuple of Tensor, Tensor or mapping, optional
        Arguments of ``model(*example_inputs)`` for the discovery, or keyword arguments by name, such as a tokenizer returns. The
        default is the first rows of the data, or a guess from the first layer.
    device : str or torch.device, optional
        The device of computation; the models' own by default. Assignments run on the host.
    random_state : int, RandomState or None, default=None
        Random state of starts, noise, rows and positions.
    n_jobs : int, optional
        Number of starts that run in parallel, or of models of a layer if there is one start.
    verbose : int, default=0
        Log progress with the logger ``sklearn_wbfuse``.

    Attributes
    ----------
    agreement_ : Agreement or None
        How often the fused network and its parents predict the same, on held-out samples of the probe. Prints as a table of
        `with_parents`, one number for each, and `among_parents`. Without a correction it is measured on first access.
    agreement_reason_ : str or None
        The reason why there is no `agreement_`.
    fused_model_ : Module
        A network of the first parent's class, in eval mode.
    couplings_ : list of Couplings
        For each model, a read-only mapping from group name to plan, an array of shape (n_target, n_source). Its entries are
        masses of total 1, negative if a neuron is coupled with the negative of another (with `reg` > 0 both may cancel).
    graph_ : NetworkSpec
        The target's neuron groups; prints as a table.
    energy_ : float
        The energy E with the chosen `cost`, for any schedule.
    n_iter_ : int
        The number of sweeps of the chosen start.
    history_ : list of list of float
        The energies of each start after each sweep.

    See Also
    --------
    VanillaAveraging : The baseline without alignment.

    References
    ----------
    .. [1] A. K. Akash, S. Li, N. Garcia Trillos, "Wasserstein Barycenter-based Model Fusion and Linear Mode Connectivity of
       Neural Networks", arXiv:2210.06671.
    .. [2] S. P. Singh, M. Jaggi, "Model Fusion via Optimal Transport", NeurIPS 2020 (activation-based alignment).
    .. [3] G. Stoica et al., "ZipIt! Merging Models from Different Tasks without Training", ICLR 2024.

    Examples
    --------
    A permuted copy fuses back to the original:

    >>> import copy, torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> a = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> b, order = copy.deepcopy(a), torch.tensor([3, 0, 4, 2, 1])
    >>> b[0].weight.data, b[0].bias.data = a[0].weight.data[order], a[0].bias.data[order]
    >>> b[2].weight.data = a[2].weight.data[:, order]
    >>> fusion = WassersteinFusion().fit([a, b])
    >>> x = torch.randn(3, 4)
    >>> torch.allclose(fusion.fused_model_(x), a(x), atol=1e-6)
    True
    >>> fusion.couplings_[1]["0"].argmax(1)
    array([1, 4, 3, 0, 2])
    """

    _parameter_constraints: ClassVar[dict] = {
        **BaseFusion._parameter_constraints,
        "target_widths": "no_validation",
        "reg": [Interval(Real, 0, None, closed="left")],
        "alpha_h": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"joint", "layerwise"})],
        "cost": [StrOptions({"auto", "weight", "activation"}), Interval(Real, 0, 1, closed="both")],
        "measure": [StrOptions({"correlation", "distance"})],
        "symmetry": [StrOptions({"auto", "permutation"})],
        "merge": [StrOptions({"auto", "all"})],
        "init": [StrOptions({"auto", "random"}), Interval(Integral, 0, None, closed="left"), nn.Module],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        target_widths: Any = None,
        reg: float = 0.0,
        alpha_h: float = 1.0,
        *,
        weights: Sequence[float] | None = None,
        schedule: str = "joint",
        cost: str | float = "auto",
        measure: str = "correlation",
        symmetry: str = "auto",
        merge: str = "auto",
        correction: Any = "auto",
        probe: Any = "auto",
        init: Any = "auto",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-6,
        example_inputs: Any = None,
        device: Any = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        super().__init__(
            weights=weights,
            correction=correction,
            probe=probe,
            example_inputs=example_inputs,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.target_widths = target_widths
        self.reg = reg
        self.alpha_h = alpha_h
        self.schedule = schedule
        self.cost = cost
        self.measure = measure
        self.symmetry = symmetry
        self.merge = merge
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.n_jobs = n_jobs

    def roles(self) -> Roles:
        """Compose the Wasserstein aligner and the weighted mean."""
        params = self.get_params(deep=False)
        return Roles(WassersteinAligner(**{field.name: params[field.name] for field in dataclasses.fields(WassersteinAligner)}))
