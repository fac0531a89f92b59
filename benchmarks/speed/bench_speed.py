"""Seconds and peak memory of discovery, matching and the whole fit, against a floor and a straightforward rival.

    OMP_NUM_THREADS=1 python benchmarks/speed/bench_speed.py          widths to 2048, 2 to 8 models: about 5 minutes
    OMP_NUM_THREADS=1 python benchmarks/speed/bench_speed.py --all    widths to 4096, 2 to 16 models

Networks are untrained: their neurons match badly, which takes more sweeps than trained ones do. Each case runs in processes of
its own. One takes the times: floor (`floor.py`), rival (`baseline.py`) and fits take turns, and the least of several runs is
shown. "Matching" runs from the parameters to the couplings: features, balanced scales, layers and sweeps. "To the floor" is that
of matching. Memory is the largest resident set during the call less that with the parents loaded, each call in a fresh process.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1]))

from baseline import baseline
from comparison import discovered
from floor import floor
from tables import show

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.alignment import Aligner, Alignment
from sklearn_wbfuse.alignment.features import extract_features
from sklearn_wbfuse.datasets import MLP, VGG11, ResNet20
from sklearn_wbfuse.discovery import discover_all, floating_state
from sklearn_wbfuse.fusion import Roles
from sklearn_wbfuse.fusion.parent_factory import architectures_of

RUNS = 3
ENOUGH = 20.0
"""Seconds of a case after which no further run begins."""
RIVAL_TO = 1024
"""Widest layer that the rival is given: its network simplex takes half a minute for 2048 neurons."""

Case = dict[str, object]


class Timed(Aligner):
    """Notes the seconds that an aligner takes from the parameters to the couplings."""

    def __init__(self, aligner: Aligner):
        self.aligner, self.seconds = aligner, 0.0
        self.compares_activations = aligner.compares_activations
        self.sizes = aligner.sizes  # type: ignore[method-assign]

    def align(self, *arguments: Any) -> Alignment:
        """As the aligner."""
        start = time.perf_counter()
        alignment = self.aligner.align(*arguments)
        self.seconds = time.perf_counter() - start
        return alignment


class TimedFusion(WassersteinFusion):
    """Notes the seconds from the parameters to the couplings."""

    def roles(self) -> Roles:
        """As the fusion's, timed."""
        roles = super().roles()
        self.timed_ = Timed(roles.aligner)
        return dataclasses.replace(roles, aligner=self.timed_)


def cases(everything: bool) -> list[Case]:
    widths = (256, 512, 1024, 2048, 4096) if everything else (256, 512, 1024, 2048)
    counts = (2, 4, 8, 16) if everything else (2, 4, 8)
    depths = (2, 4, 8, 16) if everything else (2, 8)
    return [
        *({"net": "mlp", "width": w, "models": 2, "depth": 3} for w in widths),
        *({"net": "mlp", "width": 512, "models": m, "depth": 3} for m in counts[1:]),
        *({"net": "mlp", "width": 512, "models": 2, "depth": d} for d in depths),
        *({"net": "vgg11", "width": w, "models": 2} for w in ((32, 64) if everything else (32,))),
        *({"net": "resnet20", "width": w, "models": 2} for w in ((16, 64) if everything else (16,))),
    ]


def parents(case: Case) -> tuple[list[nn.Module], torch.Tensor]:
    torch.manual_seed(0)
    width, image = int(case["width"]), torch.zeros(2, 3, 32, 32)  # type: ignore[call-overload]
    build: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: MLP([784, *[width] * int(case["depth"]), 10]),  # type: ignore[call-overload]
        "vgg11": lambda: VGG11(width / 64),
        "resnet20": lambda: ResNet20(width // 16),
    }
    example = torch.zeros(2, 784) if case["net"] == "mlp" else image
    return [build[str(case["net"])]().eval() for _ in range(int(case["models"]))], example  # type: ignore[call-overload]


def arrays(data: FusionInput) -> tuple[list, list]:
    """Features of the parents, as the floor and the rival get them."""
    specs = [a.spec for a in architectures_of(data.models, data)]
    both = [extract_features(g, floating_state(m), 1.0) for g, m in zip(specs, data.models, strict=True)]
    return both[0][0], [arrays for _, arrays in both]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timed(case: Case) -> dict[str, float]:
    models, example = parents(case)
    data = FusionInput(models, example)
    discover_all(models, example)
    features, source_arrays = arrays(data)
    runs: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        runs.setdefault(name, []).append(value)

    sweeps, begin = 0, time.perf_counter()
    for run in range(RUNS):
        if time.perf_counter() - begin > ENOUGH:
            break
        note("floor", seconds(lambda: floor(features, source_arrays)))
        if run == 0 and case["net"] == "mlp" and int(case["width"]) <= RIVAL_TO:  # type: ignore[call-overload]
            note("rival", seconds(lambda: baseline(features, source_arrays)))
        note("discovery", seconds(lambda: discover_all(models, example)))
        for schedule in ("layerwise", "joint"):
            fusion = TimedFusion(schedule=schedule)
            data = discovered(models, example)
            note(f"{schedule} fit", seconds(lambda fusion=fusion, data=data: fusion.fit(data)))  # type: ignore[misc]
            note(schedule, fusion.timed_.seconds)
            sweeps = fusion.n_iter_
    return {name: min(values) for name, values in runs.items()} | {"sweeps": sweeps}


def memory(case: Case, what: str) -> dict[str, float]:
    """Growth of the resident set in one call, in MiB."""
    models, example = parents(case)
    data = FusionInput(models, example)
    features, source_arrays = arrays(data)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if what == "fit":
        WassersteinFusion(correction=None).fit(data)
    else:
        {"floor": floor, "rival": baseline}[what](features, source_arrays)
    return {what: (_resident("VmHWM") - before) / 1024}


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_a_process(case: Case, task: str) -> dict[str, float]:
    call = [sys.executable, __file__, "--case", json.dumps(case), "--task", task]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory against a floor.")
    parser.add_argument("--all", action="store_true", help="wider layers, more models, deeper networks")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.case:
        print(json.dumps(timed(arguments.case) if arguments.task == "time" else memory(arguments.case, arguments.task)))
        return
    names = ["floor", "rival", "discovery", "layerwise", "joint", "layerwise fit", "joint fit"]
    times, peaks = [], []
    for case in cases(arguments.all):
        label = f"{case['net']} {case['width']}" + (f" x {case['depth']}" if "depth" in case else "")
        label += f", {case['models']} models"
        t = in_a_process(case, "time")
        ratios = [f"{t[s] / t['floor']:.1f}" for s in ("layerwise", "joint")]
        times.append([label, *(f"{t[n]:.3f}" if n in t else "" for n in names), *ratios, f"{t['sweeps']}"])
        tasks = ["floor", *(["rival"] if "rival" in t else []), "fit"]
        m = {name: in_a_process(case, name)[name] for name in tasks}
        size = sum(p.numel() * p.element_size() for p in parents(case)[0][0].parameters()) / 2**20
        peaks.append([label, f"{size:.1f}", *(f"{m[n]:.0f}" if n in m else "" for n in ("floor", "rival", "fit"))])
    header = ["network", *names, "layerwise to the floor", "joint to the floor", "sweeps"]
    show(f"seconds, least of up to {RUNS} runs (the rival: one), one thread", header, times)
    show("peak memory over that with the parents loaded, MiB", ["network", "one parent", "floor", "rival", "joint fit"], peaks)


if __name__ == "__main__":
    main()
