"""The defaults as a user meets them: distance to the parents without data and with 1,000 unlabelled rows, and seconds of `fit`.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_defaults.py [name ...] [--large] [--runs 3]

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py). Accuracies are on the first 2,000
test images of CIFAR-10 and on all of MNIST; runs differ in `random_state` and in the rows. Seconds are those of the processor, of
fits that take turns: without correction, as by default, and by default with rows. --large adds the seconds of untrained pairs of
ResNet50 (224 x 224) and BERT base (128 tokens), which take minutes.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_models import RECIPES, accuracy, base_model, logits
from tables import number, show, spread
from torch import nn

from sklearn_wbfuse import FusionInput, WassersteinFusion

SEEDS = {"rnn-256": [(0, 1), (2, 3), (4, 5), (6, 7)], "mlpnet-nobias": [(0, 1), (2, 3), (4, 5)]}
NAMES = ["mlpnet-nobias", "rnn-256", "lstm-256", "gru-256", "resnet20x1", "vgg11x0.5"]
N_ROWS, N_TEST = 1000, 2000


def fitted(models: Sequence[nn.Module], models_or_input: Any, **options: Any) -> tuple[Any, float]:
    """A fused network and the seconds of its fit."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a poor fusion without correction says so
        fusion = WassersteinFusion(**options).fit(models_or_input)
    return fusion, time.process_time() - start


def table(name: str, runs: int) -> None:
    data, rows = RECIPES[name].load_data(), []
    few = N_TEST if data.X_test.shape[1] == 3 else len(data.X_test)
    X, y = data.X_test[:few], data.y_test[:few]
    for seeds in SEEDS.get(name, [(0, 1)]):
        models = [base_model(name, seed) for seed in seeds]
        parents = float(np.mean([accuracy(logits(m, X), y) for m in models]))
        results: dict[str, list[tuple[float, float, float]]] = {}
        for run in range(runs):
            chosen = np.random.RandomState(run).choice(len(data.X_train), N_ROWS, replace=False)
            calls = {
                "aligned alone": (models, {"correction": None, "example_inputs": X[:2]}),
                "default, no data": (models, {"example_inputs": torch.randn(X[:2].shape, generator=torch.manual_seed(0))}),
                "default, 1,000 rows": (FusionInput(models, data.X_train[chosen]), {}),
            }
            for label, (inputs, options) in calls.items():
                fusion, seconds = fitted(models, inputs, random_state=run, **options)
                agreement = float("nan") if fusion.agreement_ is None else fusion.agreement_.mean
                gap = accuracy(logits(fusion.fused_model_, X), y) - parents
                results.setdefault(label, []).append((gap, agreement, seconds))
        for label, runs_of_label in results.items():
            gaps, agreements, seconds = (list(c) for c in zip(*runs_of_label, strict=True))
            cells = [str(seeds), label, number(parents), spread(gaps), number(min(gaps)), number(float(np.mean(agreements)))]
            rows.append([*cells, number(float(np.median(seconds)), 1)])
    show(name, ["seeds", "fusion", "parents", "to parents", "least", "agrees", "fit s"], rows)


def large() -> None:
    """Seconds of pairs that are too large to train here."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.architectures import BERT, ResNet50  # local: only for --large

    rows = []
    tokens = (torch.randint(1000, (2, 128)), torch.ones(2, 128, dtype=torch.long))
    for label, build, example in (
        ("ResNet50", ResNet50, (torch.randn(2, 3, 224, 224),)),
        ("BERT base", lambda: BERT(length=128), tokens),
    ):
        models = [build().eval() for _ in range(2)]
        for options in ({"correction": None}, {}):
            _, seconds = fitted(models, models, example_inputs=example, random_state=0, **options)
            rows.append([label, "aligned alone" if options else "default, no data", number(seconds, 1)])
    show("large pairs, untrained", ["networks", "fusion", "fit s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the defaults give and take.")
    parser.add_argument("names", nargs="*", help=f"of {NAMES}; all by default")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or ([] if arguments.large else NAMES):
        table(name, arguments.runs)
    if arguments.large:
        large()


if __name__ == "__main__":
    main()
