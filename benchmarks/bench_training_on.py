"""One epoch from a fused network, from a parent and from scratch, on scikit-learn's digits.

    OMP_NUM_THREADS=1 python benchmarks/bench_training_on.py [--seeds 3]

Parents are trained from fresh seeds: two GRUs with 64 hidden units (rows of 8 pixels, 20 epochs) and two convolutional networks
with BatchNorm (conv 16-32, one linear layer, 5 epochs), each on all 1,000 training rows. They are fused without a correction, by
the defaults without data, and by the defaults on the training rows, no labels. "One epoch" is Adam with the learning rate of the
training, in train mode, from a new optimizer; all starts of a pair see the rows in the same order. Accuracy in % on the 500 test
rows, which nothing else looks at; mean and deviation over pairs of seeds.
"""

import argparse
import copy

import torch
from tables import show, spread
from torch import nn
from torch.nn import functional as F

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.datasets import RecurrentNet, load_digits

ROWS = ["parents, mean", "better parent", "fused, correction=None", "fused without data", "fused on rows"]
STARTS = ["from scratch", "from the first parent", *(f"from {row}" for row in ROWS[2:])]


def cnn() -> nn.Module:
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(128, 10))


# name: (network, shape of a row, epochs, learning rate)
TASKS = {
    "GRU, 64 hidden units": (lambda: RecurrentNet("gru", 8, 64), (8, 8), 20, 3e-3),
    "CNN with BatchNorm": (cnn, (1, 8, 8), 5, 1e-3),
}


def trained(model: nn.Module, X: torch.Tensor, y: torch.Tensor, epochs: int, learning_rate: float, seed: int) -> nn.Module:
    """A copy after some epochs, in eval mode."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(X), generator=order).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on from fused networks.")
    parser.add_argument("--seeds", type=int, default=3, help="how many pairs")
    n_pairs = parser.parse_args().seeds
    torch.set_num_threads(1)
    digits = load_digits()
    for name, (build, shape, epochs, learning_rate) in TASKS.items():
        X, X_test = digits.X_train.view(-1, *shape), digits.X_test.view(-1, *shape)

        def accuracy(model: nn.Module, X_test: torch.Tensor = X_test) -> float:
            with torch.no_grad():
                return 100 * float((model(X_test).argmax(1) == digits.y_test).float().mean())

        scores: dict[str, list[float]] = {row: [] for row in (*ROWS, *STARTS)}
        for pair in range(n_pairs):
            networks = []
            for seed in (100 + 3 * pair, 101 + 3 * pair, 102 + 3 * pair):
                torch.manual_seed(seed)
                networks.append(build())
            parents = [
                trained(n, X, digits.y_train, epochs, learning_rate, 100 + 3 * pair + k) for k, n in enumerate(networks[:2])
            ]
            fused = [
                WassersteinFusion(correction=None, random_state=0, example_inputs=(X[:50],)).fit(parents).fused_model_,
                WassersteinFusion(random_state=0, example_inputs=(X[:50],)).fit(parents).fused_model_,
                WassersteinFusion(random_state=0).fit(FusionInput(parents, X)).fused_model_,
            ]
            accuracies = [accuracy(p) for p in parents]
            for row, value in zip(ROWS, (sum(accuracies) / 2, max(accuracies), *map(accuracy, fused)), strict=True):
                scores[row].append(value)
            for row, start in zip(STARTS, (networks[2], parents[0], *fused), strict=True):
                scores[row].append(accuracy(trained(start, X, digits.y_train, 1, learning_rate, 7)))
        cells = [[row, *(f"{v:.1f}" for v in values), spread(values)] for row, values in scores.items()]
        cells.insert(len(ROWS), ["after one epoch", *[""] * (n_pairs + 1)])
        show(name, ["", *(f"pair {k}" for k in range(n_pairs)), "mean ± sd"], cells)


if __name__ == "__main__":
    main()
