r"""Corrections that give every channel the parents' statistics: REPAIR for n models, and running statistics of batch norms.

Averaged networks have smaller activations than their parents. With :math:`\mu, \sigma` the mean and standard deviation of a
channel,

.. math:: y' = \sigma^* \frac{y - \mu(y)}{\sigma(y)} + \mu^*, \qquad
    \mu^* = \sum_i \lambda_i \mu(y^i), \quad \sigma^* = \sum_i \lambda_i \sigma(y^i)

over the parents' aligned channels :math:`y^i` on the same inputs (K. Jordan et al., "REPAIR", ICLR 2023, for two models), folded
into the layers' own tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor
from torch.fx import Node

from ..alignment import AlignedParents
from ..exceptions import FusionWarning
from ..execution import Runner
from ..execution.affine import AffineLayer, NormLayer
from ..execution.lockstep import RecordedParent, SiteSamples, run_in_lockstep
from ..execution.sites import RegressionSite, batch_norms, regression_sites, running_statistics
from .base import Correction

__all__ = ["BatchNorm", "Repair"]

_EQUAL = 1e-4
"""Difference of statistics, relative to the standard deviation, up to which channels are unchanged."""

_NONE = 1e-12
"""Standard deviations up to this are rounding errors."""

Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation of every channel."""


class Repair(Correction):
    r"""REPAIR: set mean and standard deviation of every layer's channels to the weighted mean of the parents'.

    A batch norm is part of the layer before it, and layers of one sum are repaired separately. For a layer without a bias only
    standard deviations change. Recurrent layers are unchanged, since their statistics vary over steps.

    Parameters
    ----------
    method : {"forward", "closed"}, default="forward"
        How the mean and standard deviation of a fused channel are determined. "forward" computes them layer by layer, on the
        outputs of the repaired layers before. "closed" never runs the fused network: it assumes that an averaged layer computes
        the average of its parents' outputs, with the parents' correlations :math:`\rho_{ij}` of matched channels,

        .. math:: \mu(y) = \sum_i \lambda_i \mu(y^i), \qquad
            \sigma^2(y) = \sum_{ij} \lambda_i \lambda_j \rho_{ij} \sigma(y^i) \sigma(y^j).

        Errors do not accumulate over layers. For batch norms with running statistics these provide the parents' means and
        standard deviations, so that the inputs only determine :math:`\rho`; norms of other kinds are unchanged. It assumes
        averaged layers, so it has to be the first of a tuple of corrections.
    shift : bool, default=True
        Whether to change means as well. False changes standard deviations only (RESCALE [1]_). In closed form both are the
        same, since the means already are the parents'.
    max_rows : int, default=20000
        Largest number of rows over which statistics are computed; positions of convolutions and sequences are subsampled.

    References
    ----------
    .. [1] X. Qu, S. Horvath, "Vanishing Feature: Diagnosing Model Merging and Beyond", CPAL 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_wbfuse import WassersteinFusion
    >>> from sklearn_wbfuse.datasets import MLP
    >>> parents = [MLP([4, 8, 2]), MLP([4, 8, 2])]
    >>> fusion = WassersteinFusion(correction=Repair("closed"), probe="noise", random_state=0).fit(parents)
    """

    _parameter_constraints: ClassVar[dict] = {
        "method": [StrOptions({"forward", "closed"})],
        "shift": ["boolean"],
        "max_rows": [Interval(Integral, 10, None, closed="left")],
    }

    def __init__(self, method: str = "forward", *, shift: bool = True, max_rows: int = 20000):
        self.method = method
        self.shift = shift
        self.max_rows = max_rows

    def correct(self, fused: Runner, parents: AlignedParents) -> dict[str, Tensor]:
        """Give all layers the parents' statistics; see `Correction`."""
        statistics = _measured if self.method == "forward" else _expected

        def correct(site: RegressionSite) -> None:
            samples = SiteSamples(site, fused, parents)
            for layer in site.layers:
                present_and_target = statistics(layer, samples)
                if present_and_target is not None:
                    _repair(layer, fused.state, *present_and_target, shift=self.shift)

        sites = {node: site for node, site in regression_sites(fused.nodes, fused.parameters).items() if site.layers}
        forward = self.method == "forward"
        reads = _outputs_of_layers if forward else _outputs_around_norms
        run_in_lockstep(fused, parents, sites, correct, reads=reads, runs_fused=forward)
        return fused.state


def _measured(layer: AffineLayer, samples: SiteSamples) -> tuple[Statistics, Statistics]:
    """Return the statistics of a layer on the fused network's activations, and its target statistics."""
    matrix, offset = layer.affine(samples.fused.state)
    n_batches = samples.fused.n_batches
    outputs = ((samples.inputs(layer, batch) @ matrix.mT).transpose(0, 1).flatten(1) for batch in range(n_batches))
    present = _moments(outputs)
    return (present.mean + offset.flatten(), present.standard_deviation), _target_statistics(layer, samples)


def _expected(layer: AffineLayer, samples: SiteSamples) -> tuple[Statistics, Statistics] | None:
    """Return the same statistics in closed form, for a layer that computes the mean of its parents' outputs."""
    names = running_statistics(layer, samples.fused.parameters)
    if names:
        return _expected_after_norm(names, layer, samples)
    if isinstance(layer, NormLayer):
        return None
    present = _moments_of_mean(samples, layer.end, layer.labelled, [torch.ones(())] * len(samples.parents))
    return (present.mean, present.standard_deviation), _target_statistics(layer, samples)


def _expected_after_norm(names: Mapping[str, str], layer: AffineLayer, samples: SiteSamples) -> tuple[Statistics, Statistics]:
    """Return the statistics after a batch norm, whose running statistics are those of its inputs.

    The norm reads the mean of the outputs of the parents' layers or, if no layer precedes it, outputs that are repaired.
    """
    parents, axis = samples.parents, (names["mean"], 0)
    running = [tensors["var"].sqrt() for tensors in _norm_tensors(names, samples)]
    target = _fitted_statistics(layer, samples)
    inputs = parents.mean_rows(running, axis, magnitude=True)
    if layer.norm is not None:
        measured = [_moments_of(samples, p, layer.node).standard_deviation for p in parents]
        factors = [_ratio(r, m) for r, m in zip(running, measured, strict=True)]
        of_mean = _moments_of_mean(samples, layer.node, axis, factors)
        # Channels that are constant on these inputs have unknown correlations.
        unknown = [((r > _NONE) & (m <= _NONE)).double() for r, m in zip(running, measured, strict=True)]
        inputs = torch.where(parents.mean_rows(unknown, axis, magnitude=True) > 0, inputs, of_mean.standard_deviation)
    norm = {key: samples.fused.state[name].double() for key, name in names.items()}
    return (target[0], inputs * _gain(norm, layer.eps)), target


def _gain(norm: Mapping[str, Tensor], eps: float) -> Tensor:
    """Return the factor by which a batch norm multiplies standard deviations."""
    return norm.get("weight", torch.ones_like(norm["var"])).abs() / (norm["var"] + eps).sqrt()


def _repair(layer: AffineLayer, state: dict[str, Tensor], present: Statistics, target: Statistics, *, shift: bool) -> None:
    """Fold the change from present to target statistics into a layer's tensors."""
    matrix, offset = layer.affine(state)
    ratio, mean = _ratio(target[1], present[1]), target[0] if shift else present[0]
    if bool(((ratio - 1).abs() < _EQUAL).all() and ((mean - present[0]).abs() <= _EQUAL * target[1]).all()):
        return
    without_offset = present[0] - offset.flatten()
    new_matrix, new_offset = matrix * ratio.view(*offset.shape, 1), mean - without_offset * ratio
    moments = without_offset * ratio, (present[1] * ratio).square()
    layer.write(state, new_matrix.to(matrix), *(t.view(offset.shape).to(matrix) for t in (new_offset, *moments)))


class BatchNorm(Correction):
    r"""Set the running statistics of batch norms such that their outputs have the parents' statistics.

    On rows of data these are the statistics that the parents' own norms were fitted to, means :math:`\beta` and standard
    deviations :math:`|\gamma|`, and only the fused network runs; on other inputs the parents are run and measured.

    The running variance becomes :math:`(\gamma \sigma(x) / \sigma^*)^2` and the running mean
    :math:`\mu(x) - (\mu^* - \beta) \sqrt{\sigma^2} / \gamma`. On data these are close to the statistics of the fused network's
    own activations (`recompute_batchnorm`).

    Parameters
    ----------
    max_rows : int, default=20000
        See `Repair`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_wbfuse import WassersteinFusion
    >>> parents = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2)]
    >>> fusion = WassersteinFusion(correction=BatchNorm(), random_state=0).fit(parents)
    """

    _parameter_constraints: ClassVar[dict] = {"max_rows": [Interval(Integral, 10, None, closed="left")]}

    def __init__(self, *, max_rows: int = 20000):
        self.max_rows = max_rows

    def correct(self, fused: Runner, parents: AlignedParents) -> dict[str, Tensor]:
        """Set the running statistics of all batch norms; see `Correction`."""
        sites = batch_norms(fused.nodes, fused.parameters)
        if not sites:
            warnings.warn(
                "correction='batchnorm' has no effect, since the network has no batch norm with running statistics. Use 'repair' "
                "or 'regression'.",
                FusionWarning,
                stacklevel=2,
            )

        def correct(site: RegressionSite) -> None:
            _set_running_statistics(site.layers[0], SiteSamples(site, fused, parents), target_statistics)

        on_data = all(p.on_data for p in parents)
        target_statistics = _fitted_statistics if on_data else _target_statistics
        reads = None if on_data else _outputs_of_layers
        run_in_lockstep(fused, parents, sites, correct, reads=reads, runs_parents=not on_data)
        return fused.state


def _set_running_statistics(
    layer: AffineLayer, samples: SiteSamples, target_statistics: Callable[[AffineLayer, SiteSamples], Statistics]
) -> None:
    """Set the running statistics of one batch norm."""
    state, names = samples.fused.state, layer.norm_names
    n_batches = samples.fused.n_batches
    inputs = _moments(samples.of(layer.node.args[0], batch) for batch in range(n_batches))  # type: ignore[arg-type]
    mean, standard_deviation = target_statistics(layer, samples)
    gain = state[names["weight"]].double() if "weight" in names else torch.ones_like(mean)
    bias = state[names["bias"]].double() if "bias" in names else torch.zeros_like(mean)
    old_mean, old_var = (state[names[name]].double() for name in ("mean", "var"))
    old_deviation = (old_var + layer.eps).sqrt()
    ratio = _ratio(standard_deviation, inputs.standard_deviation / old_deviation * gain.abs())
    shift = mean - (inputs.mean - old_mean) / old_deviation * gain - bias
    differs = (gain != 0) & (((ratio - 1).abs() >= _EQUAL) | (shift.abs() > _EQUAL * standard_deviation))
    new_mean = inputs.mean - (mean - bias) * (old_deviation / ratio) / torch.where(gain == 0, 1.0, gain)
    new_var = ((old_deviation / ratio).square() - layer.eps).clamp_min(0.0)
    for name, old, new in (("mean", old_mean, new_mean), ("var", old_var, new_var)):
        state[names[name]] = torch.where(differs, new, old).to(state[names[name]])


def _target_statistics(layer: AffineLayer, samples: SiteSamples) -> Statistics:
    """Return the weighted means of the parents' measured statistics, in the target's neurons."""
    moments = [_moments_of(samples, p, layer.end) for p in samples.parents]
    mean = samples.parents.mean_rows([m.mean for m in moments], layer.labelled)
    return mean, samples.parents.mean_rows([m.standard_deviation for m in moments], layer.labelled, magnitude=True)


def _fitted_statistics(layer: AffineLayer, samples: SiteSamples) -> Statistics:
    """Return the weighted means of the statistics that the parents' batch norms were fitted to, in the target's neurons."""
    tensors = _norm_tensors(running_statistics(layer, samples.fused.parameters), samples)
    mean = samples.parents.mean_rows([t.get("bias", torch.zeros_like(t["mean"])) for t in tensors], layer.labelled)
    deviations = [t["var"].sqrt() * _gain(t, layer.eps) for t in tensors]
    return mean, samples.parents.mean_rows(deviations, layer.labelled, magnitude=True)


def _norm_tensors(names: Mapping[str, str], samples: SiteSamples) -> list[dict[str, Tensor]]:
    """Return the tensors of every parent's batch norm, by their roles."""
    return [{key: p.recording.state[name].double() for key, name in names.items()} for p in samples.parents]


def _outputs_of_layers(site: RegressionSite) -> list[Node]:
    """Return the outputs of the layers of a site."""
    return [layer.end for layer in site.layers]


def _outputs_around_norms(site: RegressionSite) -> list[Node]:
    """Return the outputs of the layers of a site, before and after their norms."""
    return [node for layer in site.layers for node in (layer.node, layer.end)]


class _Moments:
    """Mean and standard deviation of channels, accumulated over batches of rows."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Add rows of shape (positions, channels)."""
        rows = rows.double()
        n, mean = self.n + len(rows), rows.mean(0)
        between_means = (mean - self.mean.to(mean)).square() * (self.n * len(rows) / n)
        self.squares = self.squares.to(mean) + (rows - mean).square().sum(0) + between_means
        self.mean = self.mean.to(mean) + (mean - self.mean.to(mean)) * (len(rows) / n)
        self.n = n

    @property
    def standard_deviation(self) -> Tensor:
        """The square root of the mean squared difference from the mean."""
        return (self.squares / self.n).sqrt()


def _moments(batches: Iterable[Tensor]) -> _Moments:
    moments = _Moments()
    for rows in batches:
        moments.add(rows)
    return moments


def _moments_of(samples: SiteSamples, parent: RecordedParent, node: Node) -> _Moments:
    """Return the moments of a parent's value, in its own neurons."""
    return _moments(samples.of_parent(parent, node, batch) for batch in range(samples.fused.n_batches))


def _moments_of_mean(samples: SiteSamples, node: Node, labelled: tuple[str, int], factors: Sequence[Tensor]) -> _Moments:
    """Return the moments of the weighted mean of the parents' values times factors, in the target's neurons."""

    def mean(batch: int) -> Tensor:
        pairs = zip(samples.parents, factors, strict=True)
        return samples.parents.mean_rows([(samples.of_parent(p, node, batch) * f).double() for p, f in pairs], labelled)

    return _moments(mean(batch) for batch in range(samples.fused.n_batches))


def _ratio(target: Tensor, present: Tensor) -> Tensor:
    """Return the factor from present to target standard deviations; 1 if either of them is 0."""
    is_usable = (present > _NONE) & (target > _NONE)
    return torch.where(is_usable, target / torch.where(is_usable, present, 1.0), 1.0)
