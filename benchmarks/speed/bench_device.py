"""Fits on a device in turns with the CPU: seconds, the device's peak memory, and whether both find the same.

    python benchmarks/speed/bench_device.py cuda    appends its figures to benchmarks/gpu.md; about 3 minutes
    python benchmarks/speed/bench_device.py cpu     a dry run of two small fits, which writes nothing

Two perceptrons of 784 inputs and hidden layers of one width: the second is the first with its neurons in another order, and
noise of 0.3 of the spread of each weight. `make gpu` runs this after the tests.
"""

import contextlib
import io
import itertools
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tables import show

from sklearn_wbfuse import WassersteinFusion

CASES = {"cuda": ((1024, 3), (4096, 2)), "cpu": ((64, 3), (128, 2))}
"""Width and number of hidden layers."""
RUNS = 3
ENOUGH = 60.0
"""Seconds of a case after which no further turn begins."""
PAGE = Path(__file__).resolve().parents[1] / "gpu.md"
NONE_YET = "No run has been made on a GPU yet.\n"
TIE = 1e-6
"""Relative difference of energies at which other couplings are as good."""


def network(width: int, depth: int) -> nn.Sequential:
    sizes = [784, *[width] * depth]
    hidden = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10)).eval()


@torch.no_grad()
def parents(width: int, depth: int) -> list[nn.Sequential]:
    torch.manual_seed(0)
    first, second = network(width, depth), network(width, depth)
    linears = [layer for layer in second if isinstance(layer, nn.Linear)]
    order = torch.arange(784)
    for k, (first_layer, layer) in enumerate(
        zip((layer for layer in first if isinstance(layer, nn.Linear)), linears, strict=True)
    ):
        rows = torch.randperm(width) if k < depth else torch.arange(10)
        layer.weight.copy_(
            first_layer.weight[rows][:, order] + 0.3 * first_layer.weight.std() * torch.randn_like(first_layer.weight)
        )
        layer.bias.copy_(first_layer.bias[rows])
        order = rows
    return [first, second]


def fit(models: list[nn.Sequential], device: torch.device) -> tuple[float, WassersteinFusion]:
    start = time.perf_counter()
    fusion = WassersteinFusion(example_inputs=(torch.zeros(2, 784),), device=device, correction=None).fit(models)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, fusion


def difference(one: WassersteinFusion, other: WassersteinFusion) -> str:
    """How the couplings differ; other couplings of another energy are an error."""
    pairs = list(zip(one.couplings_, other.couplings_, strict=True))
    moved = sum(int((np.abs(a[name] - b[name]).max(1) > 1e-12).sum()) for a, b in pairs for name in a)
    apart = abs(one.energy_ - other.energy_) / abs(other.energy_)
    if moved and apart > TIE:
        energies = f"{one.energy_:.9g} for {other.energy_:.9g}"
        raise SystemExit(f"The device couples {moved} neurons otherwise, at an energy of {energies}.")
    return "the same" if not moved else f"{moved} neurons, energies {apart:.0e} apart"


def figures(width: int, depth: int, device: torch.device) -> dict[str, object]:
    models, cpu = parents(width, depth), torch.device("cpu")
    fit(parents(32, 1), device)  # libraries of the device are loaded
    seconds: dict[str, list[float]] = {"here": [], "there": []}
    peak, start = 0, time.perf_counter()
    while not seconds["here"] or (len(seconds["here"]) < RUNS and time.perf_counter() - start < ENOUGH):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken, there = fit(models, device)
        seconds["there"].append(taken)
        peak = max(peak, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)
        taken, here = fit(models, cpu)
        seconds["here"].append(taken)
    held = sum(p.numel() * p.element_size() for m in models for p in m.parameters())
    return {
        "width": width,
        "hidden layers": depth,
        "parents MiB": f"{held / 2**20:.0f}",
        "peak MiB": f"{peak / 2**20:.0f}" if peak else "",
        "device s": f"{min(seconds['there']):.2f}",
        "CPU s": f"{min(seconds['here']):.2f}",
        "turns": len(seconds["here"]),
        "couplings": difference(there, here),
    }


def driver() -> str:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def setting(device: torch.device) -> str:
    """The machine and what ran on it."""
    versions = [f"Python {platform.python_version()}", f"PyTorch {torch.__version__}"]
    versions += [f"{name} {version(name)}" for name in ("POT", "numpy", "scipy", "scikit-learn")]
    if device.type != "cuda":
        return ", ".join(versions)
    return ", ".join([torch.cuda.get_device_name(device), f"driver {driver()}", f"CUDA {torch.version.cuda}", *versions])


def main() -> None:
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    rows = [figures(width, depth, device) for width, depth in CASES["cuda" if device.type == "cuda" else "cpu"]]
    title = f"{setting(device)}, {torch.get_num_threads()} threads on the CPU"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show(title, list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])
    print(printed.getvalue())
    if device.type == "cuda":
        page = PAGE.read_text().replace(NONE_YET, "").rstrip()
        PAGE.write_text(f"{page}\n\n## {time.strftime('%Y-%m-%d')}\n\n```text{printed.getvalue()}```\n")


if __name__ == "__main__":
    main()
