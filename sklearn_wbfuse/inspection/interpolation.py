"""Display of loss and error on the line between two networks, before and after alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from ..connectivity.evaluation import Evaluator, checked_metrics, fitted
from ..connectivity.networks import AffineNetworks, difference
from ..exceptions import FusionError
from .figures import BLUE, VERMILION, new_axes, progress

__all__ = ["InterpolationDisplay"]

_STYLES = {"before": {"color": VERMILION, "linestyle": "--"}, "after": {"color": BLUE, "linestyle": "-"}}


class InterpolationDisplay:
    r"""Loss and error on the straight line between two networks.

    At position t on the line between networks with parameters :math:`\theta_1` and :math:`\theta_2`,

    .. math:: \varepsilon(t) = \mathrm{error}\big((1 - t)\,\theta_1 + t\,\theta_2\big), \qquad 0 \le t \le 1,

    for all floating-point tensors (parameters and buffers), and likewise for the loss. If `y` holds classes, the loss is the
    mean cross-entropy in nats of the outputs as logits, and the error is in percent; if `y` is continuous, the loss is the mean
    squared error. The barrier is the largest rise above the straight line between the values at the ends,

    .. math:: B = \max_t \big[\varepsilon(t) - (1 - t)\,\varepsilon(0) - t\,\varepsilon(1)\big] \ge 0

    (as in [1]_). It is low between networks whose neurons correspond.

    Use `from_estimator` or `from_models` to compute and draw; the arrays are available as attributes.

    Parameters
    ----------
    t : array-like of shape (n_points,)
        Positions from 0, the first network, to 1, the second.
    before : array-like of shape (n_points,), optional
        Error in percent between the unaligned networks; None if their widths differ, and for continuous targets.
    after : array-like of shape (n_points,), optional
        Error in percent between the aligned networks.
    loss_before, loss_after : array-like of shape (n_points,), optional
        The same for the loss.
    loss_name : str, default="cross-entropy, nats"
        The name of the loss, for the label of its axis.

    Attributes
    ----------
    barrier_before, barrier_after : float or None
        The barriers of the error, in percentage points.
    loss_barrier_before, loss_barrier_after : float or None
        The barriers of the loss.
    ax_, figure_, lines_ : Axes, Figure, list of Line2D
        The last drawing; of several panels, `ax_` is the first.
    axes_ : list of Axes
        All panels.

    References
    ----------
    .. [1] R. Entezari, H. Sedghi, O. Saukh, B. Neyshabur, "The Role of Permutation Invariance in Linear Mode Connectivity of
       Neural Networks", arXiv:2110.06296.

    Examples
    --------
    >>> display = InterpolationDisplay([0, 0.5, 1], before=[2, 40, 4], after=[2, 3.5, 4])
    >>> display.barrier_before, display.barrier_after
    (37.0, 0.5)
    """

    def __init__(
        self,
        t: ArrayLike,
        *,
        before: ArrayLike | None = None,
        after: ArrayLike | None = None,
        loss_before: ArrayLike | None = None,
        loss_after: ArrayLike | None = None,
        loss_name: str = "cross-entropy, nats",
    ):
        self.t = np.asarray(t, dtype=float)
        self.before = None if before is None else np.asarray(before, dtype=float)
        self.after = None if after is None else np.asarray(after, dtype=float)
        self.loss_before = None if loss_before is None else np.asarray(loss_before, dtype=float)
        self.loss_after = None if loss_after is None else np.asarray(loss_after, dtype=float)
        self.loss_name = loss_name

    @property
    def barrier_before(self) -> float | None:
        """The barrier of the error between the unaligned networks."""
        return _barrier(self.t, self.before)

    @property
    def barrier_after(self) -> float | None:
        """The barrier of the error between the aligned networks."""
        return _barrier(self.t, self.after)

    @property
    def loss_barrier_before(self) -> float | None:
        """The barrier of the loss between the unaligned networks."""
        return _barrier(self.t, self.loss_before)

    @property
    def loss_barrier_after(self) -> float | None:
        """The barrier of the loss between the aligned networks."""
        return _barrier(self.t, self.loss_after)

    @classmethod
    def from_models(
        cls,
        first: nn.Module,
        second: nn.Module,
        X: Any,
        y: Any,
        *,
        aligned: Sequence[nn.Module] | None = None,
        n_points: int = 21,
        metric: str | Sequence[str] | None = None,
        outputs: str = "auto",
        ax: Any = None,
    ) -> InterpolationDisplay:
        """Compute loss and error between two networks, and between their aligned versions if these are given, and draw.

        Parameters
        ----------
        first, second : Module
            The networks; they are not modified.
        X : array-like, Tensor or FusionInput of shape (n_samples, ...)
        y : array-like of shape (n_samples,), or of the outputs' shape for continuous targets
            Class k is output k.
        aligned : list of two Module, optional
            The two networks after alignment, such as ``fusion.transform([first, second])``. Needed if their widths differ.
        n_points : int
            Number of networks on the line, both ends included.
        metric, ax
            See `plot`.
        outputs : {"auto", "logits", "probabilities"}, default="auto"
            The kind of outputs if `y` holds classes; "auto" means probabilities if the operations of the first network confine
            all outputs to [0, 1].

        Returns
        -------
        InterpolationDisplay

        Raises
        ------
        WidthError
            If the networks differ in shape and no aligned ones are given.
        FusionError
            If `y` does not match the outputs, or the error is requested and `y` holds no classes.
        ImportError
            If matplotlib is not installed.
        """
        return cls._computed([first, second], aligned, Evaluator.of(first, X, y, outputs), n_points, metric, ax)

    @classmethod
    def from_estimator(
        cls,
        fusion: Any,
        models: Sequence[nn.Module],
        X: Any,
        y: Any,
        *,
        n_points: int = 21,
        metric: str | Sequence[str] | None = None,
        ax: Any = None,
    ) -> InterpolationDisplay:
        """Compute and draw the line between two networks before and after a fitted fusion aligns them.

        Parameters
        ----------
        fusion : fitted estimator
            A fusion, whose `transform` aligns, a predictor such as `FusionClassifier`, or a search over either; the labels in
            `y` are then the predictor's.
        models : list of two Module
            The networks; they are not modified. If their widths differ, only the line after alignment is drawn.
        X, y, n_points, metric, ax
            See `from_models`.

        Returns
        -------
        InterpolationDisplay
        """
        if len(models) != 2:
            raise FusionError(f"models must be two networks. Got {len(models)}; give the two of interest.")
        estimator, fusion = fitted(fusion)
        return cls._computed(models, fusion.transform(models), Evaluator(X, y, estimator), n_points, metric, ax)

    @classmethod
    def _computed(
        cls,
        models: Sequence[nn.Module],
        aligned: Sequence[nn.Module] | None,
        evaluator: Evaluator,
        n_points: int,
        metric: str | Sequence[str] | None,
        ax: Any,
    ) -> InterpolationDisplay:
        if n_points < 2:
            raise FusionError(f"n_points must be at least 2, the ends of the line. Got {n_points}.")
        if aligned is not None and (not isinstance(aligned, (list, tuple)) or len(aligned) != 2):
            got = len(aligned) if isinstance(aligned, (list, tuple)) else type(aligned).__name__
            raise FusionError(f"aligned must hold two networks: aligned=fusion.transform([first, second]). Got {got}.")
        checked_metrics(metric, evaluator.metrics)
        t, curves = np.linspace(0, 1, n_points), {}
        if aligned is None or difference(models[0], models[1]) is None:
            curves["before"] = _curves(models, evaluator, t)
        if aligned is not None:
            curves["after"] = _curves(aligned, evaluator, t)
        errors = {word: values.get("error") for word, values in curves.items()}
        losses = {f"loss_{word}": values["loss"] for word, values in curves.items()}
        return cls(t, **errors, **losses, loss_name=evaluator.loss_name).plot(ax, metric=metric)

    def plot(self, ax: Any = None, *, metric: str | Sequence[str] | None = None) -> InterpolationDisplay:
        """Draw the lines and label them with the barriers.

        Parameters
        ----------
        ax : matplotlib Axes, or list of them for several metrics, optional
            The Axes to draw on; a new figure by default.
        metric : {"error", "loss"} or a list of them, optional
            The metrics to draw, one panel for each; ``("loss", "error")`` draws both side by side, in a new figure with one
            legend. By default the error, or the loss if there is no error.

        Returns
        -------
        self : InterpolationDisplay

        Raises
        ------
        FusionError
            If there is no such metric, or not one Axes for each.
        ImportError
            If matplotlib is not installed.
        """
        curves = {"error": (self.before, self.after), "loss": (self.loss_before, self.loss_after)}
        shown = checked_metrics(metric, [name for name, pair in curves.items() if any(c is not None for c in pair)])
        panels = None if ax is None else list(np.atleast_1d(ax))
        if panels is not None and len(panels) != len(shown):
            raise FusionError(f"ax must hold one Axes for each metric of {list(shown)}. Got {len(panels)}.")
        axes = new_axes(4.8 if len(shown) == 1 else 3.6 * len(shown), 3.2, len(shown)) if panels is None else panels
        self.ax_, self.axes_, self.figure_ = axes[0], axes, axes[0].figure
        self.lines_: list[Any] = []
        for panel, name in zip(axes, shown, strict=True):
            self._draw(panel, name, dict(zip(_STYLES, curves[name], strict=True)), is_only=len(shown) == 1)
        if len(shown) > 1 and panels is None:
            self.figure_.legend(handles=axes[0].get_lines(), loc="outside upper center", ncols=2, frameon=False)
        elif len(shown) > 1:
            axes[0].legend(frameon=False, fontsize="small")
        return self

    def _draw(self, ax: Any, metric: str, curves: dict[str, np.ndarray | None], *, is_only: bool) -> None:
        """Draw one panel, with the barriers in its legend if it is the only one, otherwise in its title."""
        unit = " points" if metric == "error" else " nats" if "nats" in self.loss_name else ""
        barriers = []
        for word, values in curves.items():
            if values is not None:
                barrier = _amount(_barrier(self.t, values), values, metric)
                label = f"{word} alignment" + (f" (barrier {barrier}{unit})" if is_only else "")
                self.lines_ += ax.plot(self.t, values, label=label, linewidth=1.8, **_STYLES[word])
                barriers.append(f"{barrier} {word}")
        ax.set_xlabel(r"Position $t$ on the line $(1-t)\,\theta_1 + t\,\theta_2$")
        ax.set_ylabel("Error (%)" if metric == "error" else f"Loss ({self.loss_name})")
        ax.set_xlim(0, 1)
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        if is_only:
            ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)  # above: it hides no line
            return
        width = ax.get_window_extent().width / ax.figure.dpi
        gap = " " if width > 2.5 else "\n"
        ax.set_title(f"Barrier{f' in{unit}' if unit else ''}:{gap}{', '.join(barriers)}", fontsize="medium")


def _barrier(t: np.ndarray, values: np.ndarray | None) -> float | None:
    return None if values is None else float(np.max(values - (1 - t) * values[0] - t * values[-1]))


def _amount(barrier: float | None, values: np.ndarray, metric: str) -> str:
    """Format a barrier; a small one that is not negligible compared to the values keeps two digits."""
    assert barrier is not None
    if metric == "error":
        return f"{barrier:.1f}"
    is_small = 1e-3 * np.abs(values).max() < barrier < 0.1
    return f"{barrier:.2g}" if is_small else f"{barrier:.2f}"


def _curves(models: Sequence[nn.Module], evaluator: Evaluator, t: np.ndarray) -> dict[str, np.ndarray]:
    """Compute each metric at each position on the line between two networks."""
    line = AffineNetworks(models, " Give aligned=fusion.transform(models).")
    points = [evaluator(line.at((1 - position, position))) for position in progress(t.tolist(), "networks on the line")]
    return {name: np.array([values[name] for values in points]) for name in evaluator.metrics}
