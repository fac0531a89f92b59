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
from torch import nn

from .. import FusionInput, VanillaAveraging, WassersteinFusion
from ..base import aligned
from ..data.scores import outputs, score_outputs
from ..datasets import load_digits, train_mlp
from ..inspection import InterpolationDisplay
from ..model_selection.table import n_parameters
from .parser import PICTURE
from .text import timed

__all__ = ["run"]

# Two hidden layers on scikit-learn's digits: two networks of equal widths and a wider one.
SMALL, BETWEEN, LARGE = (64, 32), (96, 48), (128, 64)


def run(arguments: argparse.Namespace) -> int:
    """``wbfuse demo``: train, fuse, print the table, draw the picture."""
    folder = arguments.output
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"{folder} is not a folder that can be written to.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are faster on one
    try:
        return _demo(folder, arguments.seed)
    finally:
        torch.set_num_threads(threads)


def _demo(folder: Path, seed: int) -> int:
    data, rows = load_digits(), _Table()

    def train(name: str, hidden: Sequence[int], seed: int) -> nn.Module:
        widths = (data.X_train.shape[1], *hidden, 10)
        model, seconds = timed(f"training {name}", lambda: train_mlp(data.X_train, data.y_train, widths, seed))
        rows.add(f"{name}, a parent (seed {seed})", [model], data, seconds)
        return model

    def fuse(name: str, estimator: Any, models: list[nn.Module]) -> tuple[Any, float]:
        fusion, seconds = timed(name, lambda: estimator.fit(models))
        return fusion, rows.add(name, [fusion.fused_model_], data, seconds)

    train_mlp(data.X_train, data.y_train, (64, 2, 10), epochs=1)  # PyTorch loads parts of itself: not part of A's seconds
    pair = [train("A", SMALL, seed), train("B", SMALL, seed + 1)]
    trio = [*pair, train("C", LARGE, seed + 2)]
    rows.gap()
    rows.add("ensemble of A, B", pair, data)
    _, averaged = fuse("plain average of A, B", VanillaAveraging(), pair)
    fusion, fused = fuse("fused A, B", WassersteinFusion(random_state=seed), pair)
    rows.gap()
    rows.add("ensemble of A, B, C", trio, data)
    for hidden in (SMALL, BETWEEN):
        widths = dict(zip(fusion.graph_.groups, hidden, strict=True))
        fuse("fused A, B, C", WassersteinFusion(widths, random_state=seed), trio)
    fuse("fused A, B, C, default widths", WassersteinFusion(random_state=seed), trio)

    print(f"Digits of scikit-learn, {len(data.X_train)} training rows; accuracy on {len(data.X_test)} other rows.")
    print("An ensemble is the mean of its networks' softmax outputs.\n")
    print(rows)
    verdict = "beats" if fused > averaged else "does NOT beat"
    print(f"\nOf the same parents A and B, fused ({fused:.1%}) {verdict} the plain average ({averaged:.1%}).")
    print(_draw(fusion, pair, data, folder / PICTURE))
    return 0 if fused > averaged else 1


class _Table:
    """The lines of the demo's table."""

    def __init__(self) -> None:
        self.cells: list[tuple[str, ...]] = [("network", "widths", "parameters", "accuracy", "seconds")]

    def gap(self) -> None:
        """Leave a line free."""
        self.cells.append(("",) * 5)

    def add(self, name: str, models: list[nn.Module], data: Bunch, seconds: float | None = None) -> float:
        """A network, or an ensemble of several; its accuracy on the test rows."""
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


def _mean_softmax(models: list[nn.Module], X: Any) -> np.ndarray:
    logits = np.stack([outputs(model, FusionInput([], X)) for model in models])
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return (odds / odds.sum(-1, keepdims=True)).mean(0)


def _draw(fusion: Any, pair: list[nn.Module], data: Bunch, path: Path) -> str:
    """Draw the line between two parents and say where it is, or what is missing."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # a file is written, no window opened
    try:
        display = InterpolationDisplay.from_estimator(fusion, pair, data.X_test, data.y_test)
    except ImportError as error:
        return f"No picture: {error}"
    display.figure_.savefig(path, dpi=200)
    return f"Error along the line between A and B, before and after they are aligned: {path}"
