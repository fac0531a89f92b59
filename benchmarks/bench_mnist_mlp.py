"""Data-free fusion of MLPNets on the 10,000 test images of MNIST.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_mnist_mlp.py

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py). Printed: accuracies in %, the
full energy E at the end, and seconds on one thread, where "fit" leaves out the discovery of the groups, which is timed apart.
Energies of different pairs or scales can't be compared: the fusions' are in balanced scales, the plain average's in the models'
own. Those of one pair and different schedules or `reg` can.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from base_models import accuracy, base_model, logits, mnist
from tables import number, show, spread
from torch import nn

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.graph import discover_all

PAIRS = [(0, 1), (2, 3), (4, 5)]
REGS = [0.0, 0.001, 0.005]


@dataclass
class Row:
    """One method on several sets of models."""

    accuracies: list[float] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def measure(models: Sequence[nn.Module], settings: Sequence[dict], rows: dict[str, Row]) -> float:
    """Append the controls and the fusions of one set of models to `rows`; returns the seconds of the discovery."""
    X, y = mnist().X_test, mnist().y_test
    start = time.perf_counter()
    discover_all(models, X[:2])
    discovery = time.perf_counter() - start
    parents = [logits(m, X) for m in models]
    scores = [accuracy(p, y) for p in parents]
    for label, value in (
        ("parents, mean", float(np.mean(scores))),
        ("parents, best", max(scores)),
        ("ensemble", accuracy(torch.stack(parents).mean(0), y)),
    ):
        rows.setdefault(label, Row()).accuracies.append(value)
    data = FusionInput(models, X[:2])
    average = VanillaAveraging().fit(data)  # discovers the groups, which the fits below share through `data`
    row = rows.setdefault("plain average", Row())
    row.accuracies.append(accuracy(logits(average.fused_model_, X), y))
    row.energies.append(average.energy_)
    for setting in settings:
        start = time.perf_counter()
        fusion = WassersteinFusion(random_state=0, **setting).fit(data)
        seconds = time.perf_counter() - start
        row = rows.setdefault(f"{setting['schedule']}, reg {setting['reg']:g}", Row())
        row.accuracies.append(accuracy(logits(fusion.fused_model_, X), y))
        row.energies.append(fusion.energy_)
        row.seconds.append(seconds)
    return discovery


def compare(name: str, sets: Sequence[Sequence[int]], settings: Sequence[dict]) -> None:
    """Fuse the models of each set of seeds and print a table with a column per set."""
    rows: dict[str, Row] = {}
    discovery = [measure([base_model(name, seed) for seed in seeds], settings, rows) for seeds in sets]
    parents = rows["parents, mean"].accuracies
    several = len(sets) > 1
    header = [name, *(str(tuple(seeds)) for seeds in sets), *(["mean ± sd"] if several else []), "to parents", "energy", "fit s"]
    cells = []
    for label, row in rows.items():
        gaps = np.subtract(row.accuracies, parents)
        cells.append(
            [
                label,
                *(number(a) for a in row.accuracies),
                *([spread(row.accuracies)] if several else []),
                f"{gaps.mean():+.2f}",
                spread(row.energies) if row.energies else "",
                spread(row.seconds) if row.seconds else "",
            ]
        )
    seeds = ", ".join(str(tuple(s)) for s in sets)
    show(f"{name}, seeds {seeds}; discovery {spread(discovery)} s", header, cells)


def main() -> None:
    torch.set_num_threads(1)
    discover_all([base_model("mlpnet", 0)], mnist().X_test[:2])  # the first export of a process is slow
    settings = [{"schedule": s, "reg": reg} for s in ("layerwise", "joint") for reg in REGS]
    compare("mlpnet-nobias", PAIRS, settings)
    compare("mlpnet-nobias", [range(6)], [{"schedule": s, "reg": 0.0} for s in ("layerwise", "joint")])
    compare("mlpnet", [(0, 1)], settings)


if __name__ == "__main__":
    main()
