"""Data-free fusion of MLPNets on the 10,000 test images of MNIST.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_mnist_mlp.py

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py). Printed: accuracies in %, the
full energy E at the end, and seconds on one thread, where "fit" leaves out the discovery of the groups, which is timed apart.
Energies of different pairs or scales can't be compared: the fusions' are in balanced scales, the plain average's in the models'
own. Those of one pair and different schedules or `reg` can.
"""

import torch
from base_models import base_model, mnist
from comparison import compare

from sklearn_wbfuse.discovery import discover_all

PAIRS = [(0, 1), (2, 3), (4, 5)]
REGS = [0.0, 0.001, 0.005]


def methods(*regs: float) -> dict[str, dict]:
    return {f"{s}, reg {reg:g}": {"schedule": s, "reg": reg} for s in ("layerwise", "joint") for reg in regs}


def main() -> None:
    torch.set_num_threads(1)
    discover_all([base_model("mlpnet", 0)], mnist().X_test[:2])  # the first export of a process is slow
    compare("mlpnet-nobias", PAIRS, mnist(), methods(*REGS), softmax=False)
    compare("mlpnet-nobias", [range(6)], mnist(), methods(0.0), softmax=False)
    compare("mlpnet", [(0, 1)], mnist(), methods(*REGS), softmax=False)


if __name__ == "__main__":
    main()
