r"""Statistics of every channel brought to the parents': running statistics of batch norms, and REPAIR for n models.

Averaged networks have weaker activations than their parents. With :math:`\mu, \sigma` the mean and deviation of a channel,

.. math:: y' = \sigma^* \frac{y - \mu(y)}{\sigma(y)} + \mu^*, \qquad
    \mu^* = \sum_i \lambda_i \mu(y^i), \quad \sigma^* = \sum_i \lambda_i \sigma(y^i)

over the parents' aligned channels :math:`y^i` on the same inputs (K. Jordan et al., "REPAIR", ICLR 2023, for two models), folded
into the layers' own tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor
from torch.fx import Node

from ..alignment import AlignedParents
from ..exceptions import FusionWarning
from ..execution import Runner
from ..execution.affine import AffineLayer, NormLayer
from ..execution.lockstep import SiteSamples, run_in_lockstep
from ..execution.sites import RegressionSite, batch_norms, regression_sites, running_statistics
from .base import Correction

__all__ = ["BatchNorm", "Repair"]

_EQUAL = 1e-4
"""Channels whose statistics differ by less, relative to the deviation, stay as they are."""

_NONE = 1e-12
"""Deviations up to this are rounding."""

Statistics = tuple[Tensor, Tensor]
"""Mean and deviation of every channel."""


class Repair(Correction):
    r"""REPAIR: mean and deviation of every layer's channels become the weighted mean of the parents'.

    A batch norm is part of the layer in front of it, and layers that write into one sum are repaired each. A layer without a
    bias gets the deviations alone. Recurrent layers stay as they are: their statistics change from step to step.

    Parameters
    ----------
    method : {"forward", "closed"}, default="forward"
        Where the mean and deviation of a fused channel come from. "forward" computes them layer by layer, each with what the
        repaired layers before it compute. "closed" never runs the fused network: it takes what an averaged layer computes for
        the average of what its parents compute, with the parents' correlations :math:`\rho_{ij}` of matched channels,

        .. math:: \mu(y) = \sum_i \lambda_i \mu(y^i), \qquad
            \sigma^2(y) = \sum_{ij} \lambda_i \lambda_j \rho_{ij} \sigma(y^i) \sigma(y^j).

        Errors do not add up from layer to layer, and where a batch norm has running statistics these are the parents' means and
        deviations, so that inputs tell :math:`\rho` alone; norms of other kinds stay as they are. It is about averaged layers: in
        a tuple of corrections it comes first.
    shift : bool, default=True
        Whether means are changed too. False leaves them where they are and changes deviations alone (RESCALE [1]_). In closed
        form both are the same, since the means are the parents' already.
    max_rows : int, default=20000
        Largest number of rows over which statistics are taken; of convolutions and sequences positions are drawn.

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
        """Bring all layers to the parents' statistics; see `Correction`."""
        statistics = _measured if self.method == "forward" else _expected

        def correct(site: RegressionSite) -> None:
            rows = SiteSamples(site, fused, parents)
            for layer in site.layers:
                found = statistics(layer, rows)
                if found is not None:
                    _repair(layer, fused.state, *found, shift=self.shift)

        found = {node: e for node, e in regression_sites(fused.nodes, fused.parameters).items() if e.layers}
        forward = self.method == "forward"
        run_in_lockstep(fused, parents, found, correct, reads=_ends if forward else _ends_and_before, runs_fused=forward)
        return fused.state


def _measured(layer: AffineLayer, rows: SiteSamples) -> tuple[Statistics, Statistics]:
    """What a layer has, on what the fused network computes, and what it should have."""
    matrix, offset = layer.affine(rows.fused.state)
    outputs = ((rows.inputs(layer, batch) @ matrix.mT).transpose(0, 1).flatten(1) for batch in range(rows.fused.n_batches))
    own = _moments(outputs)
    return (own.mean + offset.flatten(), own.deviation), _wanted(layer, rows)


def _expected(layer: AffineLayer, rows: SiteSamples) -> tuple[Statistics, Statistics] | None:
    """The same in closed form: what a layer computes is the mean of what the parents compute."""
    names = running_statistics(layer, rows.fused.parameters)
    if names:
        return _expected_behind(names, layer, rows)
    if isinstance(layer, NormLayer):
        return None
    own = _moments_of_mean(rows, layer.end, layer.labelled, [torch.ones(())] * len(rows.parents))
    return (own.mean, own.deviation), _wanted(layer, rows)


def _expected_behind(names: Mapping[str, str], layer: AffineLayer, rows: SiteSamples) -> tuple[Statistics, Statistics]:
    """Behind a batch norm, which knows the deviations of what it reads, and means without a look.

    It reads the mean of what the parents' layers compute, or without a layer in front of it what others compute, repaired.
    """
    parents, read = rows.parents, (names["mean"], 0)
    known = [t["var"].sqrt() for t in _norms(names, rows)]
    wanted = _described(layer, rows)
    inputs = parents.mean_rows(known, read, magnitude=True)
    if layer.norm is not None:
        seen = [_moments_of(rows, p, layer.node).deviation for p in parents]
        joint = _moments_of_mean(rows, layer.node, read, [_ratio(k, s) for k, s in zip(known, seen, strict=True)])
        blind = [((k > _NONE) & (s <= _NONE)).double() for k, s in zip(known, seen, strict=True)]
        # nothing tells how channels go together of which one is constant on these inputs
        inputs = torch.where(parents.mean_rows(blind, read, magnitude=True) > 0, inputs, joint.deviation)
    own = {key: rows.fused.state[name].double() for key, name in names.items()}
    return (wanted[0], inputs * _gain(own, layer.eps)), wanted


def _gain(norm: Mapping[str, Tensor], eps: float) -> Tensor:
    """What a batch norm multiplies deviations by."""
    return norm.get("weight", torch.ones_like(norm["var"])).abs() / (norm["var"] + eps).sqrt()


def _repair(layer: AffineLayer, state: dict[str, Tensor], own: Statistics, wanted: Statistics, *, shift: bool) -> None:
    """Fold the statistics that a layer should have into its tensors."""
    matrix, offset = layer.affine(state)
    ratio, mean = _ratio(wanted[1], own[1]), wanted[0] if shift else own[0]
    if bool(((ratio - 1).abs() < _EQUAL).all() and ((mean - own[0]).abs() <= _EQUAL * wanted[1]).all()):
        return
    before = own[0] - offset.flatten()  # of what the matrix alone gives
    scaled, moved = matrix * ratio.view(*offset.shape, 1), mean - before * ratio
    moments = before * ratio, (own[1] * ratio).square()
    layer.write(state, scaled.to(matrix), *(t.view(offset.shape).to(matrix) for t in (moved, *moments)))


class BatchNorm(Correction):
    r"""Running statistics of batch norms such that what they compute has the parents' statistics.

    On rows of data these are what the parents' own norms were fitted to, means :math:`\beta` and deviations
    :math:`|\gamma|`, and only the fused network runs; on other inputs the parents run and are measured.

    The running variance becomes :math:`(\gamma \sigma(x) / \sigma^*)^2` and the running mean
    :math:`\mu(x) - (\mu^* - \beta) \sqrt{\sigma^2} / \gamma`. On data that is close to the statistics of the fused network's own
    activations (`recompute_batchnorm`).

    Parameters
    ----------
    max_rows : int, default=20000
        As in `Repair`.

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
        """Choose the running statistics of all batch norms; see `Correction`."""
        found = batch_norms(fused.nodes, fused.parameters)
        if not found:
            warnings.warn(
                "correction='batchnorm' does nothing: the network has no batch norm with running statistics. Use 'repair' or "
                "'regression'.",
                FusionWarning,
                stacklevel=2,
            )

        def correct(site: RegressionSite) -> None:
            _recompute(site.layers[0], SiteSamples(site, fused, parents), wanted)

        known = all(p.on_data for p in parents)
        wanted = _described if known else _wanted
        run_in_lockstep(fused, parents, found, correct, reads=None if known else _ends, runs_parents=not known)
        return fused.state


def _recompute(layer: AffineLayer, rows: SiteSamples, wanted: Callable[[AffineLayer, SiteSamples], Statistics]) -> None:
    """Choose the running statistics of one batch norm."""
    state, names = rows.fused.state, layer.norm_names
    own = _moments(rows.of(layer.node.args[0], batch) for batch in range(rows.fused.n_batches))  # type: ignore[arg-type]
    mean, deviation = wanted(layer, rows)
    gain = state[names["weight"]].double() if "weight" in names else torch.ones_like(mean)
    bias = state[names["bias"]].double() if "bias" in names else torch.zeros_like(mean)
    old_mean, old_var = (state[names[name]].double() for name in ("mean", "var"))
    spread = (old_var + layer.eps).sqrt()
    ratio = _ratio(deviation, own.deviation / spread * gain.abs())
    shift = mean - (own.mean - old_mean) / spread * gain - bias
    differs = (gain != 0) & (((ratio - 1).abs() >= _EQUAL) | (shift.abs() > _EQUAL * deviation))
    new_mean = own.mean - (mean - bias) * (spread / ratio) / torch.where(gain == 0, 1.0, gain)
    new_var = ((spread / ratio).square() - layer.eps).clamp_min(0.0)
    for name, old, new in (("mean", old_mean, new_mean), ("var", old_var, new_var)):
        state[names[name]] = torch.where(differs, new, old).to(state[names[name]])


def _wanted(layer: AffineLayer, rows: SiteSamples) -> Statistics:
    """Mean and deviation of every channel: the weighted means of the parents', in the target's neurons."""
    found = [_moments_of(rows, p, layer.end) for p in rows.parents]
    mean = rows.parents.mean_rows([f.mean for f in found], layer.labelled)
    return mean, rows.parents.mean_rows([f.deviation for f in found], layer.labelled, magnitude=True)


def _described(layer: AffineLayer, rows: SiteSamples) -> Statistics:
    """The same by what the parents' batch norms say of the data that they were fitted to."""
    tensors = _norms(running_statistics(layer, rows.fused.parameters), rows)
    mean = rows.parents.mean_rows([t.get("bias", torch.zeros_like(t["mean"])) for t in tensors], layer.labelled)
    return mean, rows.parents.mean_rows([t["var"].sqrt() * _gain(t, layer.eps) for t in tensors], layer.labelled, magnitude=True)


def _norms(names: Mapping[str, str], rows: SiteSamples) -> list[dict[str, Tensor]]:
    """The tensors of every parent's batch norm, by what they are."""
    return [{key: p.recording.state[name].double() for key, name in names.items()} for p in rows.parents]


def _ends(site: RegressionSite) -> list[Node]:
    """What layers compute."""
    return [w.end for w in site.layers]


def _ends_and_before(site: RegressionSite) -> list[Node]:
    """What layers compute, and before their norms."""
    return [n for w in site.layers for n in (w.node, w.end)]


class _Moments:
    """Mean and deviation of channels, over rows that come batch by batch."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Rows of shape (positions, channels)."""
        rows = rows.double()
        n, mean = self.n + len(rows), rows.mean(0)
        between = (mean - self.mean.to(mean)).square() * (self.n * len(rows) / n)
        self.squares = self.squares.to(mean) + (rows - mean).square().sum(0) + between
        self.mean = self.mean.to(mean) + (mean - self.mean.to(mean)) * (len(rows) / n)
        self.n = n

    @property
    def deviation(self) -> Tensor:
        """Square root of the mean squared difference from the mean."""
        return (self.squares / self.n).sqrt()


def _moments(batches: Iterable[Tensor]) -> _Moments:
    found = _Moments()
    for rows in batches:
        found.add(rows)
    return found


def _moments_of(rows: SiteSamples, parent: Any, node: Node) -> _Moments:
    """Of a parent's value, in its own neurons."""
    return _moments(rows.of_parent(parent, node, batch) for batch in range(rows.fused.n_batches))


def _moments_of_mean(rows: SiteSamples, node: Node, labelled: tuple[str, int], factors: Sequence[Tensor]) -> _Moments:
    """Of the weighted mean of the parents' values times factors, in the target's neurons."""

    def mean(batch: int) -> Tensor:
        given = zip(rows.parents, factors, strict=True)
        return rows.parents.mean_rows([(rows.of_parent(p, node, batch) * f).double() for p, f in given], labelled)

    return _moments(mean(batch) for batch in range(rows.fused.n_batches))


def _ratio(wanted: Tensor, own: Tensor) -> Tensor:
    """What to multiply deviations by; 1 where there is none, or none is wanted."""
    usable = (own > _NONE) & (wanted > _NONE)
    return torch.where(usable, wanted / torch.where(usable, own, 1.0), 1.0)
