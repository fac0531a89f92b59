"""A fusion as a classifier or regressor of scikit-learn: it predicts with the fused network."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, softmax
from sklearn.base import (
    ClassifierMixin,
    RegressorMixin,
    _fit_context,
)
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_array, column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets

from ..base import short_text
from ..data.fusion_input import FusionInput
from ..data.scores import are_probabilities, as_array, class_scores, sum_to_one
from ..discovery import seems_probable
from ..exceptions import FusionError, FusionWarning
from .base import Predictor

__all__ = ["FusionClassifier", "FusionRegressor"]


class FusionClassifier(ClassifierMixin, Predictor):
    r"""Fuse networks into one and classify with it.

    A network with outputs z of shape (n_samples, n_classes) gives class k the probability :math:`e^{z_k} / \sum_j e^{z_j}`: z
    are logits or log-probabilities. Probabilities are only divided by their sum. A single output is the logit, or the
    probability, of the second of two classes.

    Parameters
    ----------
    fusion : estimator, optional
        Any fusion of this library; ``WassersteinFusion()`` by default. It is cloned.
    classes : array-like of shape (n_classes,), optional
        Labels of the outputs, in the order of the outputs; 0, 1, ... by default.
    batch_size : int, default=200
        Rows that the network is run on at a time. It runs on its own device, and rows are cast to its floating type: floats, and
        whole numbers where it does not run on these as they are.
    outputs : {"auto", "logits", "probabilities"}, default="auto"
        What the network returns; "auto" says probabilities where its operations keep all outputs within 0 and 1: a
        softmax or a sigmoid, and what casts, clamps, averages or moves their values. A handwritten ending that can't be seen is
        taken for logits.

    Attributes
    ----------
    fusion_ : estimator
        The fitted fusion, with `couplings_`, `graph_` and what else it has.
    fused_model_ : Module
        That of `fusion_`.
    classes_ : ndarray of shape (n_classes,)
        Labels in sorted order, which is the order of the columns of `predict_proba` and `decision_function`.

    See Also
    --------
    compare : Fusions beside their controls, without a search.

    Examples
    --------
    Which fusion, and which `reg`?

    >>> import torch
    >>> from sklearn.model_selection import GridSearchCV, StratifiedKFold
    >>> from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
    >>> from sklearn_wbfuse.datasets import load_digits, train_mlp
    >>> digits = load_digits()
    >>> models = [train_mlp(digits.X_train, digits.y_train, (64, 32, 10), seed) for seed in (0, 1)]
    >>> grid = [
    ...     {"fusion": [WassersteinFusion()], "fusion__reg": [0, 1e-3]},
    ...     {"fusion": [VanillaAveraging()]},
    ... ]
    >>> folds = StratifiedKFold(3, shuffle=True, random_state=0)
    >>> search = GridSearchCV(FusionClassifier(), grid, cv=folds).fit(FusionInput(models, digits.X_val), digits.y_val)
    >>> search.best_params_["fusion"]
    WassersteinFusion()
    >>> search.predict_proba(digits.X_test).shape
    (500, 10)
    """

    _parameter_constraints: ClassVar[dict] = {
        **Predictor._parameter_constraints,
        "classes": ["array-like", None],
        "outputs": [StrOptions({"auto", "logits", "probabilities"})],
    }

    _kind = "binary"

    def __init__(self, fusion: Any = None, *, classes: ArrayLike | None = None, batch_size: int = 200, outputs: str = "auto"):
        self.fusion = fusion
        self.classes = classes
        self.batch_size = batch_size
        self.outputs = outputs

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Any:
        """Fuse the models.

        Parameters
        ----------
        X : FusionInput, or list of Module
            The models, and rows if there are any.
        y : array-like of shape (n_samples,), optional
            Labels. They are checked and not learnt from. Positions in the sorted `classes` are taken for labels, as some tools
            of scikit-learn hand them over; `classes_` are then 0, 1, .... The last position must be among them: tools number the
            labels that occur, so that a missing class shifts the others.

        Returns
        -------
        self

        Raises
        ------
        FusionError
            If the network is no classifier, `classes` or `y` does not fit to its outputs, or `y` holds positions that a missing
            class may have shifted.

        Notes
        -----
        Where `classes` are whole numbers, positions can be labels too, and nothing tells them apart. So give every class to tools
        that number labels or compare `classes_` with those that occur: ``VotingClassifier``, ``StackingClassifier``,
        ``CalibratedClassifierCV``, ``cross_val_predict(method="predict_proba")``. Where `y` lacks one of 0, 1, ... the first
        predicts shifted labels, and the others end in an IndexError or ValueError of their own.
        """
        labels = None if y is None else column_or_1d(as_array(y), warn=True)
        if labels is not None:
            check_classification_targets(labels)
        found = self._fit_fusion(X, labels)
        self._probabilities = self._are_probabilities(X, found)
        count = class_scores(found).shape[1]
        self.classes_, self._order = self._sorted_classes(count)
        if labels is not None and not np.isin(labels, self.classes_).all():
            if np.isin(labels, np.arange(count)).all():
                self._check_positions(labels, count)
                self.classes_ = np.arange(count)
            self._check_known(labels)
        return self

    def _are_probabilities(self, X: Any, found: np.ndarray) -> bool:
        """Whether outputs are probabilities; a fusion of others may have no graph that tells."""
        spec = getattr(self.fusion_, "graph_", None)
        answer = are_probabilities(self.outputs, spec)
        within = self.outputs == "auto" and found.min() >= 0 and found.max() <= 1 + 1e-3  # or there is no need to trace it
        if within and spec is None and isinstance(X, FusionInput):
            answer = seems_probable(self.fused_model_, X.tensors(self.fused_model_, slice(0, 2)))
        if self.outputs == "auto" and not answer and sum_to_one(found):
            warnings.warn(
                "The network's outputs look like probabilities, but its operations do not tell so, and they count as logits. Say "
                "which they are: FusionClassifier(outputs='probabilities') or outputs='logits'.",
                FusionWarning,
                stacklevel=4,
            )
        return answer

    def _sorted_classes(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of so many outputs in sorted order, and the output of each."""
        given = np.arange(count) if self.classes is None else as_array(self.classes)
        try:
            classes, order = np.unique(given, return_index=True)
        except TypeError as error:
            raise FusionError(f"classes must be labels of one type. Got {short_text(self.classes)}.") from error
        if given.ndim != 1 or len(classes) != len(given):
            raise FusionError(f"classes must be a list of labels that are all different. Got {short_text(self.classes)}.")
        if len(given) != count:
            raise FusionError(f"classes has {len(given)} labels, but the network tells {count} classes apart.")
        return classes, order

    def predict(self, X: Any) -> np.ndarray:
        """Labels of rows.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
            Models that a FusionInput carries are not looked at.

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        NonFiniteError
            If outputs are NaN.
        """
        best = self._scores(X).argmax(1)
        return self.classes_[best]

    def decision_function(self, X: Any) -> np.ndarray:
        """Outputs of the network in the order of `classes_`; for two classes the second less the first.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes in the order of `classes_`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        scores = self._scores(X)
        return _shares(scores) if self._probabilities else softmax(scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of `predict_proba`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        scores = self._scores(X)
        with np.errstate(divide="ignore"):
            return np.log(_shares(scores)) if self._probabilities else log_softmax(scores, axis=1)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional

        Raises
        ------
        FusionError
            If `y` holds a label that is not in `classes_`.
        """
        predicted, labels = self.predict(X), column_or_1d(as_array(y))
        self._check_known(labels)
        return float(accuracy_score(labels, predicted, sample_weight=sample_weight))

    def _scores(self, X: Any) -> np.ndarray:
        predicted = self._outputs(X)
        return class_scores(predicted, self._probabilities)[:, self._order]

    def _check_positions(self, positions: np.ndarray, count: int) -> None:
        """Positions that a tool has given to the labels that occur are those of all classes only if there are as many."""
        if positions.max() < count - 1:
            raise FusionError(
                f"y holds {np.unique(positions)[:5].tolist()} where the classes are {_few(self.classes_)}: positions, as "
                "VotingClassifier, StackingClassifier and cross_val_predict of probabilities make of the labels that occur. "
                f"{count - 1} is not among them, so a class may be missing and the others shifted. Give y with all classes, in "
                "stratified folds, or labels themselves."
            )

    def _check_known(self, labels: np.ndarray) -> None:
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise FusionError(
                f"y holds {unknown[:5].tolist()}, but the classes are {_few(self.classes_)}; relabel y, or say which labels the "
                "outputs stand for: FusionClassifier(classes=[...])."
            )


class FusionRegressor(RegressorMixin, Predictor):
    """Fuse networks into one and predict continuous targets with it.

    Parameters
    ----------
    fusion : estimator, optional
        Any fusion of this library; ``WassersteinFusion()`` by default. It is cloned.
    batch_size : int, default=200
        Rows that the network is run on at a time. It runs on its own device, and rows are cast to its floating type: floats, and
        whole numbers where it does not run on these as they are.

    Attributes
    ----------
    fusion_ : estimator
        The fitted fusion, with `couplings_`, `graph_` and what else it has.
    fused_model_ : Module
        That of `fusion_`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_wbfuse import FusionInput
    >>> _ = torch.manual_seed(0)
    >>> model, X = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)), torch.randn(20, 3)
    >>> regressor = FusionRegressor().fit(FusionInput([model, model], X))
    >>> regressor.predict(X).shape, regressor.score(X, model(X).detach())
    ((20,), 1.0)
    """

    _kind = "targets"

    def __init__(self, fusion: Any = None, *, batch_size: int = 200):
        self.fusion = fusion
        self.batch_size = batch_size

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Any:
        """Fuse the models.

        Parameters
        ----------
        X : FusionInput, or list of Module
            The models, and rows if there are any.
        y : array-like of shape (n_samples,) or (n_samples, n_targets), optional
            Targets. They are checked and not learnt from.

        Returns
        -------
        self
        """
        if y is not None:
            check_array(as_array(y), dtype="numeric", ensure_2d=False, allow_nd=True, input_name="y")
        self._fit_fusion(X, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Outputs of the network.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
            Models that a FusionInput carries are not looked at.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
        """
        predicted = self._outputs(X)
        return predicted[:, 0] if predicted.ndim == 2 and predicted.shape[1] == 1 else predicted

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """R2, the mean over targets.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
        sample_weight : array-like of shape (n_samples,), optional

        Raises
        ------
        FusionError
            If there are not as many targets as outputs.
        """
        predicted, targets = self.predict(X), as_array(y)
        if predicted.size != targets.size:
            raise FusionError(f"y has shape {targets.shape}, but the predictions have {predicted.shape}.")
        n = len(predicted)
        return float(r2_score(targets.reshape(n, -1), predicted.reshape(n, -1), sample_weight=sample_weight))


def _shares(scores: np.ndarray) -> np.ndarray:
    """Probabilities divided by their sum; equal ones where all are 0."""
    sums = scores.sum(1, keepdims=True)
    return np.where(sums == 0, 1 / scores.shape[1], scores / np.where(sums == 0, 1, sums)).astype(scores.dtype)


def _few(classes: np.ndarray) -> str:
    shown = classes[:10].tolist()
    return f"{shown}" if len(classes) <= 10 else f"{shown} and {len(classes) - 10} more"
