"""Fusions of several sets of models beside their controls: parents, ensemble, plain average."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from base_models import accuracy, base_model, logits
from sklearn.utils import Bunch
from tables import number, show, spread
from torch import nn

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.discovery import discover_all


@dataclass
class Row:
    """One method on several sets of models; accuracies are those of the random states, set by set."""

    accuracies: list[list[float]] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def discovered(models: Sequence[nn.Module], X: object) -> FusionInput:
    """Rows that hold the discovery alone of what fits share, so that the next one does its whole work."""
    data = FusionInput(models, X)
    VanillaAveraging().fit(data)
    return data


def measure(
    models: Sequence[nn.Module],
    data: Bunch,
    methods: Mapping[str, dict],
    states: Sequence[int],
    rows: dict[str, Row],
    *,
    softmax: bool,
) -> float:
    """Append the controls and the fusions of one set of models to `rows`; returns the seconds of the discovery."""
    X, y = data.X_test, data.y_test
    start = time.perf_counter()
    discover_all(models, X[:2])
    discovery = time.perf_counter() - start
    parents = torch.stack([logits(m, X) for m in models])
    scores = [accuracy(p, y) for p in parents]
    for label, value in (
        ("parents, mean", float(np.mean(scores))),
        ("parents, best", max(scores)),
        ("ensemble", accuracy((parents.softmax(2) if softmax else parents).mean(0), y)),
    ):
        rows.setdefault(label, Row()).accuracies.append([value])
    inputs = FusionInput(models, X[:2])
    average = VanillaAveraging().fit(inputs)
    row = rows.setdefault("plain average", Row())
    row.accuracies.append([accuracy(logits(average.fused_model_, X), y)])
    row.energies.append(average.energy_)
    for label, options in methods.items():
        row = rows.setdefault(label, Row())
        row.accuracies.append([])
        for state in states:
            inputs = discovered(models, X[:2])
            start = time.perf_counter()
            fusion = WassersteinFusion(random_state=state, correction=None, **options).fit(inputs)
            row.seconds.append(time.perf_counter() - start)
            row.energies.append(fusion.energy_)
            row.accuracies[-1].append(accuracy(logits(fusion.fused_model_, X), y))
    return discovery


def compare(
    name: str,
    sets: Sequence[Sequence[int]],
    data: Bunch,
    methods: Mapping[str, dict],
    states: Sequence[int] = (0,),
    published: float | None = None,
    *,
    softmax: bool = True,
) -> None:
    """Fuse the models of each set of seeds and print a table with a column per set.

    `published` is the paper's gap; the ensemble is the mean of softmax outputs, or of logits.
    """
    rows: dict[str, Row] = {}
    discovery = [
        measure([base_model(name, seed) for seed in seeds], data, methods, states, rows, softmax=softmax) for seeds in sets
    ]
    parents = np.array(rows["parents, mean"].accuracies)[:, 0]
    several = len(sets) > 1
    header = [name, *(str(tuple(seeds)) for seeds in sets), *(["mean ± sd"] if several else [])]
    header += [*(["sd of states"] if len(states) > 1 else []), "to parents", *([] if published is None else ["paper"])]
    cells = []
    for label, row in rows.items():
        means = [float(np.mean(a)) for a in row.accuracies]
        deviations = [float(np.std(a, ddof=1)) for a in row.accuracies if len(a) > 1]
        cells.append([label, *(number(m) for m in means), *([spread(means)] if several else [])])
        if len(states) > 1:
            cells[-1].append(number(float(np.mean(deviations))) if deviations else "")
        cells[-1].append(f"{np.mean(means - parents):+.2f}")
        if published is not None:
            cells[-1].append(f"{published:+.1f}" if label in methods else "")
        cells[-1] += [spread(values) if values else "" for values in (row.energies, row.seconds)]
    seeds = ", ".join(str(tuple(s)) for s in sets)
    show(f"{name}, seeds {seeds}; discovery {spread(discovery)} s", [*header, "energy", "fit s"], cells)
