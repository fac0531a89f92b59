"""Models together with rows of data, and the score of a network on such rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.multiclass import type_of_target
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..exceptions import FusionError

__all__ = ["FusionInput", "outputs", "score_outputs"]


class FusionInput:
    """Models to be fused, carried along with rows of data, so that scikit-learn can split the rows.

    Behaves as an array over the rows of `X`: it has a length and a shape and can be indexed by rows, which leaves the models
    alone. Slices share one cache of discoveries.

    Parameters
    ----------
    models : list of Module
    X : array-like or Tensor of shape (n_samples, ...), or tuple of them
        Inputs of the networks; a tuple for networks with several inputs.

    Raises
    ------
    ValueError
        If several inputs have different lengths.
    TypeError
        If `X` is a stream of batches, for which there is `from_batches`.

    Examples
    --------
    >>> import numpy as np, torch
    >>> rows = FusionInput([torch.nn.Linear(4, 2)], np.zeros((10, 4), dtype="float32"))
    >>> len(rows), rows.shape, len(rows[np.array([0, 3])])
    (10, (10, 4), 2)
    """

    def __init__(self, models: Sequence[nn.Module], X: Any):
        self.models = models if isinstance(models, nn.Module) else list(models)
        arrays = X if isinstance(X, tuple) else (X,)
        if any(hasattr(a, "__next__") or isinstance(a, DataLoader) for a in arrays):
            raise TypeError(
                "X must hold rows. Got a stream of batches; FusionInput.from_batches(models, batches) draws rows from it."
            )
        self.arrays = tuple(a if isinstance(a, (Tensor, np.ndarray)) else np.asarray(a) for a in arrays)
        check_consistent_length(*self.arrays)
        self.cache: dict[Any, Any] = {}

    @classmethod
    def from_batches(
        cls, models: Sequence[nn.Module], batches: Iterable[Any], n_samples: int = 2000, *, random_state: Any = None
    ) -> FusionInput:
        """Rows drawn uniformly from batches of a stream, such as a ``DataLoader``, in memory that does not grow with it.

        Parameters
        ----------
        models : list of Module
        batches : iterable of Tensor, ndarray or tuple of them
            Inputs of the networks, seen once: for ``(X, y)`` give ``(X for X, y in loader)``.
        n_samples : int
            Number of rows to keep; all of them where there are fewer.
        random_state : int, RandomState or None

        Raises
        ------
        FusionError
            If there are no rows.

        Examples
        --------
        >>> import torch
        >>> stream = (torch.full((10, 4), float(k)) for k in range(1000))
        >>> FusionInput.from_batches([torch.nn.Linear(4, 2)], stream, 50, random_state=0)
        FusionInput(1 models, rows of shape (50, 4))
        """
        if isinstance(batches, (Tensor, np.ndarray)):
            raise TypeError("from_batches takes a stream of batches. Got one array of rows; FusionInput(models, X) holds these.")
        if n_samples < 1:
            raise FusionError(f"n_samples must be at least 1. Got {n_samples}.")
        rng, kept, seen = check_random_state(random_state), list[Any](), 0
        for batch in batches:
            arrays = cls([], tuple(batch) if isinstance(batch, (tuple, list)) else batch).arrays
            for row in zip(*arrays, strict=True):  # reservoir sampling
                seen += 1
                at = seen - 1 if seen <= n_samples else rng.randint(seen)
                if at < n_samples:
                    kept[at : at + 1] = [[r.clone() if isinstance(r, Tensor) else np.array(r) for r in row]]
        if not kept:
            raise FusionError("The batches hold no rows; a generator can be read only once.")
        columns = list(zip(*kept, strict=True))
        if any(c.shape != column[0].shape for column in columns for c in column):
            raise FusionError("The batches hold rows of several shapes; pad them to one.")
        return cls(models, tuple(torch.stack(c) if isinstance(c[0], Tensor) else np.stack(c) for c in columns))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) input."""
        return tuple(self.arrays[0].shape)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, key: Any) -> FusionInput:
        rows = key[0] if isinstance(key, tuple) else key
        if isinstance(rows, (int, np.integer)):
            raise TypeError("A FusionInput is indexed by slices, masks or arrays of rows, not by a single row.")
        part = object.__new__(FusionInput)
        part.models = self.models
        part.arrays = tuple(
            a[torch.as_tensor(rows)] if isinstance(a, Tensor) and not isinstance(rows, slice) else a[rows] for a in self.arrays
        )
        part.cache = self.cache
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": {}}

    def __repr__(self) -> str:
        return f"FusionInput({len(self.models)} models, rows of shape {self.shape})"

    def tensors(self, like: nn.Module, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """The rows as tensors in the floating dtype and on the device of a model."""
        parameter = next((p for p in like.parameters() if p.is_floating_point()), torch.zeros(()))
        tensors = [torch.as_tensor(a[rows]) for a in self.arrays]
        return tuple(t.to(parameter.device, parameter.dtype if t.is_floating_point() else t.dtype) for t in tensors)


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
    except RuntimeError as error:
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
    return torch.cat(pieces).float().cpu().numpy()


def score_outputs(predicted: np.ndarray, y: Any) -> float:
    """Accuracy where `y` holds classes, R2 where it is continuous.

    Parameters
    ----------
    predicted : ndarray of shape (n_samples, n_classes) or (n_samples,) or (n_samples, n_targets)
    y : array-like
        Class k is output k.

    Raises
    ------
    ValueError
        If lengths differ, or a label has no output.
    """
    y = np.asarray(y)
    check_consistent_length(predicted, y)
    if type_of_target(y).startswith("continuous"):
        return float(r2_score(y, predicted.reshape(y.shape)))
    if predicted.ndim < 2 or predicted.shape[1] == 1:
        classes, chosen = 2, (predicted.reshape(len(y)) > 0).astype(int)  # one logit
    else:
        classes, chosen = predicted.shape[1], predicted.argmax(1)
    unknown = np.setdiff1d(y, np.arange(classes))
    if len(unknown):
        raise FusionError(
            f"The network has outputs for classes 0 to {classes - 1}, but y holds {unknown[:5].tolist()}; relabel y."
        )
    return float(accuracy_score(y, chosen))
