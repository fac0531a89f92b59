"""Seconds of `fit` on the pair of MLPNets of seeds 0 and 1, one thread, against a floor.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_fit_time.py

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py). The floor is what no method can
do without: for each group of neurons one matrix product over the incoming weights, one over the outgoing ones, and one
assignment, straight in torch and scipy. Medians of 5 runs, with the smallest and the largest; runs of the floor and of the
fits take turns, so that a busy machine slows all of them.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from base_models import base_model
from scipy.optimize import linear_sum_assignment
from tables import show
from torch import Tensor, nn

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.graph import discover_all

RUNS = 5


def centred(cost: Tensor) -> np.ndarray:
    """Costs less the means of rows and columns: same optimum, and the assignment is several times faster."""
    cost = cost - cost.mean(1, keepdim=True)
    return (cost - cost.mean(0, keepdim=True)).double().numpy()


@torch.no_grad()
def floor(models: Sequence[nn.Module]) -> list[np.ndarray]:
    """One pass over the groups of a pair: cost products and one assignment for each."""
    a, b = ([layer.weight for layer in m.layers] for m in models)
    orders = []
    order = np.arange(a[0].shape[1])
    for layer in range(len(a) - 1):
        similar = a[layer] @ b[layer][:, torch.as_tensor(order)].T + a[layer + 1].T @ b[layer + 1]
        order = linear_sum_assignment(centred(-similar))[1]
        orders.append(order)
    return orders


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    models = [base_model("mlpnet", seed) for seed in (0, 1)]
    example = torch.zeros(2, 1, 28, 28)
    cold = seconds(lambda: discover_all(models, example))
    data = FusionInput(models, example)
    calls: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(models),
        "discovery, warm": lambda: discover_all(models, example),
        "fit alone, layerwise": lambda: WassersteinFusion(schedule="layerwise").fit(data),
        "fit alone, joint": lambda: WassersteinFusion().fit(data),
        "fit alone, layerwise, reg 0.001": lambda: WassersteinFusion(schedule="layerwise", reg=0.001).fit(data),
        "fit alone, joint, reg 0.001": lambda: WassersteinFusion(reg=0.001).fit(data),
        "fit with discovery, joint": lambda: WassersteinFusion(example_inputs=example).fit(models),
    }
    WassersteinFusion().fit(data)  # from here on `data` holds the discovery
    times: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(RUNS):
        for label, call in calls.items():
            times[label].append(seconds(call))
    base = float(np.median(times["floor"]))
    rows = [["discovery, first call of the process", f"{cold:.4f}", "", "", f"{cold / base:.1f}"]]
    for label, values in times.items():
        figures = [f"{x:.4f}" for x in (np.median(values), min(values), max(values))]
        rows.append([label, *figures, f"{np.median(values) / base:.1f}"])
    show(f"mlpnet, seeds (0, 1); seconds, {RUNS} runs", ["what", "median", "least", "most", "to the floor"], rows)


if __name__ == "__main__":
    main()
