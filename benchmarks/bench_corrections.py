"""Corrections of fused networks, on noise and on 1,000 unlabelled training images or sentences, on test data.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_corrections.py [--quick] [name ...]

Both variables are optional but for SST-2; base models that WBFUSE_ZOO lacks are trained (see base_models.py). For every set of
networks: accuracies in %, of methods on data the mean over random choices of rows, "sd of rows" their deviation; the mean of
the sets and its distance from the parents' mean; seconds on one thread of a whole fit without the discovery. "aligned by both" is
cost=0.5, weights and activations on the same inputs. All other parameters are the defaults. Names of networks run these alone;
--quick takes the first set and one choice of rows.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from base_models import RECIPES, accuracy, base_model, logits
from comparison import discovered
from tables import number, show, spread
from torch import nn

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.discovery import discover_all

ROWS = 1000
MLPS = [(0, 1), (2, 3), (4, 5)]
SETS: dict[str, list[Sequence[int]]] = {
    "mlpnet-nobias": MLPS,
    "mlpnet-nobias, 4 models": [range(4)],
    "mlpnet-nobias, 6 models": [range(6)],
    "rnn-256": [*MLPS, (6, 7)],
    "lstm-256": [*MLPS, (6, 7)],
    "sst2-rnn-256": MLPS,
    "sst2-lstm-256": MLPS,
    "agnews-rnn-256": MLPS,
    "agnews-lstm-256": MLPS,
    "resnet20x1": [(0, 1)],
    "vgg11x0.5": [(0, 1)],
}
CORRECTIONS = {
    "mlpnet": ["regression", "repair"],
    "resnet": ["regression", "repair", "batchnorm"],
    "vgg": ["regression", "repair"],
}
ROW_SEEDS = {"mlpnet": [0, 1, 2], "resnet": [0, 1], "vgg": [0, 1]}


def of(name: str, table: dict[str, list], default: list) -> list:
    return next((entry for start, entry in table.items() if name.startswith(start)), default)


def methods(name: str) -> dict[str, tuple[dict, bool]]:
    """Parameters of each fusion, and whether it is given data; "plain" ones average without alignment."""
    methods: dict[str, tuple[dict, bool]] = {"aligned": ({"correction": None}, False)}
    for data in (False, True):
        on = "data" if data else "noise"
        probe = {"probe": on}
        for correction in of(name, CORRECTIONS, ["regression"]):
            methods[f"aligned, {correction} on {on}"] = ({"cost": "weight", "correction": correction, **probe}, data)
        methods[f"aligned by both, regression on {on}"] = ({"cost": 0.5, "correction": "regression", **probe}, data)
        methods[f"plain, regression on {on}"] = ({"correction": "regression", **probe}, data)
    return methods


def table(name: str, sets: Sequence[Sequence[int]], row_seeds: Sequence[int]) -> None:
    recipe = RECIPES[name.partition(",")[0]]
    data = recipe.load_data()
    scores: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for seeds in sets:
        models = [base_model(name.partition(",")[0], seed) for seed in seeds]
        outputs = torch.stack([logits(m, data.X_test) for m in models])
        scores.setdefault("parents, mean", []).append([float(np.mean([accuracy(o, data.y_test) for o in outputs]))])
        scores.setdefault("ensemble", []).append([accuracy(outputs.softmax(2).mean(0), data.y_test)])
        fixed = FusionInput(models, data.X_test[:2])
        drawn = [
            FusionInput(models, data.X_train[np.random.RandomState(s).choice(len(data.X_train), ROWS, replace=False)])
            for s in row_seeds
        ]
        scores.setdefault("plain average", []).append(
            [accuracy(logits(VanillaAveraging().fit(fixed).fused_model_, data.X_test), data.y_test)]
        )
        for label, (options, on_data) in methods(name).items():
            accuracies = []
            for inputs in drawn if on_data else [fixed]:
                estimator = (VanillaAveraging if label.startswith("plain") else WassersteinFusion)(random_state=0, **options)
                inputs = discovered(models, inputs.arrays[0])
                start = time.perf_counter()
                fused = estimator.fit(inputs).fused_model_
                seconds.setdefault(label, []).append(time.perf_counter() - start)
                accuracies.append(accuracy(logits(fused, data.X_test), data.y_test))
            scores.setdefault(label, []).append(accuracies)
            print(f"  {name}, {tuple(seeds)}, {label}: {spread(accuracies)}", flush=True)
    parents = np.mean([s[0] for s in scores["parents, mean"]])
    cells = []
    for label, of_sets in scores.items():
        means = [float(np.mean(s)) for s in of_sets]
        deviation = number(float(np.mean([np.std(s, ddof=1) for s in of_sets]))) if len(of_sets[0]) > 1 else ""
        cells.append([label, *map(number, means), spread(means), deviation, f"{np.mean(means) - parents:+.2f}"])
        cells[-1].append(number(float(np.mean(seconds[label])), 1) if label in seconds else "")
    header = [name, *(str(tuple(s)) for s in sets), "mean ± sd", "sd of rows", "to parents", "fit s"]
    show(f"{name}, seeds {', '.join(str(tuple(s)) for s in sets)}", header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="Correct fused networks on noise and on unlabelled data.")
    parser.add_argument("--quick", action="store_true", help="one set of networks and one choice of rows")
    parser.add_argument("names", nargs="*", help=f"of {list(SETS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    discover_all([nn.Linear(2, 2)])  # the first export of a process is slow
    for name in arguments.names or SETS:
        sets = SETS[name]
        table(name, sets[:1] if arguments.quick else sets, [0] if arguments.quick else of(name, ROW_SEEDS, [0]))


if __name__ == "__main__":
    main()
