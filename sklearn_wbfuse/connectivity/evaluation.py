"""The evaluation of networks: loss and error on rows."""

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
    r"""Evaluates networks on labelled rows: the mean loss and, for classes, the error rate.

    The loss is the cross-entropy :math:`-\log\,\mathrm{softmax}(z)_y` of logits z in nats if `y` holds classes, and the squared
    error if it is continuous. If outputs are probabilities, z are their logarithms. A single output belongs to the second of two
    classes. Both metrics are computed in one pass.

    Parameters
    ----------
    X : array-like, Tensor or FusionInput of shape (n_samples, ...)
    y : array-like of shape (n_samples,), or of the outputs' shape for continuous targets
        Class k is output k, unless `estimator` has labels.
    estimator : object, optional
        A fusion, a classifier with labels for the outputs, or a regressor, which makes all numbers continuous targets.

    Raises
    ------
    FusionError
        If a label is unknown, or there is not one label per row.

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
        self._has_checked_outputs = False

    @classmethod
    def of(cls, model: nn.Module, X: Any, y: ArrayLike, outputs: str) -> Evaluator:
        """Make an evaluator of networks like `model`, whose outputs are "logits", "probabilities", or "auto".

        Raises
        ------
        FusionError
            If `outputs` is anything else.
        """
        known = ("auto", "logits", "probabilities")
        if outputs not in known:
            raise FusionError(f"outputs must be one of {known}. Got {outputs!r}.{did_you_mean(outputs, known)}")
        evaluator = cls(X, y)
        if not evaluator.is_continuous:
            is_traced = outputs == "auto" and seems_probable(model, evaluator.data.tensors(model, slice(0, 2)))
            evaluator.probabilities = is_traced or outputs == "probabilities"
        else:
            evaluator.probabilities = False
        return evaluator

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of a network."""
        return ("loss",) if self.is_continuous else ("loss", "error")

    @property
    def loss_name(self) -> str:
        """The name of the loss with its unit."""
        return "mean squared error" if self.is_continuous else "cross-entropy, nats"

    def subsample(self, n_samples: int | None, rng: np.random.RandomState) -> Evaluator:
        """Return the same evaluator with at most `n_samples` rows, drawn without replacement."""
        if n_samples is None or n_samples >= len(self.data):
            return self
        rows = np.sort(rng.choice(len(self.data), n_samples, replace=False))
        part = object.__new__(Evaluator)
        part.data, part.y, part.is_continuous = self.data[rows], self.y[rows], self.is_continuous
        part.probabilities, part._has_checked_outputs = self.probabilities, self._has_checked_outputs
        return part

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the loss of a network and, for classes, its error in percent."""
        predicted = outputs(model, self.data)
        if self.is_continuous:
            if predicted.size != self.y.size:
                raise FusionError(f"y has shape {self.y.shape}, but the network's outputs have {predicted.shape}.")
            return {"loss": float(np.mean((predicted.reshape(self.y.shape) - self.y) ** 2))}
        error = 100 * (1 - score_outputs(predicted, self.y, probabilities=self.probabilities))
        logits = class_scores(predicted, self.probabilities).astype(np.float64)
        if self.probabilities:
            logits = np.log(np.maximum(logits, np.finfo(np.float32).tiny))
        elif not self._has_checked_outputs:
            self._check_outputs(predicted.reshape(len(predicted), -1))
        of_class = logits[np.arange(len(logits)), self.y.astype(int)]
        return {"loss": float(np.mean(logsumexp(logits, axis=1) - of_class)), "error": error}

    def _check_outputs(self, predicted: np.ndarray) -> None:
        """Warn once about outputs that are hardly logits."""
        self._has_checked_outputs = True
        separates_two = predicted.shape[1] == 1 and predicted.min() < 0.5 < predicted.max()
        if sum_to_one(predicted) or (separates_two and 0 <= predicted.min() <= predicted.max() <= 1):
            warnings.warn(
                "The network's outputs look like probabilities but count as logits. If they are, set outputs='probabilities' in "
                "from_models, or in FusionClassifier.",
                FusionWarning,
                stacklevel=2,
            )


def fitted(estimator: Any, attribute: str = "transform") -> tuple[Any, Any]:
    """Return a fitted fusion or predictor, which may be the best of a search, and the fusion in it.

    Raises
    ------
    NotFittedError
    FusionError
        If the fusion has no such attribute, or the search was not refitted.
    """
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        raise FusionError(
            f"A fitted fusion such as WassersteinFusion is needed. Got {short_text(estimator)}; for networks use from_models."
        )
    best = getattr(estimator, "best_estimator_", estimator)
    check_is_fitted(best)
    fusion = getattr(best, "fusion_", best)
    if not hasattr(fusion, attribute):
        hint = "refit the search: refit=True" if hasattr(estimator, "cv_results_") else "for networks use from_models"
        raise FusionError(f"A fitted fusion such as WassersteinFusion is needed. Got {type(estimator).__name__}; {hint}.")
    return best, fusion


def checked_metrics(metric: str | Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the requested metrics as a tuple; by default the error if it is `known`, otherwise the loss.

    Raises
    ------
    FusionError
        If there is no such metric.
    """
    if metric is None:
        metric = "error" if "error" in known else "loss"
    requested = (metric,) if isinstance(metric, str) else tuple(metric)
    for name in requested:
        if name not in ("error", "loss"):
            raise FusionError(f"metric must be 'error', 'loss' or both. Got {name!r}.{did_you_mean(name, ('error', 'loss'))}")
        if name not in known:
            raise FusionError(
                f"metric must be one of {known}. Got {name!r}: an error needs classes in y, and a display its values."
            )
    if not requested:
        raise FusionError("metric must name 'error', 'loss' or both. Got nothing.")
    return requested


def _columns(y: np.ndarray, estimator: Any) -> np.ndarray:
    """Return the output of each label."""
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
