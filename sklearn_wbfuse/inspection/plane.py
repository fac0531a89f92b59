"""Loss in the plane through two networks and the aligned second one."""

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
    r"""Loss, or error, in the plane through two networks and the second one aligned to the first.

    With parameters :math:`\theta_1, \theta_2` and those of the aligned second network :math:`\theta_2'`, the axes are, as in
    [1]_ and Figures 1 and 3 of [2]_, orthonormal:

    .. math:: u = \frac{\theta_2' - \theta_1}{\|\theta_2' - \theta_1\|}, \qquad
              v = \frac{w}{\|w\|},\; w = (\theta_2 - \theta_1) - \langle \theta_2 - \theta_1, u \rangle\, u,

    and the value at (x, y) is that of the network :math:`\theta_1 + x\,u + y\,v`. Distances in the picture are thus Euclidean
    distances between parameters. Buffers, such as the running statistics of batch norms, are combined with the same weights
    and do not count in distances.

    All points are in the coordinates of the first network: its neuron order and scales. Model 1 and model 2 are as they were
    given. The fusion carries both into an order and scales of its own by linear maps :math:`A_1` and :math:`A_2`, so
    :math:`\theta_2' = A_1^{-1} A_2 \theta_2`, which computes what model 2 computes, unless its coupling is blurred (`reg` > 0).
    The mean of model 1 and aligned model 2 is the fused network in these coordinates where a fusion of the two gives them equal
    weights and corrects nothing.

    Use `from_estimator` or `from_models` to compute and draw; the arrays are kept as attributes.

    Parameters
    ----------
    x, y : array-like of shape (n_x,), (n_y,)
        Coordinates of the grid.
    values : array-like of shape (n_y, n_x)
        Loss or error in percent; NaN where there is none.
    points : dict of str to (float, float)
        Coordinates of "model 1", "model 2", "aligned model 2" and their "mean", that of model 1 and aligned model 2.
    point_values : dict of str to float, optional
        The values there.
    name : str, default="Loss"
        What the values are, for the label of their scale.

    Attributes
    ----------
    ax_, figure_, contour_, colorbar_ : Axes, Figure, QuadContourSet, Colorbar
        What was drawn last.

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
            Not changed.
        X : array-like, Tensor or FusionInput of shape (n_samples, ...)
        y : array-like of shape (n_samples,), or of the outputs' shape for continuous targets
            Class k is output k.
        metric : {"loss", "error"}, optional
            Mean loss, the default, or error in percent; as in `InterpolationDisplay`.
        n_points : int, default=21
            Points of the grid along each axis: ``n_points**2`` networks are run.
        margin : float, default=0.25
            How far the grid reaches beyond the networks on each side, relative to the larger of its two extents without it.
        subsample : int or None, default=1000
            Rows to evaluate on, drawn without replacement; all for None.
        random_state : int, RandomState or None
            Draws the rows.
        outputs : {"auto", "logits", "probabilities"}, default="auto"
            As in `InterpolationDisplay.from_models`.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        LossPlaneDisplay

        Raises
        ------
        WidthError
            If the networks differ in shape.
        FusionError
            If the three lie on one line, or `y` does not fit to the outputs.
        ImportError
            If matplotlib is not installed.
        """
        evaluator = Evaluator.of(first, X, y, outputs).some(subsample, check_random_state(random_state))
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
            A fusion, a predictor such as `FusionClassifier`, or a search over either; its labels are then those of `y`.
        models : list of two Module
            Parents of the fusion, of equal widths. Not changed.
        X, y, metric, n_points, margin, subsample, random_state, ax
            As in `from_models`.

        Returns
        -------
        LossPlaneDisplay

        Raises
        ------
        WidthError
            If the widths of the two differ, or from the fused network's.
        FusionError
            If the first is no parent, or was carried by a coupling that is no permutation, which can't be undone.
        """
        if len(models) != 2:
            raise FusionError(f"The plane goes through two networks and the aligned second one. Got {len(models)} networks.")
        first, second = validate_models(models)
        AffineNetworks([first, second], REMEDY)
        own, fusion = fitted(fusion, "inverse_transform")
        evaluator = Evaluator(X, y, own).some(subsample, check_random_state(random_state))
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
        asked = checked_metrics("loss" if metric is None else metric, evaluator.metrics)
        if len(asked) != 1:
            raise FusionError(f"A plane shows one metric, 'loss' or 'error'. Got {list(asked)}; draw two.")
        metric = asked[0]
        plane = AffineNetworks(models, REMEDY)
        coordinates = plane_coordinates(plane.displacements())
        names = ("model 1", "model 2", "aligned model 2", "mean")
        corners = dict(zip(names, [*coordinates, coordinates[2] / 2], strict=True))
        weights = affine_weights(coordinates, np.stack(list(corners.values())))
        at_corners = {name: evaluator(plane.at(w))[metric] for name, w in zip(names, weights, strict=True)}
        low, high = coordinates.min(0), coordinates.max(0)
        room = margin * (high - low).max()
        x, y = np.linspace(low - room, high + room, n_points).T
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        values = []
        for w in progress(list(affine_weights(coordinates, grid)), "networks in the plane"):
            try:
                values.append(evaluator(plane.at(w))[metric])
            except NonFiniteError:  # a running variance can be negative outside of the triangle
                values.append(np.nan)
        name = "Error (%)" if metric == "error" else f"Loss ({evaluator.loss_name})"
        return cls(x, y, np.reshape(values, (n_points, n_points)), corners, point_values=at_corners, name=name).plot(ax)

    def plot(self, ax: Any = None) -> LossPlaneDisplay:
        """Draw filled contours, the networks, and the line from model 1 to aligned model 2.

        Levels are evenly spaced on a logarithmic scale from the lowest value to one that a tenth of the grid exceeds, so that
        the valleys show; what is higher has the last colour. Where networks have no value, since batch norms have negative
        variances there, the plane is grey. The networks have the colours of their own values.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        LossPlaneDisplay
            Itself.

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
    """Levels of the contours, of two significant digits."""
    known = np.append(values, at_points)
    finite = known[np.isfinite(known)] if np.isfinite(known).any() else np.ones(1)
    top = max(np.quantile(finite, 0.9), 1.5 * finite.min()) or 1.0
    low = max(finite.min(), 1e-3 * top, min([top / 2, *finite[finite > 0]]))
    return np.unique([float(f"{level:.2g}") for level in np.geomspace(low, top, n_levels)])


def _mark(ax: Any, points: Mapping[str, tuple[float, float]], colours: Mapping[str, Any]) -> None:
    """Name the networks, and draw the line between those that are aligned."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.5, foreground="white")]
    one, other = points["model 1"], points["aligned model 2"]
    ax.plot(*zip(one, other, strict=True), color="black", linewidth=1.5, path_effects=outline)
    for label, (x, y) in points.items():
        middle = label == "mean"
        colour, size = colours.get(label, "white"), 5.5 if middle else 7.5
        ax.plot(x, y, "D" if middle else "o", color=colour, markeredgecolor="white", markeredgewidth=3, markersize=size)
        ax.plot(x, y, "D" if middle else "o", color=colour, markeredgecolor="black", markersize=size)
        above = middle or y > 0
        ax.annotate(
            label.replace("aligned ", "aligned\n"),
            (x, y),
            (0, 7 if above else -7),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            path_effects=outline,
        )
