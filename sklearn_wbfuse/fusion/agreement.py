r"""The agreement of networks, by their outputs.

For classes it is the share of positions at which both networks predict the same class. For values a, b, over all positions and
columns c, it is Lin's concordance correlation [1]_, at least 0,

.. math:: 1 - \frac{\sum_c E(a_c - b_c)^2}{\sum_c \bigl(\operatorname{var} a_c + \operatorname{var} b_c + (E a_c - E b_c)^2\bigr)}

.. [1] L. I. Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45 (1989).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base import aligned
from ..data.scores import as_array, holds_targets

__all__ = ["Agreement", "agreement_of", "agreement_text", "compares_values", "label_kind"]

_POOR = 0.1
"""A fusion is poor if it agrees less with its parents than they do among themselves, by more than this."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """The agreement of a fused network with its parents, from 0 (never) to 1 (always).

    Attributes
    ----------
    with_parents : ndarray of shape (n_models,)
        The agreement of the fused network with each parent, in their order.
    among_parents : float
        The mean over all pairs of parents of nonzero weight; NaN if there is only one.
    source : str
        The kind of the inputs, such as "rows" of the data or "noise".
    n_samples : int
        The number of inputs.
    measure : {"predictions", "values"}
        The share of equal predictions if outputs are classes, otherwise the concordance of their values.
    counted : tuple of bool
        Whether each parent has a nonzero weight.
    """

    with_parents: np.ndarray
    among_parents: float
    source: str
    n_samples: int
    measure: str = "predictions"
    counted: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "with_parents", np.asarray(self.with_parents, dtype=np.float64))
        object.__setattr__(self, "counted", tuple(self.counted) or (True,) * len(self.with_parents))

    @property
    def mean(self) -> float:
        """The mean of `with_parents` over parents of nonzero weight."""
        return float(self.with_parents[list(self.counted)].mean())

    @property
    def is_poor(self) -> bool:
        """Whether `mean` is more than 0.1 below `among_parents`, or below 1 for a single parent."""
        expected = 1.0 if np.isnan(self.among_parents) else self.among_parents
        return self.mean < expected - _POOR

    @property
    def inputs(self) -> str:
        """The number and kind of the inputs, in words."""
        if self.source.endswith("s"):
            return f"{self.n_samples:,} {self.source}"
        return f"{self.n_samples:,} samples of {self.source}"

    def shown(self, value: float) -> str:
        """Format one of the numbers: a percentage of predictions, a concordance of values."""
        return f"{value:.1%}" if self.measure == "predictions" else f"{value:.3f}"

    @property
    def stored(self) -> dict[str, Any]:
        """The arguments that make this object again, of plain types."""
        return {**vars(self), "with_parents": self.with_parents.tolist(), "counted": list(self.counted)}

    def __str__(self) -> str:
        heads = {"predictions": "Same predictions", "values": "Concordance of the outputs"}
        rows = [("fused network with", "agrees")]
        for i, (value, counts) in enumerate(zip(self.with_parents, self.counted, strict=True)):
            rows.append((f"parent {i}" + ("" if counts else " (weight 0)"), self.shown(value)))
        if sum(self.counted) > 1:
            rows += [("parents, mean", self.shown(self.mean)), ("parents among themselves", self.shown(self.among_parents))]
        return f"{heads[self.measure]} on {self.inputs}\n\n{aligned(rows)}"

    __repr__ = __str__


def agreement_text(agreement: Agreement | None, reason: str | None) -> str:
    """Return an agreement as a table, or the reason why there is none."""
    return f"Agreement with the parents was not measured: {reason}" if agreement is None else str(agreement)


def label_kind(y: Any) -> str | None:
    """Return the kind of outputs that labels imply: "targets", "classes", "binary" for at most two classes, or None."""
    if y is None:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of many classes for few labels
            return "targets" if holds_targets(as_array(y)) else "binary" if len(np.unique(as_array(y))) < 3 else "classes"
    except (TypeError, ValueError):  # labels of several types
        return None


def agreement_of(
    fused: np.ndarray,
    parents: Sequence[np.ndarray],
    weights: Sequence[float],
    source: str,
    *,
    kind: str | None = None,
    probabilities: bool = False,
) -> Agreement:
    """Compute the agreement of a fused network with its parents.

    Parameters
    ----------
    fused : ndarray of shape (n_samples, ...)
        Outputs without NaN. Columns are the last axis of two or three dimensions, and the second of more.
    parents : list of ndarray
        Outputs of the parents, of the same shape.
    weights : list of float
    source : str
        The kind of the inputs.
    kind : {None, "targets", "classes", "binary"}
        The kind of the outputs if it is known. By default a single column holds values, and several columns hold classes.
    probabilities : bool
        Whether outputs are probabilities: a single one is compared with 0.5, not with 0.
    """
    arrays, are_values = [_columns(a) for a in (fused, *parents)], compares_values(fused, kind, probabilities)
    predictions = arrays if are_values else [_classes(a, probabilities) for a in arrays]
    measure = _concordance if are_values else _share_equal
    counted = tuple(w > 0 for w in weights)
    pairs = itertools.combinations([p for p, is_counted in zip(predictions[1:], counted, strict=True) if is_counted], 2)
    among = [measure(a, b) for a, b in pairs]
    return Agreement(
        np.array([measure(predictions[0], parent) for parent in predictions[1:]]),
        float(np.mean(among)) if among else float("nan"),
        source,
        len(fused),
        "values" if are_values else "predictions",
        counted,
    )


def compares_values(outputs: np.ndarray, kind: str | None, probabilities: bool) -> bool:
    """Return whether outputs are compared as values; see `agreement_of`."""
    single = _columns(outputs).shape[1] == 1
    return kind == "targets" or (single and not probabilities and kind != "binary")


def _share_equal(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of equal entries."""
    return float(np.mean(a == b))


def _concordance(a: np.ndarray, b: np.ndarray) -> float:
    """Return Lin's concordance correlation of values of shape (positions, columns), at least 0; 1 for equal values."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    largest = max(np.abs(a).max(), np.abs(b).max()) or 1.0  # squares of large values would not be finite
    a, b = a / largest, b / largest
    difference = np.square(a - b).mean(0).sum()
    if difference == 0:
        return 1.0
    uncorrelated = (a.var(0) + b.var(0) + np.square(a.mean(0) - b.mean(0))).sum()
    return float(np.clip(1 - difference / uncorrelated, 0.0, 1.0))


def _columns(outputs: np.ndarray) -> np.ndarray:
    """Reshape outputs to one position per row."""
    if outputs.ndim == 1:
        return outputs[:, None]
    outputs = np.moveaxis(outputs, 1, -1) if outputs.ndim > 3 else outputs
    return outputs.reshape(-1, outputs.shape[-1])


def _classes(columns: np.ndarray, probabilities: bool) -> np.ndarray:
    """Return the class of each row; for a single column, whether the logit is positive or the probability above one half."""
    return columns[:, 0] > (0.5 if probabilities else 0.0) if columns.shape[1] == 1 else columns.argmax(1)
