"""``wbfuse demo``: train small networks, fuse them, print a table and draw a picture."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor, nn

from .. import FusionInput, VanillaAveraging, WassersteinFusion
from ..base import aligned
from ..data.scores import outputs, score_outputs
from ..datasets import load_digits, train_mlp
from ..inspection import InterpolationDisplay
from ..model_selection.table import n_parameters
from .messages import timed
from .parser import PICTURE

__all__ = ["run"]

# Two hidden layers on scikit-learn's digits: two networks of equal widths and a wider one.
SMALL, MEDIUM, LARGE = (64, 32), (96, 48), (128, 64)


def run(arguments: argparse.Namespace) -> int:
    """Train and fuse networks, print the table and draw the picture."""
    folder = arguments.output
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"--output must be an existing folder with write permission. Got {folder}.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks run faster on one thread
    try:
        return _demo(folder, arguments.seed)
    finally:
        torch.set_num_threads(threads)


def _demo(folder: Path, seed: int) -> int:
    data, table = load_digits(), _Table()

    def train(name: str, hidden: Sequence[int], seed: int) -> nn.Module:
        widths = (data.X_train.shape[1], *hidden, 10)
        model, seconds = timed(f"training {name}", lambda: train_mlp(data.X_train, data.y_train, widths, seed))
        table.add(f"{name}, a parent (seed {seed})", [model], data, seconds)
        return model

    def fuse(name: str, estimator: Any, models: list[nn.Module]) -> tuple[Any, float]:
        fusion, seconds = timed(name, lambda: estimator.fit(models))
        return fusion, table.add(name, [fusion.fused_model_], data, seconds)

    train_mlp(data.X_train, data.y_train, (64, 2, 10), epochs=1)  # PyTorch initialises itself, which is not to count for A
    pair = [train("A", SMALL, seed), train("B", SMALL, seed + 1)]
    trio = [*pair, train("C", LARGE, seed + 2)]
    table.add_gap()
    table.add("ensemble of A, B", pair, data)
    _, averaged_accuracy = fuse("plain average of A, B", VanillaAveraging(), pair)
    fusion, fused_accuracy = fuse("fused A, B", WassersteinFusion(random_state=seed), pair)
    table.add_gap()
    table.add("ensemble of A, B, C", trio, data)
    for hidden in (SMALL, MEDIUM):
        widths = dict(zip(fusion.graph_.groups, hidden, strict=True))
        fuse("fused A, B, C", WassersteinFusion(widths, random_state=seed), trio)
    fuse("fused A, B, C, default widths", WassersteinFusion(random_state=seed), trio)

    print(f"scikit-learn's digits: {len(data.X_train)} training rows; accuracy on {len(data.X_test)} other rows.")
    print("An ensemble is the mean of its networks' softmax outputs.\n")
    print(table)
    verdict = "beats" if fused_accuracy > averaged_accuracy else "does NOT beat"
    print(f"\nFusing A and B ({fused_accuracy:.1%}) {verdict} their plain average ({averaged_accuracy:.1%}).")
    print(_draw(fusion, pair, data, folder / PICTURE))
    return 0 if fused_accuracy > averaged_accuracy else 1


class _Table:
    """The demo's table, built row by row."""

    def __init__(self) -> None:
        self.cells: list[tuple[str, ...]] = [("network", "widths", "parameters", "accuracy", "seconds")]

    def add_gap(self) -> None:
        """Add an empty line."""
        self.cells.append(("",) * 5)

    def add(self, name: str, models: list[nn.Module], data: Bunch, seconds: float | None = None) -> float:
        """Add a network, or an ensemble of several, and return its accuracy on the test rows."""
        accuracy = score_outputs(_mean_softmax(models, data.X_test), data.y_test)
        linear = [layer for layer in models[0].modules() if isinstance(layer, nn.Linear)]
        widths = "-".join(map(str, [linear[0].in_features, *(layer.out_features for layer in linear)]))
        size = sum(map(n_parameters, models))
        self.cells.append(
            (
                name,
                widths if len(models) == 1 else f"{len(models)} networks",
                f"{size:,}",
                f"{accuracy:.1%}",
                "" if seconds is None else f"{seconds:.2f}",
            )
        )
        return accuracy

    def __str__(self) -> str:
        return aligned(self.cells, (0, 1))


def _mean_softmax(models: list[nn.Module], X: Tensor) -> np.ndarray:
    logits = np.stack([outputs(model, FusionInput([], X)) for model in models])
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    return (scores / scores.sum(-1, keepdims=True)).mean(0)


def _draw(fusion: Any, pair: list[nn.Module], data: Bunch, path: Path) -> str:
    """Plot the error along the line between two parents; return a text that names the file or what is missing."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # only a file is written, without a window
    try:
        display = InterpolationDisplay.from_estimator(fusion, pair, data.X_test, data.y_test)
    except ImportError as error:
        return f"No picture: {error}"
    display.figure_.savefig(path, dpi=200)
    return f"Plot of the error along the line between A and B, before and after alignment: {path}"
