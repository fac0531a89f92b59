"""How good networks are: loss and error on rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..base import did_you_mean, short_text
from ..data.fusion_input import rows_of
from ..data.scores import are_probabilities, as_array, class_scores, holds_targets, outputs, score_outputs, sum_to_one
from ..discovery import seems_probable
from ..exceptions import FusionError, FusionWarning

__all__ = ["Evaluator", "checked_metrics", "fitted"]


class Evaluator:
    r"""Rows and targets that networks are judged by: their mean loss and, for classes, their error rate.

    The loss is the cross-entropy :math:`-\log\,\mathrm{softmax}(z)_y` of logits z in nats where `y` holds classes, and the
    squared error where it is continuous. Where outputs are probabilities, z are their logarithms. A single output is that of the
    second of two classes. Both come from one pass.

    Parameters
    ----------
    X : array-like, Tensor or FusionInput of shape (n_samples, ...)
    y : array-like of shape (n_samples,), or of the outputs' shape for continuous targets
        Class k is output k, unless `estimator` has labels.
    estimator : object, optional
        A fusion; a classifier with labels for the outputs, or a regressor, for which any numbers are continuous.

    Raises
    ------
    FusionError
        If a label is unknown, or there is not one for each row.

    Warns
    -----
    FusionWarning
        If outputs that count as logits look like probabilities.

    Examples
    --------
    >>> import torch
    >>> evaluator = Evaluator([[0.0], [1.0]], [0, 1])
    >>> {name: round(value, 3) for name, value in evaluator(torch.nn.Identity()).items()}
    {'loss': 0.503, 'error': 0.0}
    """

    def __init__(self, X: Any, y: ArrayLike, estimator: Any = None):
        self.data, labels = rows_of(X), as_array(y)
        if not labels.shape or len(labels) != len(self.data):
            raise FusionError(f"X has {len(self.data)} rows but y has {labels.size}; give one label per row.")
        self.is_continuous = isinstance(estimator, RegressorMixin) or holds_targets(labels)
        self.y = labels.astype(float) if self.is_continuous else _columns(labels, estimator)
        spec = getattr(getattr(estimator, "fusion_", estimator), "graph_", None)
        self.probabilities = getattr(estimator, "_probabilities", are_probabilities("auto", spec))
        self._looked = False

    @classmethod
    def of(cls, model: nn.Module, X: Any, y: ArrayLike, outputs: str) -> Evaluator:
        """The judge of networks such as one, whose outputs are what is said: "logits", "probabilities", or "auto".

        Raises
        ------
        FusionError
            If something else is said.
        """
        known = ("auto", "logits", "probabilities")
        if outputs not in known:
            raise FusionError(f"outputs must be one of {known}. Got {outputs!r}.{did_you_mean(outputs, known)}")
        evaluator = cls(X, y)
        seen = (
            outputs == "auto"
            and not evaluator.is_continuous
            and seems_probable(model, evaluator.data.tensors(model, slice(0, 2)))
        )
        evaluator.probabilities = not evaluator.is_continuous and (seen or outputs == "probabilities")
        return evaluator

    @property
    def metrics(self) -> tuple[str, ...]:
        """What there is to say about a network."""
        return ("loss",) if self.is_continuous else ("loss", "error")

    @property
    def loss_name(self) -> str:
        """The loss with its unit."""
        return "mean squared error" if self.is_continuous else "cross-entropy, nats"

    def some(self, n_samples: int | None, rng: np.random.RandomState) -> Evaluator:
        """The same with at most so many rows, drawn without replacement."""
        if n_samples is None or n_samples >= len(self.data):
            return self
        rows = np.sort(rng.choice(len(self.data), n_samples, replace=False))
        part = object.__new__(Evaluator)
        part.data, part.y, part.is_continuous = self.data[rows], self.y[rows], self.is_continuous
        part.probabilities, part._looked = self.probabilities, self._looked
        return part

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Loss and, for classes, error in percent of a network."""
        predicted = outputs(model, self.data)
        if self.is_continuous:
            if predicted.size != self.y.size:
                raise FusionError(f"y has shape {self.y.shape}, but the network's outputs have {predicted.shape}.")
            return {"loss": float(np.mean((predicted.reshape(self.y.shape) - self.y) ** 2))}
        error = 100 * (1 - score_outputs(predicted, self.y, probabilities=self.probabilities))
        logits = class_scores(predicted, self.probabilities).astype(np.float64)
        if self.probabilities:
            logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
        elif not self._looked:
            self._look_at(predicted.reshape(len(predicted), -1))
        of_class = logits[np.arange(len(logits)), self.y.astype(int)]
        return {"loss": float(np.mean(logsumexp(logits, axis=1) - of_class)), "error": error}

    def _look_at(self, predicted: np.ndarray) -> None:
        """Warn, once, of outputs that can hardly be logits."""
        self._looked = True
        tells_two_apart = predicted.shape[1] == 1 and predicted.min() < 0.5 < predicted.max()
        if sum_to_one(predicted) or (tells_two_apart and 0 <= predicted.min() <= predicted.max() <= 1):
            warnings.warn(
                "The network's outputs look like probabilities but count as logits. If they are, say so: outputs='probabilities' "
                "of from_models, or of FusionClassifier.",
                FusionWarning,
                stacklevel=2,
            )


def fitted(given: Any, needed: str = "transform") -> tuple[Any, Any]:
    """A fitted fusion or predictor, that of a search included, and the fusion in it, which must have an attribute.

    Raises
    ------
    NotFittedError
    FusionError
        If it is something else, or a search that was not refitted.
    """
    if isinstance(given, type) or not hasattr(given, "fit"):
        raise FusionError(
            f"Needed is a fitted fusion such as WassersteinFusion. Got {short_text(given)}; from_models takes networks."
        )
    own = getattr(given, "best_estimator_", given)
    check_is_fitted(own)
    fusion = getattr(own, "fusion_", own)
    if not hasattr(fusion, needed):
        hint = "refit the search: refit=True" if hasattr(given, "cv_results_") else "from_models takes networks"
        raise FusionError(f"Needed is a fitted fusion such as WassersteinFusion. Got {type(given).__name__}; {hint}.")
    return own, fusion


def checked_metrics(metric: str | Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Metrics that were asked for, out of those `known`: the error by default, else the loss.

    Raises
    ------
    FusionError
        If there is no such metric.
    """
    asked = (
        ("error" if "error" in known else "loss",) if metric is None else (metric,) if isinstance(metric, str) else tuple(metric)
    )
    for name in asked:
        if name not in ("error", "loss"):
            raise FusionError(f"metric must be 'error', 'loss' or both. Got {name!r}.{did_you_mean(name, ('error', 'loss'))}")
        if name not in known:
            raise FusionError(f"There is no {name}: an error rate needs classes in y, and a display the values. It has {known}.")
    if not asked:
        raise FusionError("metric must name 'error', 'loss' or both. Got nothing.")
    return asked


def _columns(y: np.ndarray, estimator: Any) -> np.ndarray:
    """For each label its output."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        raise FusionError(f"y must hold one class per row. Got an array of shape {y.shape}.")
    classes = getattr(estimator, "classes", None)  # in the order of the outputs, which classes_ need not be
    if classes is None:
        classes = getattr(estimator, "classes_", None)
    if classes is None:
        return y
    order = {label: column for column, label in enumerate(as_array(classes).tolist())}
    unknown = [label for label in np.unique(y).tolist() if label not in order]
    if unknown:
        raise FusionError(f"y holds {unknown[:5]}, but the classes are {list(order)[:10]}; relabel y.")
    return np.array([order[label] for label in y.tolist()])
