"""Display of the loss in the plane through two networks and the aligned second one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from torch import nn

from ..connectivity.evaluation import Evaluator, checked_metrics, fitted
from ..connectivity.geometry import affine_weights, plane_coordinates
from ..connectivity.networks import AffineNetworks
from ..discovery import validate_models
from ..exceptions import FusionError, NonFiniteError
from .figures import new_axes, progress

__all__ = ["LossPlaneDisplay"]

REMEDY = " A plane needs parents of equal widths; InterpolationDisplay draws the line between aligned ones of any widths."


class LossPlaneDisplay:
    r"""Loss or error in the plane through two networks and the second one aligned to the first.

    With parameters :math:`\theta_1, \theta_2` and those of the aligned second network :math:`\theta_2'`, the axes are, as in
    [1]_ and Figures 1 and 3 of [2]_, orthonormal:

    .. math:: u = \frac{\theta_2' - \theta_1}{\|\theta_2' - \theta_1\|}, \qquad
              v = \frac{w}{\|w\|},\; w = (\theta_2 - \theta_1) - \langle \theta_2 - \theta_1, u \rangle\, u,

    and the value at (x, y) is that of the network :math:`\theta_1 + x\,u + y\,v`. Distances in the picture are thus Euclidean
    distances between parameters. Buffers, such as the running statistics of batch norms, are combined with the same weights
    and do not count in distances.

    All points are in the neuron order and scales of the first network. Model 1 and model 2 are unchanged. The fusion carries
    them into its own order and scales by linear maps :math:`A_1` and :math:`A_2`, so that
    :math:`\theta_2' = A_1^{-1} A_2 \theta_2`, which computes the same function as model 2 unless its coupling is entropic
    (`reg` > 0). If a fusion of the two networks has equal weights and no correction, the mean of model 1 and aligned model 2 is
    the fused network in these coordinates.

    Use `from_estimator` or `from_models` to compute and draw; the arrays are available as attributes.

    Parameters
    ----------
    x, y : array-like of shape (n_x,), (n_y,)
        Coordinates of the grid.
    values : array-like of shape (n_y, n_x)
        Loss or error in percent; NaN if it is undefined.
    points : dict of str to (float, float)
        Coordinates of "model 1", "model 2", "aligned model 2" and the "mean" of model 1 and aligned model 2.
    point_values : dict of str to float, optional
        The values at these points.
    name : str, default="Loss"
        The name of the values, for the label of the colour bar.

    Attributes
    ----------
    ax_, figure_, contour_, colorbar_ : Axes, Figure, QuadContourSet, Colorbar
        The last drawing.

    References
    ----------
    .. [1] T. Garipov, P. Izmailov, D. Podoprikhin, D. Vetrov, A. G. Wilson, "Loss Surfaces, Mode Connectivity, and Fast
       Ensembling of DNNs", NeurIPS 2018 (visualisation of the plane through three networks).
    .. [2] A. K. Akash, S. Li, N. Garcia Trillos, "Wasserstein Barycenter-based Model Fusion and Linear Mode Connectivity of
       Neural Networks", arXiv:2210.06671.

    Examples
    --------
    >>> import torch
    >>> from sklearn_wbfuse import WassersteinFusion
    >>> _ = torch.manual_seed(0)
    >>> models = [torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in range(2)]
    >>> X, y = torch.randn(20, 3), torch.randint(2, (20,))
    >>> display = LossPlaneDisplay.from_estimator(WassersteinFusion().fit(models), models, X, y, n_points=5)
    >>> display.values.shape, list(display.points)
    ((5, 5), ['model 1', 'model 2', 'aligned model 2', 'mean'])
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        values: ArrayLike,
        points: Mapping[str, Sequence[float]],
        *,
        point_values: Mapping[str, float] | None = None,
        name: str = "Loss",
    ):
        self.x, self.y, self.values = (np.asarray(a, dtype=float) for a in (x, y, values))
        self.points = {label: (float(p[0]), float(p[1])) for label, p in points.items()}
        self.point_values = dict(point_values or {})
        self.name = name

    @classmethod
    def from_models(
        cls,
        first: nn.Module,
        second: nn.Module,
        aligned: nn.Module,
        X: Any,
        y: Any,
        *,
        metric: str | None = None,
        n_points: int = 21,
        margin: float = 0.25,
        subsample: int | None = 1000,
        random_state: Any = None,
        outputs: str = "auto",
        ax: Any = None,
    ) -> LossPlaneDisplay:
        """Compute and draw the plane through three networks of equal shapes.

        Parameters
        ----------
        first, second, aligned : Module
            The networks; they are not modified.
        X : array-like, Tensor or FusionInput of shape (n_samples, ...)
        y : array-like of shape (n_samples,), or of the outputs' shape for continuous targets
            Class k is output k.
        metric : {"loss", "error"}, optional
            Mean loss, the default, or error in percent; see `InterpolationDisplay`.
        n_points : int, default=21
            Points of the grid along each axis: ``n_points**2`` networks are evaluated.
        margin : float, default=0.25
            Margin of the grid around the networks on each side, relative to the larger of their two extents.
        subsample : int or None, default=1000
            Number of rows to evaluate on, drawn without replacement; None for all.
        random_state : int, RandomState or None
            Random state of the rows.
        outputs : {"auto", "logits", "probabilities"}, default="auto"
            See `InterpolationDisplay.from_models`.
        ax : matplotlib Axes, optional
            The Axes to draw on; a new figure by default.

        Returns
        -------
        LossPlaneDisplay

        Raises
        ------
        WidthError
            If the networks differ in shape.
        FusionError
            If the three networks are on one line, or `y` does not match the outputs.
        ImportError
            If matplotlib is not installed.
        """
        evaluator = Evaluator.of(first, X, y, outputs).subsample(subsample, check_random_state(random_state))
        return cls._computed([first, second, aligned], evaluator, metric, n_points, margin, ax)

    @classmethod
    def from_estimator(
        cls,
        fusion: Any,
        models: Sequence[nn.Module],
        X: Any,
        y: Any,
        *,
        metric: str | None = None,
        n_points: int = 21,
        margin: float = 0.25,
        subsample: int | None = 1000,
        random_state: Any = None,
        ax: Any = None,
    ) -> LossPlaneDisplay:
        """Compute and draw the plane through two parents of a fitted fusion, and the second one aligned to the first.

        Parameters
        ----------
        fusion : fitted estimator
            A fusion, a predictor such as `FusionClassifier`, or a search over either; the labels in `y` are then the
            predictor's.
        models : list of two Module
            Parents of the fusion, of equal widths; they are not modified.
        X, y, metric, n_points, margin, subsample, random_state, ax
            See `from_models`.

        Returns
        -------
        LossPlaneDisplay

        Raises
        ------
        WidthError
            If the networks differ in width from each other or from the fused network.
        FusionError
            If the first is no parent, or its coupling is no permutation and cannot be inverted.
        """
        if len(models) != 2:
            raise FusionError(f"models must be two networks. Got {len(models)}.")
        first, second = validate_models(models)
        AffineNetworks([first, second], REMEDY)
        estimator, fusion = fitted(fusion, "inverse_transform")
        evaluator = Evaluator(X, y, estimator).subsample(subsample, check_random_state(random_state))
        (aligned,) = fusion.inverse_transform(fusion.transform([second]), parent=first)
        return cls._computed([first, second, aligned], evaluator, metric, n_points, margin, ax)

    @classmethod
    def _computed(
        cls, models: Sequence[nn.Module], evaluator: Evaluator, metric: str | None, n_points: int, margin: float, ax: Any
    ) -> LossPlaneDisplay:
        if n_points < 2:
            raise FusionError(f"n_points must be at least 2. Got {n_points}.")
        if not margin >= 0:
            raise FusionError(f"margin must be at least 0. Got {margin}.")
        requested = checked_metrics("loss" if metric is None else metric, evaluator.metrics)
        if len(requested) != 1:
            raise FusionError(f"metric must be 'loss' or 'error'. Got {list(requested)}; draw two planes.")
        metric = requested[0]
        plane = AffineNetworks(models, REMEDY)
        coordinates = plane_coordinates(plane.displacements())
        names = ("model 1", "model 2", "aligned model 2", "mean")
        corners = dict(zip(names, [*coordinates, coordinates[2] / 2], strict=True))
        weights = affine_weights(coordinates, np.stack(list(corners.values())))
        at_corners = {name: evaluator(plane.at(w))[metric] for name, w in zip(names, weights, strict=True)}
        low, high = coordinates.min(0), coordinates.max(0)
        padding = margin * (high - low).max()
        x, y = np.linspace(low - padding, high + padding, n_points).T
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        values = []
        for w in progress(list(affine_weights(coordinates, grid)), "networks in the plane"):
            try:
                values.append(evaluator(plane.at(w))[metric])
            except NonFiniteError:  # running variances can be negative outside the triangle
                values.append(np.nan)
        name = "Error (%)" if metric == "error" else f"Loss ({evaluator.loss_name})"
        return cls(x, y, np.reshape(values, (n_points, n_points)), corners, point_values=at_corners, name=name).plot(ax)

    def plot(self, ax: Any = None) -> LossPlaneDisplay:
        """Draw filled contours, the networks, and the line from model 1 to aligned model 2.

        Levels are evenly spaced on a logarithmic scale from the lowest value to one that a tenth of the grid exceeds, to show
        the valleys; higher values have the last colour. The plane is grey where networks have no value because their batch norms
        have negative variances. The networks have the colours of their own values.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The Axes to draw on; a new figure by default.

        Returns
        -------
        self : LossPlaneDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            shape = np.ptp(self.x) / np.ptp(self.y)
            (ax,) = new_axes(float(np.clip(3.6 * shape, 2.4, 5.4)) + 1.5, 3.9)
        from matplotlib.colors import BoundaryNorm

        levels = _levels(self.values, list(self.point_values.values()))
        shown = np.ma.masked_invalid(np.where(np.isnan(self.values), np.nan, np.clip(self.values, levels[0], 2 * levels[-1])))
        self.ax_, self.figure_ = ax, ax.figure
        ax.set_facecolor("0.85")
        self.contour_ = ax.contourf(
            self.x, self.y, shown, levels, cmap="viridis_r", norm=BoundaryNorm(levels, 256, extend="max"), extend="max"
        )
        self.contour_.set_edgecolor("face")  # no white seams between the levels in vector formats
        self.colorbar_ = ax.figure.colorbar(self.contour_, ax=ax, label=self.name, format="%.3g", fraction=0.046, pad=0.04)
        _mark(ax, self.points, {name: self.contour_.to_rgba(value) for name, value in self.point_values.items()})
        ax.set_aspect("equal")
        ax.locator_params(nbins=6, steps=[1, 2, 5, 10])
        ax.set_xlabel("Distance towards aligned model 2")
        ax.set_ylabel("Distance orthogonal to it")
        return self


def _levels(values: np.ndarray, at_points: Sequence[float], n_levels: int = 11) -> np.ndarray:
    """Return the levels of the contours, rounded to two significant digits."""
    known = np.append(values, at_points)
    finite = known[np.isfinite(known)] if np.isfinite(known).any() else np.ones(1)
    top = max(np.quantile(finite, 0.9), 1.5 * finite.min()) or 1.0
    low = max(finite.min(), 1e-3 * top, min([top / 2, *finite[finite > 0]]))
    return np.unique([float(f"{level:.2g}") for level in np.geomspace(low, top, n_levels)])


def _mark(ax: Any, points: Mapping[str, tuple[float, float]], colours: Mapping[str, Any]) -> None:
    """Mark the networks, and draw the line between the aligned ones."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.5, foreground="white")]
    start, end = points["model 1"], points["aligned model 2"]
    ax.plot(*zip(start, end, strict=True), color="black", linewidth=1.5, path_effects=outline)
    for label, (x, y) in points.items():
        is_mean = label == "mean"
        colour, size = colours.get(label, "white"), 5.5 if is_mean else 7.5
        ax.plot(x, y, "D" if is_mean else "o", color=colour, markeredgecolor="white", markeredgewidth=3, markersize=size)
        ax.plot(x, y, "D" if is_mean else "o", color=colour, markeredgecolor="black", markersize=size)
        is_above = is_mean or y > 0
        ax.annotate(
            label.replace("aligned ", "aligned\n"),
            (x, y),
            (0, 7 if is_above else -7),
            textcoords="offset points",
            ha="center",
            va="bottom" if is_above else "top",
            path_effects=outline,
        )
