r"""Statistics of every channel brought to the parents': running statistics of batch norms, and REPAIR for n models.

Averaged networks have weaker activations than their parents. With :math:`\mu, \sigma` the mean and deviation of a channel,

.. math:: y' = \sigma^* \frac{y - \mu(y)}{\sigma(y)} + \mu^*, \qquad
    \mu^* = \sum_i \lambda_i \mu(y^i), \quad \sigma^* = \sum_i \lambda_i \sigma(y^i)

over the parents' aligned channels :math:`y^i` on the same inputs (K. Jordan et al., "REPAIR", ICLR 2023, for two models), folded
into the layers' own tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import ClassVar

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from torch import Tensor

from ..base import HelpfulMixin
from ..exceptions import FusionWarning
from ..graph import Steps
from .affine import Writer
from .alongside import Parent, Rows, run_alongside
from .equations import Equation, batch_norms, equations

__all__ = ["BatchNorm", "Repair"]

_EQUAL = 1e-4
"""Channels whose statistics differ by less, relative to the deviation, stay as they are."""


class Repair(HelpfulMixin, BaseEstimator):
    r"""REPAIR: mean and deviation of every layer's channels become the weighted mean of the parents'.

    Layer by layer, each with what the repaired layers before it compute; a batch norm is part of the layer in front of it. A
    layer without a bias gets the deviations alone. Recurrent layers stay as they are: their statistics change from step to step.

    Parameters
    ----------
    max_rows : int, default=20000
        Largest number of rows over which statistics are taken; of convolutions and sequences positions are drawn.

    Examples
    --------
    >>> import torch
    >>> from sklearn_wbfuse import WassersteinFusion
    >>> from sklearn_wbfuse.datasets import MLP
    >>> parents = [MLP([4, 8, 2]), MLP([4, 8, 2])]
    >>> fusion = WassersteinFusion(correction=Repair(), probe="noise", random_state=0).fit(parents)
    """

    _parameter_constraints: ClassVar[dict] = {"max_rows": [Interval(Integral, 10, None, closed="left")]}

    def __init__(self, *, max_rows: int = 20000):
        self.max_rows = max_rows

    def correct(self, fused: Steps, parents: Sequence[Parent], generator: torch.Generator) -> None:
        """Change the tensors of the fused network; see `Regression.correct`."""

        def correct(equation: Equation) -> None:
            if equation.writers:
                rows = Rows(equation, fused, parents, self.max_rows, generator)
                for writer in equation.writers:
                    _repair(writer, rows)

        run_alongside(fused, parents, equations(fused.nodes, fused.parameters), correct)


def _repair(writer: Writer, rows: Rows) -> None:
    """Fold the statistics that a layer should have into its tensors."""
    matrix, offset = writer.affine(rows.fused.state)
    own = _Moments()  # without the offset
    for batch in range(rows.fused.n_batches):
        own.add((rows.inputs(writer, batch) @ matrix.mT).transpose(0, 1).flatten(1))
    mean, deviation = _wanted(writer, rows)
    ratio = _ratio(deviation, own.deviation)
    shift = mean - own.mean - offset.flatten()
    if bool(((ratio - 1).abs() < _EQUAL).all() and (shift.abs() <= _EQUAL * deviation).all()):
        return
    scaled, moved = matrix * ratio.view(*offset.shape, 1), mean - own.mean * ratio
    moments = own.mean * ratio, (own.deviation * ratio).square()
    writer.write(rows.fused.state, scaled.to(matrix), *(t.view(offset.shape).to(matrix) for t in (moved, *moments)))


class BatchNorm(HelpfulMixin, BaseEstimator):
    r"""Running statistics of batch norms such that what they compute has the parents' statistics.

    The running variance becomes :math:`(\gamma \sigma(x) / \sigma^*)^2` and the running mean
    :math:`\mu(x) - (\mu^* - \beta) \sqrt{\sigma^2} / \gamma`. On data that is close to the statistics of the fused network's own
    activations (`recompute_batchnorm`), since the parents' norms are fitted to theirs; on noise only this makes sense.

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

    def correct(self, fused: Steps, parents: Sequence[Parent], generator: torch.Generator) -> None:
        """Change the running statistics of the fused network; see `Regression.correct`."""
        found = batch_norms(fused.nodes, fused.parameters)
        if not found:
            warnings.warn(
                "correction='batchnorm' does nothing: the network has no batch norm with running statistics. Use 'repair' or "
                "'regression'.",
                FusionWarning,
                stacklevel=2,
            )

        def correct(equation: Equation) -> None:
            _recompute(equation.writers[0], Rows(equation, fused, parents, self.max_rows, generator))

        run_alongside(fused, parents, found, correct)


def _recompute(writer: Writer, rows: Rows) -> None:
    """Choose the running statistics of one batch norm."""
    state, names, own = rows.fused.state, writer.norm_names, _Moments()
    for batch in range(rows.fused.n_batches):
        own.add(rows.of(rows.fused, writer.node.args[0], batch))  # type: ignore[arg-type]
    mean, deviation = _wanted(writer, rows)
    gain = state[names["weight"]].double() if "weight" in names else torch.ones_like(mean)
    bias = state[names["bias"]].double() if "bias" in names else torch.zeros_like(mean)
    old_mean, old_var = (state[names[name]].double() for name in ("mean", "var"))
    spread = (old_var + writer.eps).sqrt()
    ratio = _ratio(deviation, own.deviation / spread * gain.abs())
    shift = mean - (own.mean - old_mean) / spread * gain - bias
    differs = (gain != 0) & (((ratio - 1).abs() >= _EQUAL) | (shift.abs() > _EQUAL * deviation))
    new_mean = own.mean - (mean - bias) * (spread / ratio) / torch.where(gain == 0, 1.0, gain)
    new_var = ((spread / ratio).square() - writer.eps).clamp_min(0.0)
    for name, old, new in (("mean", old_mean, new_mean), ("var", old_var, new_var)):
        state[names[name]] = torch.where(differs, new, old).to(state[names[name]])


def _wanted(writer: Writer, rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel: the weighted means of the parents', in the target's neurons."""
    mean, deviation = torch.zeros(()), torch.zeros(())
    for parent in rows.parents:
        own = _Moments()
        for batch in range(rows.fused.n_batches):
            own.add(rows.of(parent.steps, writer.end, batch))
        mean = mean.to(own.mean) + parent.weight * parent.carried(own.mean, writer.labelled)
        deviation = deviation.to(mean) + parent.weight * parent.carried(own.deviation, writer.labelled, magnitude=True)
    return mean, deviation


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


def _ratio(wanted: Tensor, own: Tensor) -> Tensor:
    """What to multiply deviations by; 1 where there is none, or none is wanted."""
    usable = (own > 1e-12) & (wanted > 1e-12)
    return torch.where(usable, wanted / torch.where(usable, own, 1.0), 1.0)
