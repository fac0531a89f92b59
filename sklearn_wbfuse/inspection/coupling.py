"""The coupling of one neuron group as a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from ..base import did_you_mean
from ..connectivity.evaluation import fitted
from ..exceptions import FusionError, GroupNameError
from .figures import BLUE, VERMILION, colour_map, new_axes

__all__ = ["CouplingDisplay"]

MAX_CELLS = 128  # along an axis; in a figure of 3 inches a cell is then 1.7 points wide, and a single one can be seen


class CouplingDisplay:
    r"""Heat map of a coupling, the source neurons of which each target neuron consists.

    It shows the share of source neuron s in target neuron t,

    .. math:: S_{ts} = n\,\Pi_{ts}, \qquad \sum_s |S_{ts}| = 1,

    for a coupling :math:`\Pi` of shape (n, n_source) and mass 1: an entry of 1 is one entire neuron, -1 one that changes its
    sign. Target neurons are sorted by the source neuron with the largest share, then by the mean position of their mass, so that
    a permutation appears as a diagonal. Entries off the diagonal are merged or split neurons.

    Parameters
    ----------
    plan : array-like of shape (n_target, n_source)
        :math:`\Pi`, negative if a neuron changes its sign.
    group : str, optional
        Name of the neuron group, for the title.
    source, target : str
        Names of the networks of the columns and rows, for the labels of the axes.

    Attributes
    ----------
    order : ndarray of shape (n_target,)
        Row r of the picture is target neuron ``order[r]``.
    shares : ndarray of shape (n_target, n_source)
        S with sorted rows, as shown.
    ax_, figure_, image_ : Axes, Figure, AxesImage
        The last drawing.
    colorbar_ : Colorbar or None

    Raises
    ------
    FusionError
        If `plan` is no matrix of finite numbers.

    Examples
    --------
    >>> display = CouplingDisplay([[0, 0.5], [0.5, 0]])
    >>> display.order
    array([1, 0])
    >>> display.shares
    array([[1., 0.],
           [0., 1.]])
    """

    def __init__(self, plan: ArrayLike, *, group: str | None = None, source: str = "source", target: str = "target"):
        self.plan = np.asarray(plan, dtype=float)
        if self.plan.ndim != 2 or not self.plan.size or not np.isfinite(self.plan).all():
            raise FusionError(f"plan must be a matrix of finite numbers. Got an array of shape {self.plan.shape}.")
        self.group, self.source, self.target = group, source, target
        mass = np.abs(self.plan)
        centre = mass @ np.arange(mass.shape[1]) / np.maximum(mass.sum(1), np.finfo(float).tiny)
        self.order = np.lexsort([centre, mass.argmax(1)])
        self.shares = len(self.plan) * self.plan[self.order]

    @classmethod
    def from_estimator(
        cls, fusion: Any, group: str | None = None, *, model: int | nn.Module = -1, ax: Any = None, colorbar: bool = True
    ) -> CouplingDisplay:
        """Draw a coupling of a fitted fusion.

        Parameters
        ----------
        fusion : fitted estimator
            A fusion, a predictor such as `FusionClassifier`, or a search over either.
        group : str, optional
            Name of a neuron group, as ``fusion.graph_`` lists them; the first by default.
        model : int or Module, default=-1
            A parent, or its position; the last by default, since the fused network often has the order of the first.
        ax, colorbar
            See `plot`.

        Returns
        -------
        CouplingDisplay

        Raises
        ------
        GroupNameError
            If there is no such group.
        FusionError
            If there is no such parent.
        ImportError
            If matplotlib is not installed.
        """
        fusion = fitted(fusion, "couplings_")[1]
        position = fusion.position_of(model)
        couplings = fusion.couplings_[position]
        names = list(couplings)
        if not names:
            raise GroupNameError("A coupling needs a neuron group. The network has none.")
        group = names[0] if group is None else group
        if group not in couplings:
            raise GroupNameError(f"group must be one of {names}. Got {group!r}.{did_you_mean(group, names)}")
        source = f"parent {position}"
        return cls(couplings[group], group=group, source=source, target="fused network").plot(ax, colorbar=colorbar)

    def plot(self, ax: Any = None, *, colorbar: bool = True) -> CouplingDisplay:
        """Draw the heat map.

        Shares are blue, white at 0, and vermilion if neurons change their sign. A cell of a large coupling shows the share of
        largest magnitude among several neurons, so that single ones are not lost.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The Axes to draw on; a new figure by default.
        colorbar : bool, default=True

        Returns
        -------
        self : CouplingDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            (ax,) = new_axes(3.9 if colorbar else 3.3, 3.3)
        signed, largest = bool((self.shares < 0).any()), float(np.abs(self.shares).max())
        limit = 1.0 if 0.5 <= largest <= 1 or not largest else largest  # 1 if possible, so that displays can be compared
        rows, columns = self.shares.shape
        down, across = (-(-size // MAX_CELLS) for size in self.shares.shape)  # neurons per cell
        cells = _pooled(_pooled(self.shares, down).T, across).T
        self.ax_, self.figure_, self.colorbar_ = ax, ax.figure, None
        self.image_ = ax.imshow(
            cells,
            cmap=colour_map(VERMILION, "white", BLUE) if signed else colour_map("white", BLUE),
            vmin=-limit if signed else 0,
            vmax=limit,
            extent=(0.5, across * cells.shape[1] + 0.5, down * cells.shape[0] + 0.5, 0.5),
            aspect="auto",
            interpolation="nearest",
        )
        ax.set_xlim(0.5, columns + 0.5)
        ax.set_ylim(rows + 0.5, 0.5)
        ax.set_xlabel(f"Neuron of {self.source}")
        ax.set_ylabel(f"Neuron of {self.target}, sorted")
        ax.set_xticks(sorted({1, columns}))
        ax.set_yticks(sorted({1, rows}))
        if self.group is not None:
            ax.set_title(f"Group {self.group}", fontsize="medium", wrap=True)
        if colorbar:
            label = "Share in the row" + (", with its sign" if signed else "")
            self.colorbar_ = ax.figure.colorbar(self.image_, ax=ax, label=label, shrink=0.8)
        return self


def _pooled(values: np.ndarray, step: int) -> np.ndarray:
    """Reduce every `step` rows to the entries of largest magnitude."""
    starts = np.arange(0, len(values), step)
    highest, lowest = (choose.reduceat(values, starts, axis=0) for choose in (np.maximum, np.minimum))
    return np.where(highest >= -lowest, highest, lowest)
