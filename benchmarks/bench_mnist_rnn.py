"""Data-free fusion of recurrent networks on the 10,000 test images of MNIST, read as 28 steps of 28 values.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_mnist_rnn.py [--quick] [--grid]

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py), 2 to 8 minutes each on one
thread. Printed: accuracies in %, where a pair's is the mean over the random states of the fusion and "sd of states" their
deviation, mean of the pairs; the full energy E at the end; and seconds on one thread, where "fit" leaves out the discovery of the
groups, which is timed apart. Energies of different pairs, scales or `alpha_h` can't be compared.

With --grid also `reg`, `alpha_h`, `symmetry` and `n_init`, chosen for each pair by the accuracy on 5,000 training images. With
--quick one pair and one random state; names of networks run these alone.
"""

import argparse
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from base_models import accuracy, base_model, logits, mnist
from comparison import compare
from tables import number, show, spread
from torch import nn

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.discovery import discover_all

NAMES = ["rnn-256", "lstm-256", "gru-256"]
PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7)]
STATES = [0, 1, 2]
METHODS = {
    "alpha_h 0": {"alpha_h": 0.0},
    "layerwise": {"schedule": "layerwise"},
    "symmetry 'permutation'": {"symmetry": "permutation"},
    "defaults": {},
}
GRID = {
    "reg": [0.0, 0.001, 0.005],
    "alpha_h": [0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0],
    "symmetry": ["auto", "permutation"],
    "n_init": [1, 2],
}
IMAGES = 5000


def grid(name: str, sets: Sequence[Sequence[int]]) -> None:
    """For each set of models the parameters of `GRID` that are best on training images, and their test accuracy."""
    data = mnist()
    chosen = np.random.RandomState(0).choice(len(data.X_train), IMAGES, replace=False)
    cells, tests = [], []
    for seeds in sets:
        inputs = FusionInput([base_model(name, seed) for seed in seeds], data.X_test[:2])
        best, best_network, best_options = -1.0, None, {}
        for values in product(*GRID.values()):
            options = dict(zip(GRID, values, strict=True))
            fused = WassersteinFusion(random_state=0, correction=None, **options).fit(inputs).fused_model_
            score = accuracy(logits(fused, data.X_train[chosen]), data.y_train[chosen])
            if score > best:
                best, best_network, best_options = score, fused, options
        tests.append(accuracy(logits(best_network, data.X_test), data.y_test))
        cells.append([str(tuple(seeds)), *(str(v) for v in best_options.values()), number(best), number(tests[-1])])
    cells.append(["mean ± sd", *[""] * len(GRID), "", spread(tests)])
    show(f"{name}: the best of a grid on {IMAGES} training images", ["seeds", *GRID, "training images", "test"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuse recurrent networks trained on MNIST.")
    parser.add_argument("--quick", action="store_true", help="one pair and one random state")
    parser.add_argument("--grid", action="store_true", help="also choose parameters on training images")
    parser.add_argument("names", nargs="*", help=f"of {NAMES}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    discover_all([nn.Linear(2, 2)])  # the first export of a process is slow
    pairs, states = (PAIRS[:1], STATES[:1]) if arguments.quick else (PAIRS, STATES)
    for name in arguments.names or NAMES:
        compare(name, pairs, mnist(), METHODS, states)
        if arguments.grid:
            grid(name, pairs)


if __name__ == "__main__":
    main()
