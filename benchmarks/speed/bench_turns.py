"""CPU time and memory of fits in turns with an earlier commit: wide layers with and without scales, small pairs, corrections.

    OMP_NUM_THREADS=1 python benchmarks/speed/bench_turns.py --before COMMIT [--rounds 5] [CASE ...]

The commit is checked out beside this one in a temporary folder, and removed afterwards. Each figure comes from a process of its
own with the code of one of both, old and new in turns; every process first fuses a small pair, so that nothing is loaded in the
time that is measured. Seconds are CPU time of one thread, the least of a few fits. Peaks are the largest resident set during a
fit less that with the parents loaded. Cells are the least and the largest of all rounds. To add a case, add it to `CASES`; it
returns a function without arguments that does the work, and what that returns may have `energy_` and `n_iter_`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from base_models import base_model
from bench_speed import _resident as resident
from comparison import discovered
from tables import show

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.correction import recompute_batchnorm
from sklearn_wbfuse.datasets import MLP

ROOT = Path(__file__).resolve().parents[2]
INPUTS = {"mlp-": (784,), "mlpn": (1, 28, 28), "resn": (3, 32, 32)}
Work = Callable[[], object]


def fit(name: str, seeds: Sequence[int] = (0, 1), *, warm: bool = False, **options: object) -> Callable[[], Work]:
    """A whole fit by weights alone; with `warm` groups are known, as in all fits on a FusionInput but the first."""

    def case() -> Work:
        models, example = [base_model(name, seed) for seed in seeds], torch.zeros(2, *INPUTS[name[:4]])
        options.setdefault("cost", "weight")
        options.setdefault("correction", None)
        if warm:
            inputs = [discovered(models, example) for _ in range(REPEATS)]  # each is used once: results are kept in it
            return lambda: WassersteinFusion(**options).fit(inputs.pop())
        return lambda: WassersteinFusion(example_inputs=(example,), **options).fit(models)

    return case


def corrected(name: str, n: int = 1000, **options: object) -> Callable[[], Work]:
    """A fit on rows, noise since time alone counts; groups are known."""

    def case() -> Work:
        models, X = [base_model(name, seed) for seed in (0, 1)], torch.randn(n, *INPUTS[name[:4]])
        inputs = [FusionInput(models, X) for _ in range(REPEATS)]
        for g in inputs:
            WassersteinFusion(correction=None, cost="weight").fit(g)
        return lambda: WassersteinFusion(random_state=0, **options).fit(inputs.pop())

    return case


def reset(name: str, n: int = 1000) -> Callable[[], Work]:
    """The statistics of a network's batch norms recomputed, and nothing else."""

    def case() -> Work:
        model, X = base_model(name, 0), torch.randn(n, *INPUTS[name[:4]])
        return lambda: recompute_batchnorm(model, X)

    return case


CASES: dict[str, Callable[[], Work]] = {
    "3 x 2048, permutation": fit("mlp-2048", symmetry="permutation"),
    "3 x 2048, scales": fit("mlp-2048"),
    "MLPNet": fit("mlpnet"),
    "MLPNet, groups known": fit("mlpnet", warm=True),
    "MLPNet without biases, groups known": fit("mlpnet-nobias", (2, 3), warm=True),
    "ResNet20": fit("resnet20x1"),
    "ResNet20, groups known": fit("resnet20x1", warm=True),
    "ResNet20, norms reset": reset("resnet20x1"),
    "ResNet20, batchnorm on rows": corrected("resnet20x1", cost="weight", correction="batchnorm"),
    "ResNet20, regression on rows": corrected("resnet20x1", cost=0.5, correction="regression"),
    "MLPNet, activations alone": corrected("mlpnet-nobias", cost="activation", correction=None),
    "MLPNet, regression on rows": corrected("mlpnet-nobias", cost=0.5, correction="regression"),
}
RATIOS = {
    "scales to permutation": ("3 x 2048, scales", "3 x 2048, permutation"),
    "a fit with batchnorm to a reset": ("ResNet20, batchnorm on rows", "ResNet20, norms reset"),
}
REPEATS = 9
ENOUGH = 3.0
"""Seconds after which a process does its work no more."""


def measured(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    WassersteinFusion(correction=None).fit([MLP([4, 5, 6, 2]) for _ in range(2)])
    work = CASES[name]()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    taken: list[float] = []
    peak = 0.0
    while not taken or (len(taken) < REPEATS and sum(taken) < ENOUGH):
        start = time.process_time()
        result = work()
        taken.append(time.process_time() - start)
        peak = peak or (resident("VmHWM") - before) / 1024
    told = {
        key: float(getattr(result, name)) for key, name in (("energy", "energy_"), ("sweeps", "n_iter_")) if hasattr(result, name)
    }
    return {"seconds": min(taken), "MiB": peak, **told}


def in_a_process(name: str, folder: Path) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    call = [sys.executable, __file__, "--case", name]
    done = subprocess.run(call, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def span(values: Sequence[float], digits: int = 3) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def compare(names: Sequence[str], folders: dict[str, Path], rounds: int) -> None:
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name in names:
            for which, folder in folders.items():
                results.setdefault((name, which), []).append(in_a_process(name, folder))
    rows = []
    for (name, which), all_rounds in results.items():
        last = all_rounds[-1]
        seconds, peaks = ([r[key] for r in all_rounds] for key in ("seconds", "MiB"))
        ratio = [r["seconds"] / f["seconds"] for r, f in zip(all_rounds, results[name, next(iter(folders))], strict=True)]
        told = [f"{last['energy']:.4f}" if "energy" in last else "", f"{last['sweeps']:.0f}" if "sweeps" in last else ""]
        rows.append([name, which, span(seconds), span(ratio, 2), span(peaks, 0), *told])
    show(
        f"CPU time of one thread, {rounds} rounds",
        ["work", "code", "seconds", "to the first", "peak MiB", "energy", "sweeps"],
        rows,
    )
    ratios = []
    for label, (one, other) in RATIOS.items():
        for which in folders if {one, other} <= set(names) else ():
            pairs = list(zip(results[one, which], results[other, which], strict=True))
            ratios.append([label, which, *(span([a[key] / b[key] for a, b in pairs], 2) for key in ("seconds", "MiB"))])
    if ratios:
        show("ratios of works", ["", "code", "seconds", "peak"], ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fits in turns with an earlier commit.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {'; '.join(CASES)}")
    parser.add_argument("--before", help="an earlier commit; this checkout alone without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.case:
        print(json.dumps(measured(arguments.case)))
        return
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {'; '.join(sorted(unknown))}; there are {'; '.join(CASES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"now": ROOT}
        if arguments.before:
            earlier = Path(temporary) / "before"
            subprocess.run(["git", "worktree", "add", "-q", "--detach", str(earlier), arguments.before], cwd=ROOT, check=True)
            folders = {arguments.before[:8]: earlier, **folders}
        try:
            compare(arguments.cases or list(CASES), folders, arguments.rounds)
        finally:
            if arguments.before:
                subprocess.run(["git", "worktree", "remove", "--force", str(earlier)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
