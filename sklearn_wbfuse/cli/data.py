"""Rows to score on and to fit with, from an npz file."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import type_of_target
from torch import Tensor, nn

from ..data.fusion_input import FusionInput, native
from ..data.scores import outputs_for
from ..exceptions import FusionError

__all__ = ["check_dtypes", "example_inputs", "read_data"]


def read_data(path: Path) -> dict[str, Any]:
    """Rows `X`, or a tuple of X0, X1, ..., likewise `X_fit` if there, and `y`.

    Raises
    ------
    FusionError
        No npz file, without X or y, with pickled objects, or with arrays that are no inputs or no labels.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise FusionError(
            f"--data {path} is no npz file of plain arrays, without pickled objects; write one: numpy.savez(path, X=..., y=...)."
        ) from error
    try:
        return _checked(arrays)
    except FusionError as error:
        raise FusionError(f"--data {path} holds {error}") from error


def _checked(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    found = {"y": arrays.get("y"), "X": _inputs("X", arrays), "X_fit": _inputs("X_fit", arrays)}
    missing = [name for name in ("X", "y") if found[name] is None]
    if missing:
        raise FusionError(f"{list(arrays)}, but no {' and no '.join(missing)}.")
    given = {name: value for name, value in found.items() if value is not None}
    rows = {name: [len(a) if a.ndim else 0 for a in _tuple(value)] for name, value in given.items()}
    if len({*rows["X"], *rows["y"]}) > 1 or len(set(rows.get("X_fit", []))) > 1 or not all(map(all, rows.values())):
        raise FusionError(f"arrays of these numbers of rows: {rows}; X and y need equally many, at least one.")
    _check_labels(given["y"])
    return given


def _inputs(name: str, arrays: dict[str, np.ndarray]) -> Any:
    """One array, or a tuple of those with numbers; None if there are none."""
    numbered = sorted(int(key.removeprefix(name)) for key in arrays if re.fullmatch(rf"{name}[0-9]+", key))
    if name in arrays and numbered:
        raise FusionError(f"both {name} and {name}{numbered[0]}; leave one out.")
    if numbered != list(range(len(numbered))):
        raise FusionError(f"{', '.join(f'{name}{i}' for i in numbered)}; number the inputs from {name}0 on, leaving none out.")
    several = tuple(_numbers(f"{name}{i}", arrays[f"{name}{i}"]) for i in numbered)
    return _numbers(name, arrays[name]) if name in arrays else several or None


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    """An array as PyTorch takes it: of numbers, in the byte order of this machine."""
    if array.dtype.kind not in "biuf":
        raise FusionError(f"{name} of dtype {array.dtype}; save numbers, as the network takes them.")
    return native(array)


def _check_labels(y: np.ndarray) -> None:
    if y.dtype.kind not in "biuf":
        raise FusionError(
            f"y of dtype {y.dtype}; save the numbers of the network's outputs: numpy.unique(y, return_inverse=True)[1]."
        )
    if not np.isfinite(y).all():
        raise FusionError("NaN or infinite values in y; leave these rows out.")
    if y.ndim > 2 or (y.ndim == 2 and y.shape[1] > 1 and not type_of_target(y).startswith("continuous")):
        raise FusionError(f"y of shape {y.shape}; save one number of an output per row, of one-hot labels y.argmax(1).")


def _tuple(X: Any) -> tuple[Any, ...]:
    return X if isinstance(X, tuple) else (X,)


def example_inputs(shapes: Sequence[Sequence[int]] | None) -> tuple[Tensor, ...] | None:
    """Two rows of noise for each shape."""
    generator = torch.Generator().manual_seed(0)
    return None if shapes is None else tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)


def check_dtypes(network: nn.Module, data: dict[str, Any]) -> None:
    """Raise a FusionError if a network does not run on rows, but does on the same in another dtype."""
    for name in ("X", "X_fit"):
        rows = [a[:2] for a in _tuple(data.get(name, ()))]
        if not rows or _runs(network, rows):
            continue
        dtype = next((d for d in ("float32", "int64") if _runs(network, [a.astype(d) for a in rows])), None)
        if dtype is not None:
            held = " and ".join(dict.fromkeys(str(a.dtype) for a in rows))
            raise FusionError(
                f"{name} in --data is {held}, but the network takes {dtype}; save it as the network was trained: "
                f"{name}.astype({dtype!r})."
            )


def _runs(network: nn.Module, rows: list[np.ndarray]) -> bool:
    try:
        outputs_for(network, FusionInput([], tuple(rows)).tensors(network))
    except Exception:  # the user's code; what is wrong is said where it is needed
        return False
    return True
