"""Models together with rows of data, in one object that scikit-learn can split; and noise that resembles rows."""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.utils import check_consistent_length, check_random_state
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from ..discovery import plain_copy
from ..discovery.model_hints import hint_for_list, is_rows
from ..exceptions import FusionError, InvalidModelError
from ..network.types import Inputs

__all__ = ["N_CACHES", "N_RESULTS", "FusionInput", "floats", "native", "noise_like", "rows_of"]

_CACHES: OrderedDict[str, dict[Any, Any]] = OrderedDict()
"""In a worker process, the caches of the last few FusionInputs that it received."""
_OF_EVERY_MODULE = set(vars(nn.Module()))
N_CACHES = 4
_N_TRIED = 4
"""Number of integer inputs up to which every combination is tried as floats."""
N_RESULTS = 16
"""Number of results that one cache holds."""
_LOCK = threading.RLock()
"""Held while a result is computed, so that threads of a search share it and networks are traced one at a time."""


class FusionInput:
    """Models to fuse together with rows of data, so that scikit-learn can split the rows.

    Behaves like an array over the rows of `X`: it has a length and a shape and can be indexed by rows; the models stay the same.
    Slices share one cache of discoveries, and so do the copies within one worker process. It cannot be converted to an array:
    apply transformers, including those of a pipeline, to `X` first.

    Parameters
    ----------
    models : list of Module
    X : array-like or Tensor of shape (n_samples, ...), or tuple of them
        Inputs of the networks; a tuple for networks with several inputs. Floating-point inputs are cast to the networks'
        floating-point dtype, and so are integers and booleans if a network does not run on them as they are (it does on tokens).

    Raises
    ------
    ValueError
        If several inputs have different lengths.
    FusionError
        If `X` does not hold real numbers, or `models` is no list.
    TypeError
        If `X` is a stream of batches; use `from_batches`.

    Examples
    --------
    >>> import numpy as np, torch
    >>> rows = FusionInput([torch.nn.Linear(4, 2)], np.zeros((10, 4), dtype="float32"))
    >>> len(rows), rows.shape, len(rows[np.array([0, 3])])
    (10, (10, 4), 2)
    """

    def __init__(self, models: Sequence[nn.Module], X: Any):
        if isinstance(models, (nn.Module, str, bytes, Mapping)) or not isinstance(models, Iterable) or is_rows(models):
            hint = hint_for_list(models)
            swapped = is_rows(models) and isinstance(X, (list, tuple)) and bool(X) and isinstance(X[0], nn.Module)
            raise InvalidModelError(f"models must be a list. {'Put models first: FusionInput(models, X).' if swapped else hint}")
        self.models = list(models)
        arrays = X if isinstance(X, tuple) else (X,)
        if any(hasattr(a, "__next__") or isinstance(a, DataLoader) for a in arrays):
            raise TypeError(
                "X must hold rows. Got a stream of batches; FusionInput.from_batches(models, batches) draws rows from it."
            )
        if any(isinstance(a, Dataset) for a in arrays):
            raise TypeError("X must hold rows. Got a Dataset; give its inputs: torch.stack([x for x, _ in dataset]).")
        self.arrays = tuple(_checked(a) for a in arrays)
        if not all(len(a.shape) for a in self.arrays):
            raise FusionError("X must hold rows. Got a single number.")
        check_consistent_length(*self.arrays)
        self._as_floats = frozenset[int]()
        self.cache: dict[Any, Any] = {}
        self._token, self._names = uuid.uuid4().hex, dict[int, int]()

    @classmethod
    def from_batches(
        cls, models: Sequence[nn.Module], batches: Iterable[Any], n_samples: int = 2000, *, random_state: Any = None
    ) -> FusionInput:
        """Draw rows uniformly from a stream of batches, such as a ``DataLoader``, in memory that does not grow with it.

        Parameters
        ----------
        models : list of Module
        batches : iterable of Tensor, ndarray or tuple of them
            Inputs of the networks, read once: for ``(X, y)`` give ``(X for X, y in loader)``.
        n_samples : int
            Number of rows to draw; all rows if there are fewer.
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
            raise TypeError("batches must be a stream of batches. Got one array of rows; use FusionInput(models, X).")
        if n_samples < 1:
            raise FusionError(f"n_samples must be at least 1. Got {n_samples}.")
        rng, sample, n_read = check_random_state(random_state), list[Any](), 0
        for batch in batches:
            arrays = cls([], tuple(batch) if isinstance(batch, (tuple, list)) else batch).arrays
            for row in zip(*arrays, strict=True):  # reservoir sampling
                n_read += 1
                position = n_read - 1 if n_read <= n_samples else rng.randint(n_read)
                if position < n_samples:
                    sample[position : position + 1] = [[r.clone() if isinstance(r, Tensor) else np.array(r) for r in row]]
        if not sample:
            raise FusionError("batches must hold rows. Got none; a generator can only be read once.")
        columns = list(zip(*sample, strict=True))
        if any(c.shape != column[0].shape for column in columns for c in column):
            raise FusionError("All rows must have one shape. Got several; pad them.")
        return cls(models, tuple(torch.stack(c) if isinstance(c[0], Tensor) else np.stack(c) for c in columns))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) input."""
        return tuple(self.arrays[0].shape)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise FusionError(
            "A FusionInput can't become an array, which has no place for its models: transformers, and estimators other than "
            "fusions, take rows alone. Transform the rows first, rows = scaler.fit_transform(X), then fit or search, "
            "fitted = FusionClassifier().fit(FusionInput(models, rows), y). To predict for untransformed rows, use "
            "make_pipeline(scaler, fitted)."
        )

    def __getitem__(self, key: Any) -> FusionInput:
        rows = key[0] if isinstance(key, tuple) else key
        if isinstance(rows, (int, np.integer)):
            raise TypeError("A FusionInput must be indexed by a slice, a mask or an array of rows. Got a single row.")
        if isinstance(rows, slice) and (rows.step or 1) < 0:  # torch does not support negative strides
            rows = np.arange(len(self))[rows].copy()
        part = object.__new__(FusionInput)
        part.models = self.models
        part.arrays = tuple(
            a[torch.as_tensor(rows)] if isinstance(a, Tensor) and not isinstance(rows, slice) else a[rows] for a in self.arrays
        )
        part._as_floats = self._as_floats
        part.cache, part._token, part._names = self.cache, self._token, self._names
        return part

    def __getstate__(self) -> dict[str, Any]:
        arrays = tuple(_mappable(a) for a in self.arrays)
        names = self._named(self.models)
        return {"models": self.models, "arrays": arrays, "floats": self._as_floats, "token": self._token, "names": names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.models, self.arrays, self._token = state["models"], state["arrays"], state["token"]
        self._as_floats = state["floats"]
        self._names = dict(zip(map(id, self.models), state["names"], strict=True))
        self.cache = _CACHES.setdefault(self._token, {})
        _CACHES.move_to_end(self._token)
        while len(_CACHES) > N_CACHES:
            _CACHES.popitem(last=False)

    def __repr__(self) -> str:
        return f"FusionInput({len(self.models)} models, rows of shape {self.shape})"

    def cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return the result of `compute` for these models and a key (any tree of values and tensors), shared by all slices."""
        leaves, structure = pytree.tree_flatten(key)
        values = [(str(v.dtype), v.detach().cpu().double().numpy()) if isinstance(v, Tensor) else v for v in leaves]
        shapes = [(tuple(a.shape[1:]), str(a.dtype)) for a in self.arrays]
        structures = repr((shapes, list(map(_structure, self.models))))  # joblib hashes text ten times as fast as lists
        key = (joblib.hash((values, structures)), str(structure), *self._named(self.models))
        with _LOCK:
            if key not in self.cache:
                self.cache[key] = (compute(), list(self.models))  # holds the models, so that their ids stay valid
            result = self.cache[key] = self.cache.pop(key)  # the most recently used is the last
            while len(self.cache) > N_RESULTS:
                del self.cache[next(iter(self.cache))]
        return result[0]

    def _named(self, models: Iterable[nn.Module]) -> list[int]:
        """Return identifiers of models that stay the same in another process."""
        return [self._names.get(id(m), id(m)) for m in models]

    def taken_by(self, model: nn.Module) -> FusionInput:
        """Return the same rows; `tensors` casts their integers and booleans to floats if a model only runs on these."""
        if all(map(floats, self.arrays)) or not len(self):
            return self
        key = ("whole numbers as floats", repr(_structure(model)))
        return self._with_floats(self.cached(key, lambda: self.with_floats_for(plain_copy(model))._as_floats))

    def with_floats_for(self, model: nn.Module) -> FusionInput:
        """Do the same as `taken_by` for a model in eval mode that may be run without copying it."""
        integers = [k for k, a in enumerate(self.arrays) if not floats(a)]
        if not integers or self._as_floats:
            return self
        counts = range(len(integers) + 1) if len(integers) <= _N_TRIED else (0, len(integers))
        for as_floats in itertools.chain.from_iterable(itertools.combinations(integers, n) for n in counts):
            trial = self[:2]._with_floats(frozenset(as_floats))
            with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(*trial.tensors(model))
                return self._with_floats(trial._as_floats)
        return self  # running the network on these rows will raise the error

    def _with_floats(self, positions: frozenset[int]) -> FusionInput:
        part = self[:]
        part._as_floats = positions
        return part

    def tensors(self, like: nn.Module, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """Return the rows as tensors in the floating-point dtype and on the device of a model."""
        parameter = next((p for p in like.parameters() if p.is_floating_point()), torch.zeros(()))
        parts = [a[rows] for a in self.arrays]
        # torch warns about sharing memory that is read-only, such as that of a mapped file
        tensors = [torch.as_tensor(p if isinstance(p, Tensor) or p.flags.writeable else p.copy()) for p in parts]
        dtypes = [parameter.dtype if floats(t) or k in self._as_floats else t.dtype for k, t in enumerate(tensors)]
        return tuple(t.to(parameter.device, dtype) for t, dtype in zip(tensors, dtypes, strict=True))


def noise_like(arrays: Iterable[Any]) -> Inputs:
    """Return two rows of noise for each array, in its shape and dtype and uniform between its smallest and largest value.

    Integers and booleans that are sorted along the last axis are sorted in the noise as well, and start with the same value if
    all rows do: lengths of packed sequences, padding masks.
    """
    rng = np.random.default_rng(0)

    def noise(array: Any) -> Any:
        if not isinstance(array, (Tensor, np.ndarray)):
            return array
        tensor = torch.as_tensor(array).detach().cpu()
        is_floating, shape = tensor.is_floating_point(), (2, *tensor.shape[1:])
        values = tensor.double().nan_to_num(0, 0, 0).numpy() if is_floating else tensor.numpy()
        least, largest = (values.min(), values.max()) if values.size else (0, 0)
        if is_floating:
            return torch.as_tensor(rng.uniform(least, largest, shape)).to(tensor.dtype)
        drawn = rng.integers(int(least), int(largest), shape, values.dtype if values.dtype.kind in "iu" else int, endpoint=True)
        return torch.as_tensor(_ordered_as(values, drawn)).to(tensor.dtype)

    return tuple(map(noise, arrays))


def _ordered_as(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Sort noise along the last axis if the values are sorted."""
    left, right = values[..., :-1], values[..., 1:]
    falls, rises = (left >= right).all(), (left <= right).all()
    if not (falls or rises) or not values.size:
        return drawn
    drawn = np.sort(drawn, -1)[..., :: -1 if falls else 1].copy()
    if drawn.ndim > 1 and (values[..., 0] == values.flat[0]).all():
        drawn[..., 0] = values.flat[0]
    return drawn


def rows_of(X: Any) -> FusionInput:
    """Return rows as a FusionInput.

    Raises
    ------
    TypeError
        If X is a model or a list of models.
    """
    if isinstance(X, nn.Module) or (isinstance(X, (list, tuple)) and X and isinstance(X[0], nn.Module)):
        raise TypeError("Rows of data are needed, not models: give FusionInput(models, X), or X.")
    return X if isinstance(X, FusionInput) else FusionInput([], X)


def _checked(array: Any) -> Tensor | np.ndarray:
    """Return rows that torch accepts: dense real numbers of a supported dtype, without negative strides."""
    if isinstance(array, Tensor):
        if array.is_complex() or array.is_quantized or array.layout != torch.strided:
            raise FusionError(f"X must be a dense tensor of real numbers. Got one of {array.dtype} and {array.layout}.")
        return array
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise FusionError(f"X must hold real numbers, in rows of one shape. Got an array of dtype {array.dtype}.")
    array = native(array)
    return array.copy() if any(stride < 0 for stride in array.strides) else array


def native(array: np.ndarray) -> np.ndarray:
    """Return numbers of at most 8 bytes in native byte order."""
    return array.astype(np.float64) if array.dtype.itemsize > 8 else array.astype(array.dtype.newbyteorder("="), copy=False)


def floats(array: Any) -> bool:
    """Return whether an array or tensor holds floating-point numbers."""
    return array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"


def _structure(model: nn.Module) -> list[Any]:
    """Return a description of a network without the values of its tensors, from its attributes."""
    plain = (type(None), str, int, float, tuple, torch.dtype)
    parts: list[Any] = [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items() if isinstance(t, Tensor)]
    for path, module in model.named_modules():
        attributes = {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}
        described = [(k, repr(v) if isinstance(v, plain) else getattr(v, "__qualname__", "")) for k, v in attributes.items()]
        parts.append((path, type(module).__qualname__, described))
    return parts


def _mappable(array: Any) -> Any:
    """Return the rows as a NumPy array if possible: joblib maps these into other processes instead of copying them."""
    in_numpy = isinstance(array, Tensor) and array.device.type == "cpu" and array.dtype != torch.bfloat16
    return array.detach().numpy() if in_numpy else array
