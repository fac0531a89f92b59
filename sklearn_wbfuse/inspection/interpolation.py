"""Error along the straight line between two networks, before and after they are aligned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.multiclass import type_of_target
from torch import nn

from ..exceptions import FusionError, WidthError
from ..fusion.data import FusionInput, outputs, score_outputs
from ..graph import floating_state, plain_copy, validate_models

__all__ = ["InterpolationDisplay"]


class InterpolationDisplay:
    r"""Error along the straight line between two networks.

    At position t of the line between networks with parameters :math:`\theta_1` and :math:`\theta_2`,

    .. math:: \varepsilon(t) = \mathrm{error}\big((1 - t)\,\theta_1 + t\,\theta_2\big), \qquad 0 \le t \le 1,

    in percent, for all floating tensors (parameters and buffers). Its barrier is the largest rise above the straight line
    between the errors of its ends,

    .. math:: B = \max_t \big[\varepsilon(t) - (1 - t)\,\varepsilon(0) - t\,\varepsilon(1)\big] \ge 0

    (as in [1]_). Networks whose neurons correspond have a low one.

    Use `from_estimator` or `from_models` to compute and draw; the arrays are kept as attributes.

    Parameters
    ----------
    t : array-like of shape (n_points,)
        Positions from 0, the first network, to 1, the second.
    before : array-like of shape (n_points,), optional
        Error in percent between the networks as they are; None where their widths differ.
    after : array-like of shape (n_points,), optional
        Error in percent between the aligned networks.

    Attributes
    ----------
    barrier_before, barrier_after : float or None
        The barriers, in percentage points.
    ax_, figure_, lines_ : Axes, Figure, list of Line2D
        What was drawn last.

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

    def __init__(self, t: ArrayLike, *, before: ArrayLike | None = None, after: ArrayLike | None = None):
        self.t = np.asarray(t, dtype=float)
        self.before = None if before is None else np.asarray(before, dtype=float)
        self.after = None if after is None else np.asarray(after, dtype=float)

    @property
    def barrier_before(self) -> float | None:
        """Barrier between the networks as they are."""
        return None if self.before is None else _barrier(self.t, self.before)

    @property
    def barrier_after(self) -> float | None:
        """Barrier between the aligned networks."""
        return None if self.after is None else _barrier(self.t, self.after)

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
        ax: Any = None,
    ) -> InterpolationDisplay:
        """Compute and draw the error between two networks, and between their aligned versions if these are given.

        Parameters
        ----------
        first, second : Module
            Not changed.
        X : array-like, Tensor or FusionInput of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
            Class k is output k.
        aligned : list of two Module, optional
            The two networks after alignment, such as ``fusion.transform([first, second])``. Needed if their widths differ.
        n_points : int
            Number of networks on the line, both ends included.
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        InterpolationDisplay

        Raises
        ------
        WidthError
            If tensors of the networks differ in shape and none are given that do not.
        FusionError
            If `y` does not hold classes.
        ImportError
            If matplotlib is not installed.
        """
        if n_points < 2:
            raise FusionError(f"n_points must be at least 2, the ends of the line. Got {n_points}.")
        if type_of_target(np.asarray(y)).startswith("continuous"):
            raise FusionError("The error rate needs classes in y. Got continuous values.")
        if aligned is not None and len(aligned) != 2:
            raise FusionError(f"aligned must hold two networks, first and second. Got {len(aligned)}.")
        data = X if isinstance(X, FusionInput) else FusionInput([], X)
        t = np.linspace(0, 1, n_points)
        before = after = None
        if aligned is None or _difference(first, second) is None:
            before = _errors(first, second, data, y, t)
        if aligned is not None:
            after = _errors(aligned[0], aligned[1], data, y, t)
        return cls(t, before=before, after=after).plot(ax)

    @classmethod
    def from_estimator(
        cls, fusion: Any, models: Sequence[nn.Module], X: Any, y: Any, *, n_points: int = 21, ax: Any = None
    ) -> InterpolationDisplay:
        """Compute and draw the error between two networks before and after a fitted fusion aligns them.

        Parameters
        ----------
        fusion : fitted estimator
            Its `transform` aligns.
        models : list of two Module
            Not changed. If their widths differ, only the line after alignment is drawn.
        X, y, n_points, ax
            As in `from_models`.

        Returns
        -------
        InterpolationDisplay
        """
        if len(models) != 2:
            raise FusionError(f"A line joins two networks. Got {len(models)}; give the two of interest.")
        return cls.from_models(models[0], models[1], X, y, aligned=fusion.transform(models), n_points=n_points, ax=ax)

    def plot(self, ax: Any = None) -> InterpolationDisplay:
        """Draw the lines, with the barriers in the legend.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        InterpolationDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            ax = _new_axes()
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        for errors, word, style in (
            (self.before, "before", {"color": "#D55E00", "linestyle": "--"}),  # vermilion and blue, told apart
            (self.after, "after", {"color": "#0072B2", "linestyle": "-"}),  # in every kind of colour vision
        ):
            if errors is not None:
                label = f"{word} alignment (barrier {_barrier(self.t, errors):.1f} points)"
                self.lines_ += ax.plot(self.t, errors, label=label, linewidth=1.8, **style)
        ax.set_xlabel(r"Position $t$ on the line $(1-t)\,\theta_1 + t\,\theta_2$")
        ax.set_ylabel("Error (%)")
        ax.set_xlim(0, 1)
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)  # above: it hides no line
        return self


def _new_axes() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'sklearn_wbfuse[plot]'") from error
    return plt.subplots(figsize=(4.8, 3.2), layout="constrained")[1]


def _barrier(t: np.ndarray, errors: np.ndarray) -> float:
    return float(np.max(errors - (1 - t) * errors[0] - t * errors[-1]))


def _difference(first: nn.Module, second: nn.Module) -> str | None:
    """What keeps two networks from being joined by a line: the first tensor without a counterpart of its shape."""
    shapes = [{name: tuple(t.shape) for name, t in floating_state(m).items()} for m in (first, second)]
    for name in [*shapes[0], *shapes[1]]:
        one, other = (s.get(name) for s in shapes)
        if one != other:
            return f"{name!r} has shape {one} in the first and {other} in the second"
    return None


@torch.no_grad()
def _errors(first: nn.Module, second: nn.Module, data: FusionInput, y: Any, t: np.ndarray) -> np.ndarray:
    """Error rate in percent at each position of the line between two networks."""
    one, other = (plain_copy(m) for m in validate_models([first, second]))
    difference = _difference(one, other)
    if difference is not None:
        raise WidthError(f"A line joins networks of equal shapes, but {difference}; give aligned=fusion.transform(models).")
    ends = [{name: tensor.clone() for name, tensor in floating_state(m).items()} for m in (one, other)]
    moving = floating_state(one)
    errors = []
    for position in t:
        for name, tensor in moving.items():
            tensor.copy_(torch.lerp(ends[0][name], ends[1][name].to(tensor), float(position)))
        errors.append(100 * (1 - score_outputs(outputs(one, data), y)))
    return np.array(errors)
