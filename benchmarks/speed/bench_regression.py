"""What a regression costs, in forward passes of all parents over the same 2,000 samples.

    OMP_NUM_THREADS=1 python benchmarks/speed/bench_regression.py

The networks have random weights; inputs are white noise given as data. Everything that the default correction does with them
counts, its trace included; the factorisations, one for each layer, are timed apart and taken off. Least of three runs, one
thread.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from base_models import RECIPES
from tables import number, show

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.correction import Probe

SAMPLES = 2000
SHAPES = {"mlpnet": (1, 28, 28), "rnn-256": (28, 28), "lstm-256": (28, 28), "resnet20x1": (3, 32, 32), "vgg11x0.5": (3, 32, 32)}


def least(run: Callable[[], object], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@torch.no_grad()
def forward(models: list[nn.Module], X: torch.Tensor) -> None:
    for model in models:
        for batch in X.split(250):
            model(batch)


def main() -> None:
    torch.set_num_threads(1)
    cells = []
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        models = [RECIPES[name].build().eval() for _ in range(2)]
        X = torch.randn(SAMPLES, *shape)
        inputs = FusionInput(models, X)
        floor = least(lambda models=models, X=X: forward(models, X))
        plain = least(lambda inputs=inputs: WassersteinFusion(random_state=0, correction=None).fit(inputs))
        factorising = {"seconds": 0.0}
        cholesky = torch.linalg.cholesky_ex

        def timed(matrix: torch.Tensor, cholesky=cholesky, factorising=factorising) -> object:
            start = time.perf_counter()
            factor = cholesky(matrix)
            factorising["seconds"] += time.perf_counter() - start
            return factor

        torch.linalg.cholesky_ex = timed
        row = [name, number(floor, 2)]
        seconds = []
        for _ in range(3):
            factorising["seconds"] = 0.0
            start = time.perf_counter()
            fusion = WassersteinFusion(random_state=0, cost="weight", correction="regression", probe=Probe(n_samples=SAMPLES))
            fusion.fit(inputs)
            seconds.append(time.perf_counter() - start - factorising["seconds"] - plain)
        row += [number(min(seconds), 2), number(min(seconds) / floor, 1)]
        torch.linalg.cholesky_ex = cholesky
        cells.append([*row, number(factorising["seconds"], 2)])
    show(f"Regression on {SAMPLES} rows", ["pair of", "forward s", "regression s", "forwards", "factorising s"], cells)


if __name__ == "__main__":
    main()
