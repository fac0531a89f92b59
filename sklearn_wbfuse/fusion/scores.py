"""What networks say of rows, how that is read, and how good it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import type_of_target
from torch import Tensor, nn

from ..exceptions import FusionError, NonFiniteError
from ..groups import Graph
from .data import FusionInput

__all__ = ["are_probabilities", "as_array", "check_labels", "class_scores", "holds_targets", "outputs", "score_outputs"]


@torch.no_grad()
def outputs(model: nn.Module, data: FusionInput, batch_size: int = 200) -> np.ndarray:
    """Outputs of a network in eval mode, batch by batch, shape (n_samples, ...); the mode is put back.

    Raises
    ------
    FusionError
        If there are no rows, or the network returns several tensors.
    """
    if not len(data):
        raise FusionError("There are no rows to score on; give a FusionInput with at least one.")
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        pieces = [model(*data.tensors(model, slice(i, i + batch_size))) for i in range(0, len(data), batch_size)]
    except (RuntimeError, IndexError) as error:  # IndexError: tokens beyond an embedding
        rows = [f"{tuple(a.shape)} {a.dtype}" for a in data.arrays]
        raise FusionError(
            f"The network does not run on rows of {', '.join(rows)}: {error}. Integers are not made floats."
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(pieces[0], Tensor):
        raise FusionError(
            f"score needs a network that returns one tensor. Got {type(pieces[0]).__name__}; "
            "wrap it so that it returns the logits."
        )
    predicted = torch.cat(pieces).cpu()
    return (predicted if predicted.dtype == torch.float64 else predicted.float()).numpy()


def as_array(y: Any) -> np.ndarray:
    """Labels or targets, also of tensors on other devices or with gradients, as an array."""
    return np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)


def check_labels(data: FusionInput, y: Any) -> None:
    """Raise a FusionError unless there is one label for each row."""
    if len(y) != len(data):
        raise FusionError(f"X has {len(data)} rows but y has {len(y)}; give one label per row.")


def class_scores(predicted: np.ndarray, probabilities: bool = False) -> np.ndarray:
    """Outputs of a classifier as one column per class; a single logit z becomes the columns 0 and z, a probability p 1 - p and p.

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


def are_probabilities(said: str, graph: Graph | None) -> bool:
    """Whether outputs are probabilities: as it is said, for "auto" whether the network ends in a softmax or a sigmoid."""
    return graph is not None and graph.ends_in_probabilities if said == "auto" else said == "probabilities"


def holds_targets(y: np.ndarray) -> bool:
    """Whether labels are continuous targets."""
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
    """Accuracy where `y` holds classes, R2 where it is continuous.

    Parameters
    ----------
    predicted : ndarray of shape (n_samples, n_classes) or (n_samples,) or (n_samples, n_targets)
    y : array-like
        Class k is output k.
    is_continuous : bool, optional
        Whether `y` holds targets. By default its values tell.
    whose : str
        What errors call the network.

    Raises
    ------
    FusionError
        If a label has no output, or there is not one label per row or one target per output.
    ValueError
        If lengths differ.
    """
    from sklearn.metrics import accuracy_score, r2_score  # local: not needed for a fit

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
