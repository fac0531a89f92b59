"""Grid searches over fusions: how long they take, and what they find.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_search.py [digits] [mnist] [ratio]

"digits": a pair of LSTMs that read the 8 x 8 digits row by row; 4 values of `reg` times 4 of `alpha_h`, and the plain average,
on the 297 validation rows with one split of ShuffleSplit, in one process and in two; test accuracy of what is chosen.

"mnist": `alpha_h` of pairs of recurrent networks (see base_models.py), chosen on 5,000 training images that the search holds
out; test accuracy of what is chosen beside that of the default.

"ratio": seconds of a search over 16 values of `reg` with one split and the final refit, in fits of the same models alone.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from base_models import base_model, mnist
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from tables import number, show, spread
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp, train_recurrent

REGS = [0.0, *np.geomspace(1e-4, 2e-2, 15)]
ALPHAS = [0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0]
PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7)]
HELD_OUT = 5000


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def digits_lstm(seed: int) -> nn.Module:
    """An LSTM trained on the digits, 8 steps of 8 values."""
    data = load_digits()
    return train_recurrent(data.X_train.view(-1, 8, 8), data.y_train, "lstm", 64, seed)


def digits() -> None:
    data = load_digits()
    X_val, X_test, y_test = data.X_val.view(-1, 8, 8), data.X_test.view(-1, 8, 8), data.y_test.numpy()
    which = {
        "fusion": [WassersteinFusion(random_state=0, correction=None)],
        "fusion__reg": [0, 1e-3, 5e-3, 2e-2],
        "fusion__alpha_h": [0.5, 1, 2, 4],
    }
    grid, split, cells = [which, {"fusion": [VanillaAveraging()]}], ShuffleSplit(1, test_size=0.5, random_state=0), []
    for seeds in [(0, 1), (2, 3), (4, 5)]:
        inputs = FusionInput([digits_lstm(seed) for seed in seeds], X_val)
        search, times = None, []
        for jobs in (1, 2):
            search = GridSearchCV(FusionClassifier(), grid, cv=split, n_jobs=jobs, error_score="raise")
            times.append(seconds(lambda s=search, g=inputs: s.fit(g, data.y_val.numpy())))
        chosen = {name.removeprefix("fusion__"): value for name, value in search.best_params_.items() if "__" in name}
        default = FusionClassifier(WassersteinFusion(random_state=0, correction=None)).fit(inputs)
        scores = [100 * e.score(X_test, y_test) for e in (search, default)]
        cells.append([str(seeds), str(chosen), *map(number, scores), *map(number, times)])
    header = ["seeds", "chosen", "test", "default", "s, 1 process", "s, 2 processes"]
    show("digits: pairs of LSTMs, 17 candidates on 149 held-out validation rows", header, cells)


def on_mnist() -> None:
    data = mnist()
    rows = np.random.RandomState(0).choice(len(data.X_train), HELD_OUT + 10, replace=False)
    for name in ("rnn-256", "lstm-256"):
        cells, tests = [], []
        for seeds in PAIRS:
            inputs = FusionInput([base_model(name, seed) for seed in seeds], data.X_train[rows])
            grid = {"fusion__alpha_h": ALPHAS}
            classifier = FusionClassifier(WassersteinFusion(random_state=0, correction=None))
            search = GridSearchCV(classifier, grid, cv=ShuffleSplit(1, test_size=HELD_OUT, random_state=0), error_score="raise")
            took = seconds(lambda s=search, g=inputs: s.fit(g, data.y_train[rows].numpy()))
            estimators = (search, classifier.fit(inputs))
            tests.append([100 * e.score(data.X_test, data.y_test.numpy()) for e in estimators])
            best = search.best_params_["fusion__alpha_h"]
            cells.append([str(seeds), number(best), number(100 * search.best_score_), *map(number, tests[-1]), number(took, 1)])
        cells.append(["mean ± sd", "", "", *(spread(column) for column in zip(*tests, strict=True)), ""])
        header = ["seeds", "alpha_h", "held-out", "test", "test, default", "s"]
        show(f"{name}: alpha_h of {ALPHAS} chosen on {HELD_OUT} held-out training images", header, cells)


def ratio() -> None:
    sets = {
        "digits MLP": [train_mlp(load_digits().X_train, load_digits().y_train, (64, 64, 32, 10), s) for s in (0, 1)],
        "digits LSTM": [digits_lstm(s) for s in (0, 1)],
        **{name: [base_model(name, s) for s in (0, 1)] for name in ("mlpnet-nobias", "rnn-256", "lstm-256", "resnet20x1")},
    }
    shapes = {"digits MLP": (64,), "digits LSTM": (8, 8), "mlpnet-nobias": (1, 28, 28), "resnet20x1": (3, 32, 32)}
    cells = []
    for name, models in sets.items():
        X = torch.randn(200, *shapes.get(name, (28, 28)), generator=torch.Generator().manual_seed(0))
        y = np.arange(200) % 10

        def one(reg: float, models: list = models, X: torch.Tensor = X) -> float:
            return seconds(lambda: WassersteinFusion(reg=reg, random_state=0, correction=None).fit(FusionInput(models, X)))

        def search(models: list = models, X: torch.Tensor = X, y: np.ndarray = y) -> None:
            split = ShuffleSplit(1, random_state=0)
            GridSearchCV(WassersteinFusion(random_state=0, correction=None), {"reg": REGS}, cv=split).fit(
                FusionInput(models, X), y
            )

        one(0.0)
        fits = [float(np.median([one(reg) for _ in range(3)])) for reg in REGS]
        took = float(np.median([seconds(search) for _ in range(3)]))
        mean = float(np.mean(fits))
        cells.append([name, *map(number, (fits[0], mean, took, took / fits[0], took / mean))])
    header = ["pair", "fit, reg 0", "fit, mean of reg", "search", "/ fit, reg 0", "/ fit, mean"]
    show(f"seconds of a search over {len(REGS)} values of reg, 0 and {REGS[1]:g} to {REGS[-1]:g}", header, cells)


def main() -> None:
    torch.set_num_threads(1)
    parts = {"digits": digits, "mnist": on_mnist, "ratio": ratio}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
