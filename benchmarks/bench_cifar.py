"""Data-free fusion of VGG11 at half width and of ResNet20 on the 10,000 test images of CIFAR-10.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_cifar.py

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py), 15 to 20 minutes each on one
thread. The ResNet20 is also shown after `recompute_batchnorm` on 1,000 training images without labels, chosen by three seeds:
mean and standard deviation over these. The same is done to its parents and to the plain average, as controls. The second table
of the ResNet20 starts the joint schedule from random couplings, for the spread over the local optima. Accuracies in %; seconds
on one thread, where "fit" leaves out the discovery of the groups, which is timed apart, warm. Energies compare within one scale:
those of symmetry="auto" are in balanced scales, the others, the plain average's among them, in the models' own.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from base_models import accuracy, base_model, cifar10, logits
from comparison import discovered
from tables import number, show, spread
from torch import Tensor, nn

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.correction import recompute_batchnorm
from sklearn_wbfuse.discovery import discover_all

IMAGES, IMAGE_SEEDS, STARTS = 1000, [0, 1, 2], [0, 1, 2, 3, 4]
SYMMETRIES = ["auto", "permutation"]


def score(model: nn.Module) -> float:
    return accuracy(logits(model, cifar10().X_test), cifar10().y_test)


def recomputed(model: nn.Module, seed: int) -> float:
    """Accuracy with norms recomputed on training images of a seed."""
    X = cifar10().X_train
    rows: Tensor = X[np.random.RandomState(seed).choice(len(X), IMAGES, replace=False)]
    return score(recompute_batchnorm(model, rows))


def fitted(data: FusionInput, **options: object) -> tuple[WassersteinFusion, float]:
    """A fusion and its seconds without the discovery."""
    data = discovered(data.models, data.arrays[0])
    start = time.perf_counter()
    fusion = WassersteinFusion(correction=None, **options).fit(data)
    return fusion, time.perf_counter() - start


def compare(name: str, seeds: Sequence[int], norms: bool) -> None:
    """Fuse the models of some seeds and print a table."""
    X, y = cifar10().X_test, cifar10().y_test
    models = [base_model(name, seed) for seed in seeds]
    start = time.perf_counter()
    discover_all(models, X[:2])
    discovery = time.perf_counter() - start
    header = ["method", "accuracy", *(["norms recomputed"] if norms else []), "energy", "fit s"]
    rows = [["ensemble", number(accuracy(torch.stack([logits(m, X) for m in models]).mean(0), y)), *[""] * (len(header) - 2)]]

    def add(label: str, model: nn.Module, energy: float = float("nan"), seconds: float = float("nan")) -> None:
        again = [spread([recomputed(model, seed) for seed in IMAGE_SEEDS])] if norms else []
        rows.append([label, number(score(model)), *again, number(energy), number(seconds)])

    for i, model in enumerate(models):
        add(f"parent {i}", model)
    data = FusionInput(models, X[:2])
    average = VanillaAveraging().fit(data)  # discovers the groups, which the fits below share through `data`
    add("plain average", average.fused_model_, average.energy_)
    for schedule in ("layerwise", "joint"):
        for symmetry in SYMMETRIES:
            fusion, seconds = fitted(data, schedule=schedule, symmetry=symmetry, random_state=0)
            add(f"{schedule}, symmetry={symmetry!r}", fusion.fused_model_, fusion.energy_, seconds)
    show(f"{name}, seeds {tuple(seeds)}; discovery {discovery:.2f} s", header, rows)


def starts(name: str, seeds: Sequence[int]) -> None:
    """The joint schedule from random couplings."""
    data = FusionInput([base_model(name, seed) for seed in seeds], cifar10().X_test[:2])
    rows = []
    for symmetry in SYMMETRIES:
        fits = [fitted(data, symmetry=symmetry, init="random", random_state=seed)[0] for seed in STARTS]
        scores = [recomputed(f.fused_model_, IMAGE_SEEDS[0]) for f in fits]
        lowest = scores[int(np.argmin([f.energy_ for f in fits]))]
        limits = [number(min(scores)), number(max(scores))]
        rows.append([f"symmetry={symmetry!r}", spread(scores), *limits, number(lowest), spread([f.energy_ for f in fits])])
    header = ["method", "norms recomputed", "least", "most", "at lowest energy", "energy"]
    show(f"{name}, seeds {tuple(seeds)}; joint from {len(STARTS)} random starts", header, rows)


def main() -> None:
    torch.set_num_threads(1)
    discover_all([nn.Linear(2, 2)])  # the first export of a process is slow
    compare("vgg11x0.5", (0, 1), norms=False)
    compare("resnet20x1", (0, 1), norms=True)
    starts("resnet20x1", (0, 1))


if __name__ == "__main__":
    main()
