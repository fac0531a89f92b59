"""The outputs of networks on rows, their interpretation, and their scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import type_of_target
from torch import Tensor, nn

from ..discovery import cast_inputs
from ..exceptions import FusionError, NonFiniteError
from ..network.spec import NetworkSpec
from .fusion_input import FusionInput, floats

__all__ = [
    "are_probabilities",
    "as_array",
    "check_labels",
    "class_scores",
    "holds_targets",
    "outputs",
    "outputs_for",
    "score_outputs",
    "sum_to_one",
]


@torch.no_grad()
def outputs_for(model: nn.Module, inputs: Sequence[Any]) -> np.ndarray:
    """Return the outputs of a network in eval mode on one batch of positional arguments, which need not be tensors."""
    with _eval_mode(model):
        return _one_array([model(*cast_inputs(inputs, model))])


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def outputs(model: nn.Module, data: FusionInput, batch_size: int = 200) -> np.ndarray:
    """Return the outputs of a network in eval mode on rows, of shape (n_samples, ...); its mode is restored.

    Raises
    ------
    FusionError
        If there are no rows, or the network returns several tensors.
    """
    if not len(data):
        raise FusionError("X must have at least one row. Got none.")
    try:
        with _eval_mode(model):
            data = data.with_floats_for(model)
            pieces = [model(*data.tensors(model, slice(i, i + batch_size))) for i in range(0, len(data), batch_size)]
    except (RuntimeError, IndexError, TypeError, ValueError) as error:  # IndexError: tokens beyond an embedding
        rows = [f"{tuple(a.shape)} {str(a.dtype).removeprefix('torch.')}" for a in data.arrays]
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise FusionError(f"The network does not run on rows of {', '.join(rows)}: {why}. {_on_dtypes(data)}") from error
    return _one_array(pieces)


def _one_array(pieces: list[Any]) -> np.ndarray:
    if not isinstance(pieces[0], Tensor):
        raise FusionError(
            f"The network must return one tensor to be scored. Got {type(pieces[0]).__name__}; wrap it so that it returns the "
            "logits."
        )
    predicted = torch.cat(pieces).cpu()
    return (predicted if predicted.dtype == torch.float64 else predicted.float()).numpy()


def _on_dtypes(data: FusionInput) -> str:
    """Return a hint at the dtypes of rows on which a network does not run."""
    if all(map(floats, data.arrays)):
        return "Give rows of the shape that it takes; floats are not made whole numbers, which tokens must be."
    return "Give rows of the shape that it takes; whole numbers were tried as they are and as floats."


def as_array(y: Any) -> np.ndarray:
    """Return labels or targets as an array; they may be tensors on other devices or with gradients."""
    return np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)


def check_labels(data: FusionInput, y: Any) -> None:
    """Raise a FusionError unless there is one label for each row."""
    if len(y) != len(data):
        raise FusionError(f"X has {len(data)} rows but y has {len(y)}; give one label per row.")


def class_scores(predicted: np.ndarray, probabilities: bool = False) -> np.ndarray:
    """Return outputs with one column per class: a single logit z becomes 0 and z, a probability p becomes 1 - p and p.

    Raises
    ------
    FusionError
        If a row has more than one axis.
    NonFiniteError
        If outputs are NaN.
    """
    if predicted.ndim > 2:
        raise FusionError(f"A classifier returns one row of outputs per row of X. Got outputs of shape {predicted.shape}.")
    if np.isnan(predicted).any():
        row = int(np.argwhere(np.isnan(predicted))[0][0])
        raise NonFiniteError(f"The network's output for row {row} is NaN; look for NaN or very large values in X.")
    columns = predicted.reshape(len(predicted), -1)
    if columns.shape[1] > 1:
        return columns
    return np.column_stack([1 - columns if probabilities else np.zeros_like(columns), columns])


def are_probabilities(kind: str, spec: NetworkSpec | None) -> bool:
    """Return whether outputs are probabilities: by their `kind`, or for "auto" by the network's operations."""
    return spec is not None and spec.ends_in_probabilities if kind == "auto" else kind == "probabilities"


def sum_to_one(predicted: np.ndarray) -> bool:
    """Return whether outputs look like probabilities of several classes, judging by their values."""
    is_possible = predicted.ndim == 2 and predicted.shape[1] > 1 and predicted.min() >= 0
    return bool(is_possible and np.allclose(predicted.sum(1), 1, atol=1e-3))


def holds_targets(y: np.ndarray) -> bool:
    """Return whether labels are continuous targets."""
    return type_of_target(y).startswith("continuous") or (y.ndim > 2 and y.dtype.kind == "f")


def score_outputs(
    predicted: np.ndarray,
    y: Any,
    sample_weight: Any = None,
    *,
    probabilities: bool = False,
    is_continuous: bool | None = None,
    whose: str = "the network",
) -> float:
    """Return the accuracy if `y` holds classes, R2 if it is continuous.

    Parameters
    ----------
    predicted : ndarray of shape (n_samples, n_classes) or (n_samples,) or (n_samples, n_targets)
    y : array-like
        Class k is output k.
    is_continuous : bool, optional
        Whether `y` holds targets; by default this is inferred from its values.
    whose : str
        The name of the network in errors.

    Raises
    ------
    FusionError
        If a label has no output, or there is not one label per row or one target per output.
    ValueError
        If lengths differ.
    """
    from sklearn.metrics import accuracy_score, r2_score  # imported here: a fit does not need it

    y = as_array(y)
    check_consistent_length(predicted, y)
    if holds_targets(y) if is_continuous is None else is_continuous:
        if predicted.size != y.size:
            raise FusionError(
                f"y holds continuous targets of shape {y.shape}, but the outputs of {whose} have shape {predicted.shape}; "
                "give one target per output, or classes as whole numbers."
            )
        n = len(y)
        return float(r2_score(y.reshape(n, -1), predicted.reshape(n, -1), sample_weight=sample_weight))
    scores = class_scores(predicted, probabilities)
    for_regressor = "Whole-number targets are for FusionRegressor, whose score is R2."
    if y.size != len(y):
        raise FusionError(f"y has shape {y.shape}; give one class per row, y.argmax(1) for one-hot labels. {for_regressor}")
    unknown = np.setdiff1d(y, np.arange(scores.shape[1]))
    if len(unknown):
        hint = f" {for_regressor}" if predicted.size == len(predicted) else ""
        hint = " Labels of other kinds are for FusionClassifier(classes=[...])." if y.dtype.kind in "OSU" else hint
        raise FusionError(
            f"The network has outputs for classes 0 to {scores.shape[1] - 1}, but y holds {unknown[:5].tolist()}; "
            f"relabel y.{hint}"
        )
    return float(accuracy_score(y, scores.argmax(1), sample_weight=sample_weight))
