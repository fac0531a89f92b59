"""Rows for scoring and for fits, from an npz file, and example inputs."""

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
    """Read the rows `X`, an array or a tuple of X0, X1, ..., the labels `y`, and likewise `X_fit` if it is present.

    Raises
    ------
    FusionError
        If the file is not an npz file, lacks X or y, or contains pickled objects or arrays that are not inputs or labels.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise FusionError(
            f"--data must be an npz file of arrays without pickled objects. Got {path}. Write one: "
            "numpy.savez(path, X=..., y=...)."
        ) from error
    try:
        return _checked(arrays)
    except FusionError as error:
        raise FusionError(f"--data {path}: {error}") from error


def _checked(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the inputs and labels among some arrays, after checks of names, dtypes, shapes and numbers of rows."""
    data = {"y": arrays.get("y"), "X": _inputs("X", arrays), "X_fit": _inputs("X_fit", arrays)}
    missing = [name for name in ("X", "y") if data[name] is None]
    if missing:
        raise FusionError(f"The file must contain X and y. Got {list(arrays)}, but no {' and no '.join(missing)}.")
    data = {name: value for name, value in data.items() if value is not None}
    rows = {name: [len(a) if a.ndim else 0 for a in _as_tuple(value)] for name, value in data.items()}
    if len({*rows["X"], *rows["y"]}) > 1 or len(set(rows.get("X_fit", []))) > 1 or not all(map(all, rows.values())):
        raise FusionError(f"X and y must have equal numbers of rows, at least one. Got these numbers of rows: {rows}.")
    _check_labels(data["y"])
    return data


def _inputs(name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return the array of some name, or a tuple of those with the name and a number; None if there are none."""
    numbered = sorted(int(key.removeprefix(name)) for key in arrays if re.fullmatch(rf"{name}[0-9]+", key))
    if name in arrays and numbered:
        raise FusionError(f"Inputs must be either {name} or {name}0, {name}1, ... Got both {name} and {name}{numbered[0]}.")
    if numbered != list(range(len(numbered))):
        raise FusionError(
            f"Inputs must be numbered from {name}0 on without gaps. Got {', '.join(f'{name}{i}' for i in numbered)}."
        )
    inputs = tuple(_numbers(f"{name}{i}", arrays[f"{name}{i}"]) for i in numbered)
    return _numbers(name, arrays[name]) if name in arrays else inputs or None


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array of numbers in the byte order of this machine, which PyTorch requires."""
    if array.dtype.kind not in "biuf":
        raise FusionError(f"{name} must contain numbers, as the network takes them. Got dtype {array.dtype}.")
    return native(array)


def _check_labels(y: np.ndarray) -> None:
    if y.dtype.kind not in "biuf":
        raise FusionError(
            f"y must contain the indices of the network's outputs. Got dtype {y.dtype}. Convert names of classes by "
            "numpy.unique(y, return_inverse=True)[1]."
        )
    if not np.isfinite(y).all():
        raise FusionError("y must be finite. Got NaN or infinite values in y. Leave these rows out.")
    if y.ndim > 2 or (y.ndim == 2 and y.shape[1] > 1 and not type_of_target(y).startswith("continuous")):
        raise FusionError(
            f"y must contain the index of one output per row. Got y of shape {y.shape}. Convert one-hot labels by y.argmax(1)."
        )


def _as_tuple(X: Any) -> tuple[Any, ...]:
    return X if isinstance(X, tuple) else (X,)


def example_inputs(shapes: Sequence[Sequence[int]] | None) -> tuple[Tensor, ...] | None:
    """Return two rows of noise for each shape."""
    generator = torch.Generator().manual_seed(0)
    return None if shapes is None else tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)


def check_dtypes(network: nn.Module, data: dict[str, Any]) -> None:
    """Raise a FusionError if a network does not run on the rows, but would in another dtype."""
    for name in ("X", "X_fit"):
        rows = [a[:2] for a in _as_tuple(data.get(name, ()))]
        if not rows or _runs(network, rows):
            continue
        dtype = next((d for d in ("float32", "int64") if _runs(network, [a.astype(d) for a in rows])), None)
        if dtype is not None:
            dtypes = " and ".join(dict.fromkeys(str(a.dtype) for a in rows))
            raise FusionError(
                f"{name} in --data must have the dtype on which the network was trained, such as {dtype}. Got {dtypes}. Save "
                f"{name}.astype({dtype!r})."
            )


def _runs(network: nn.Module, rows: list[np.ndarray]) -> bool:
    try:
        outputs_for(network, FusionInput([], tuple(rows)).tensors(network))
    except Exception:  # the user's code; an error that matters is raised again when the rows are used
        return False
    return True
