"""Seconds of `fit` on the pair of MLPNets of seeds 0 and 1 and on pairs of LSTMs, one thread, against a floor.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_fit_time.py

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py). The floor is what no method can
do without: for each group of neurons one matrix product over the incoming weights, one over the outgoing ones, and one
assignment, straight in torch and scipy. For an LSTM the products over W_hh are two, one for each part of the gradient; the pair
with 1024 hidden units is untrained. Medians of 5 runs, with the smallest and the largest; runs of the floor and of the
fits take turns, so that a busy machine slows all of them.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from base_models import base_model
from comparison import discovered
from scipy.optimize import linear_sum_assignment
from tables import show
from torch import Tensor, nn

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.datasets import RecurrentNet
from sklearn_wbfuse.discovery import discover_all

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


@torch.no_grad()
def recurrent_floor(models: Sequence[nn.Module]) -> np.ndarray:
    """The products over W_ih, both sides of W_hh and the head of a pair of LSTMs, and one assignment."""
    n = models[0].rnn.hidden_size
    similar = torch.zeros(n, n)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        a, b = (getattr(m.rnn, name).view(4, n, -1).transpose(0, 1).reshape(n, -1) for m in models)
        similar += a @ b.T
    a, b = (m.rnn.weight_hh_l0 for m in models)
    similar += a.T @ b + models[0].fc.weight.T @ models[1].fc.weight
    return linear_sum_assignment(centred(-similar))[1]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(
    title: str,
    models: Sequence[nn.Module],
    example: torch.Tensor,
    calls: dict[str, Callable[[FusionInput], object]],
    rows: list[list[str]],
) -> None:
    """A table of calls that take turns, each with the discovery at hand; the first is the floor."""
    times: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(RUNS):
        for label, call in calls.items():
            data = discovered(models, example)
            times[label].append(seconds(lambda call=call, data=data: call(data)))
    base = float(np.median(times["floor"]))
    for label, values in times.items():
        figures = [f"{x:.4f}" for x in (np.median(values), min(values), max(values))]
        rows.append([label, *figures, f"{np.median(values) / base:.1f}"])
    show(f"{title}; seconds, {RUNS} runs", ["what", "median", "least", "most", "to the floor"], rows)


def recurrent(title: str, models: Sequence[nn.Module]) -> None:
    example = torch.zeros(2, 28, 28)
    calls: dict[str, Callable[[FusionInput], object]] = {
        "floor": lambda data: recurrent_floor(models),
        "fit alone, layerwise": WassersteinFusion(schedule="layerwise", correction=None).fit,
        "fit alone, joint": WassersteinFusion(correction=None).fit,
        "fit with discovery, joint": lambda data: WassersteinFusion(example_inputs=example, correction=None).fit(models),
    }
    medians(title, models, example, calls, [])


def main() -> None:
    torch.set_num_threads(1)
    models = [base_model("mlpnet", seed) for seed in (0, 1)]
    example = torch.zeros(2, 1, 28, 28)
    cold = seconds(lambda: discover_all(models, example))
    calls: dict[str, Callable[[FusionInput], object]] = {
        "floor": lambda data: floor(models),
        "discovery, warm": lambda data: discover_all(models, example),
        "fit alone, layerwise": WassersteinFusion(schedule="layerwise", correction=None).fit,
        "fit alone, joint": WassersteinFusion(correction=None).fit,
        "fit alone, layerwise, reg 0.001": WassersteinFusion(schedule="layerwise", reg=0.001, correction=None).fit,
        "fit alone, joint, reg 0.001": WassersteinFusion(reg=0.001, correction=None).fit,
        "fit with discovery, joint": lambda data: WassersteinFusion(example_inputs=example, correction=None).fit(models),
    }
    medians("mlpnet, seeds (0, 1)", models, example, calls, [["discovery, first call of the process", f"{cold:.4f}", "", "", ""]])
    recurrent("lstm-256, seeds (0, 1)", [base_model("lstm-256", seed) for seed in (0, 1)])
    torch.manual_seed(0)
    recurrent("LSTMs of 1024 hidden units, untrained", [RecurrentNet("lstm", hidden=1024).eval() for _ in range(2)])


if __name__ == "__main__":
    main()
