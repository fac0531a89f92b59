"""A fusion as a classifier or regressor of scikit-learn, which predicts with the fused network."""

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

    For outputs z of shape (n_samples, n_classes), logits or log-probabilities, class k has the probability
    :math:`e^{z_k} / \sum_j e^{z_j}`. Outputs that are probabilities are only divided by their sum. A single output is the logit
    or the probability of the second of two classes.

    Parameters
    ----------
    fusion : estimator, optional
        Any fusion of this library; ``WassersteinFusion()`` by default. It is cloned.
    classes : array-like of shape (n_classes,), optional
        Labels of the outputs, in the order of the outputs; 0, 1, ... by default.
    batch_size : int, default=200
        Number of rows of one run of the network. It runs on its own device, and rows are cast to its floating-point dtype:
        floats, and integers if it does not run on these as they are.
    outputs : {"auto", "logits", "probabilities"}, default="auto"
        The kind of outputs; "auto" means probabilities if the network's operations confine all outputs to [0, 1]: a softmax or a
        sigmoid, perhaps followed by operations that cast, clamp, average or rearrange their values. If this cannot be determined
        from the operations, outputs are logits.

    Attributes
    ----------
    fusion_ : estimator
        The fitted fusion, with its `couplings_`, `graph_` and other attributes.
    fused_model_ : Module
        The fused network of `fusion_`.
    classes_ : ndarray of shape (n_classes,)
        Sorted labels, in the order of the columns of `predict_proba` and `decision_function`.

    See Also
    --------
    compare : Fusions together with their controls, without a search.

    Examples
    --------
    A search over fusions and their parameter `reg`:

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
            Labels. They are only checked. Positions in the sorted `classes` are accepted too, since some tools of scikit-learn
            pass these on; `classes_` are then 0, 1, .... The last position must be among them: these tools number the labels
            that occur, so that a missing class shifts the others.

        Returns
        -------
        self

        Raises
        ------
        FusionError
            If the network is no classifier, `classes` or `y` does not match its outputs, or `y` holds positions that a missing
            class may have shifted.

        Notes
        -----
        If `classes` are integers, positions cannot be distinguished from labels. Pass all classes to tools that number labels or
        compare `classes_` with the labels that occur: ``VotingClassifier``, ``StackingClassifier``, ``CalibratedClassifierCV``,
        ``cross_val_predict(method="predict_proba")``. If `y` lacks one of 0, 1, ..., the first of these predicts shifted labels,
        and the others raise an IndexError or ValueError.
        """
        labels = None if y is None else column_or_1d(as_array(y), warn=True)
        if labels is not None:
            check_classification_targets(labels)
        example_outputs = self._fit_fusion(X, labels)
        self._probabilities = self._are_probabilities(X, example_outputs)
        count = class_scores(example_outputs).shape[1]
        self.classes_, self._order = self._sorted_classes(count)
        if labels is not None and not np.isin(labels, self.classes_).all():
            if np.isin(labels, np.arange(count)).all():
                self._check_positions(labels, count)
                self.classes_ = np.arange(count)
            self._check_known(labels)
        return self

    def _are_probabilities(self, X: Any, example_outputs: np.ndarray) -> bool:
        """Return whether outputs are probabilities; a fusion of another library may have no `graph_` to determine it."""
        spec = getattr(self.fusion_, "graph_", None)
        answer = are_probabilities(self.outputs, spec)
        is_possible = (
            self.outputs == "auto" and example_outputs.min() >= 0 and example_outputs.max() <= 1 + 1e-3
        )  # if not, the network need not be traced
        if is_possible and spec is None and isinstance(X, FusionInput):
            answer = seems_probable(self.fused_model_, X.tensors(self.fused_model_, slice(0, 2)))
        if self.outputs == "auto" and not answer and sum_to_one(example_outputs):
            warnings.warn(
                "The network's outputs look like probabilities, but its operations do not determine this, and they count as "
                "logits. Set FusionClassifier(outputs='probabilities') or outputs='logits'.",
                FusionWarning,
                stacklevel=4,
            )
        return answer

    def _sorted_classes(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels of `count` outputs in sorted order, and the output of each."""
        labels = np.arange(count) if self.classes is None else as_array(self.classes)
        try:
            classes, order = np.unique(labels, return_index=True)
        except TypeError as error:
            raise FusionError(f"classes must be labels of one type. Got {short_text(self.classes)}.") from error
        if labels.ndim != 1 or len(classes) != len(labels):
            raise FusionError(f"classes must be a list of labels that are all different. Got {short_text(self.classes)}.")
        if len(labels) != count:
            raise FusionError(f"classes must have one label for each of the network's {count} classes. Got {len(labels)}.")
        return classes, order

    def predict(self, X: Any) -> np.ndarray:
        """Predict the labels of rows.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
            Rows; the models of a FusionInput are ignored.

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
        """Return the network's outputs in the order of `classes_`; for two classes the second minus the first.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes in the order of `classes_`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        scores = self._scores(X)
        return _normalised(scores) if self._probabilities else softmax(scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of `predict_proba`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        scores = self._scores(X)
        with np.errstate(divide="ignore"):
            return np.log(_normalised(scores)) if self._probabilities else log_softmax(scores, axis=1)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy.

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
        """Check that positions include the last one: only then has no class been lost by numbering the labels that occur."""
        if positions.max() < count - 1:
            raise FusionError(
                f"y must hold labels, {_shortened(self.classes_)}, or all of their positions. Got "
                f"{np.unique(positions)[:5].tolist()}: positions, with which VotingClassifier, StackingClassifier and "
                f"cross_val_predict of probabilities replace the labels that occur. {count - 1} is not among them, so a class "
                "may be missing and the others shifted. Give y with all classes, in stratified folds, or labels themselves."
            )

    def _check_known(self, labels: np.ndarray) -> None:
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise FusionError(
                f"y must hold labels among {_shortened(self.classes_)}. Got {unknown[:5].tolist()}; relabel y, or name the "
                "labels of the outputs: FusionClassifier(classes=[...])."
            )


class FusionRegressor(RegressorMixin, Predictor):
    """Fuse networks into one and predict continuous targets with it.

    Parameters
    ----------
    fusion : estimator, optional
        Any fusion of this library; ``WassersteinFusion()`` by default. It is cloned.
    batch_size : int, default=200
        Number of rows of one run of the network. It runs on its own device, and rows are cast to its floating-point dtype:
        floats, and integers if it does not run on these as they are.

    Attributes
    ----------
    fusion_ : estimator
        The fitted fusion, with its `couplings_`, `graph_` and other attributes.
    fused_model_ : Module
        The fused network of `fusion_`.

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
            Targets. They are only checked.

        Returns
        -------
        self
        """
        if y is not None:
            check_array(as_array(y), dtype="numeric", ensure_2d=False, allow_nd=True, input_name="y")
        self._fit_fusion(X, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict the targets of rows.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
            Rows; the models of a FusionInput are ignored.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
        """
        predicted = self._outputs(X)
        return predicted[:, 0] if predicted.ndim == 2 and predicted.shape[1] == 1 else predicted

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return R2, averaged over targets.

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


def _normalised(scores: np.ndarray) -> np.ndarray:
    """Divide probabilities by their sum; rows of zeros become equal probabilities."""
    sums = scores.sum(1, keepdims=True)
    return np.where(sums == 0, 1 / scores.shape[1], scores / np.where(sums == 0, 1, sums)).astype(scores.dtype)


def _shortened(classes: np.ndarray) -> str:
    shown = classes[:10].tolist()
    return f"{shown}" if len(classes) <= 10 else f"{shown} and {len(classes) - 10} more"
