r"""How often networks predict alike, from their outputs.

Of classes it is the share of positions at which both have their largest output in the same place. Of values a, b, over all
positions and columns c, it is Lin's concordance correlation [1]_, at least 0,

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

__all__ = ["Agreement", "agreement_of", "agreement_text", "kind_of", "tell_values"]

_POOR = 0.1
"""A fusion is poor that agrees less with its parents than they do among themselves, by more than this."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How much a fused network and its parents predict alike: 1 always, 0 never.

    Attributes
    ----------
    with_parents : ndarray of shape (n_models,)
        The fused network with each parent, in their order.
    among_parents : float
        Mean over all pairs of parents whose weight is not 0; NaN if there is one such parent.
    source : str
        What the networks were run on: "rows" of the data, "noise" and so on.
    n_samples : int
        How many of these there were.
    measure : {"predictions", "values"}
        The share of equal predictions where outputs tell classes, the concordance of values where they do not.
    counted : tuple of bool
        Which parents have a weight; the others have a share all the same.
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
        """Mean of `with_parents` over parents that have a weight."""
        return float(self.with_parents[list(self.counted)].mean())

    @property
    def is_poor(self) -> bool:
        """Whether `mean` is over 0.1 below `among_parents`, or below 1 for one parent, whose function can be kept in full."""
        wanted = 1.0 if np.isnan(self.among_parents) else self.among_parents
        return self.mean < wanted - _POOR

    @property
    def inputs(self) -> str:
        """Number and kind of the inputs, in words."""
        if self.source.endswith("s"):
            return f"{self.n_samples:,} {self.source}"
        return f"{self.n_samples:,} samples of {self.source}"

    def shown(self, value: float) -> str:
        """One of the numbers as text: a percentage of predictions, a concordance of values."""
        return f"{value:.1%}" if self.measure == "predictions" else f"{value:.3f}"

    @property
    def stored(self) -> dict[str, Any]:
        """The arguments that make it again, of plain types."""
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
    """An agreement as a table, or why there is none."""
    return f"Agreement with the parents was not measured: {reason}" if agreement is None else str(agreement)


def kind_of(y: Any) -> str | None:
    """What labels or targets say of outputs: "targets", "classes", "binary" for at most two of these; None if nothing."""
    if y is None:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # many classes for so few labels
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
    """How much a fused network and its parents agree.

    Parameters
    ----------
    fused : ndarray of shape (n_samples, ...)
        Outputs without NaN. Columns stand on the last axis of two or three dimensions and on the second of more.
    parents : list of ndarray
        Of the same shape.
    weights : list of float
    source : str
        What the outputs are of.
    kind : {None, "targets", "classes", "binary"}
        What is known of the outputs. A single column tells values unless it is known to tell two classes; several columns
        tell classes unless there are targets.
    probabilities : bool
        Whether outputs are probabilities: a single one is compared with 0.5, not with 0.
    """
    arrays, values = [_columns(a) for a in (fused, *parents)], tell_values(fused, kind, probabilities)
    said = arrays if values else [_classes(a, probabilities) for a in arrays]
    alike = _concordance if values else _share_alike
    counted = tuple(w > 0 for w in weights)
    pairs = itertools.combinations([a for a, counts in zip(said[1:], counted, strict=True) if counts], 2)
    among = [alike(a, b) for a, b in pairs]
    return Agreement(
        np.array([alike(said[0], own) for own in said[1:]]),
        float(np.mean(among)) if among else float("nan"),
        source,
        len(fused),
        "values" if values else "predictions",
        counted,
    )


def tell_values(outputs: np.ndarray, kind: str | None, probabilities: bool) -> bool:
    """Whether outputs are compared as values; see `agreement_of`."""
    single = _columns(outputs).shape[1] == 1
    return kind == "targets" or (single and not probabilities and kind != "binary")


def _share_alike(a: np.ndarray, b: np.ndarray) -> float:
    """Share of equal entries."""
    return float(np.mean(a == b))


def _concordance(a: np.ndarray, b: np.ndarray) -> float:
    """Lin's concordance correlation of values of shape (positions, columns), at least 0; 1 for equal ones."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    largest = max(np.abs(a).max(), np.abs(b).max()) or 1.0  # squares of large values would not be finite
    a, b = a / largest, b / largest
    apart = np.square(a - b).mean(0).sum()
    if apart == 0:
        return 1.0
    possible = (a.var(0) + b.var(0) + np.square(a.mean(0) - b.mean(0))).sum()
    return float(np.clip(1 - apart / possible, 0.0, 1.0))


def _columns(outputs: np.ndarray) -> np.ndarray:
    """Outputs with one position per row."""
    if outputs.ndim == 1:
        return outputs[:, None]
    outputs = np.moveaxis(outputs, 1, -1) if outputs.ndim > 3 else outputs
    return outputs.reshape(-1, outputs.shape[-1])


def _classes(columns: np.ndarray, probabilities: bool) -> np.ndarray:
    """The class that each row tells; of a single column the sign of the logit, or whether the probability is over one half."""
    return columns[:, 0] > (0.5 if probabilities else 0.0) if columns.shape[1] == 1 else columns.argmax(1)
