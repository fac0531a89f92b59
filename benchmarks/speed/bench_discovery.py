"""Seconds of the discovery of published architectures in their published widths, self-check included, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/speed/bench_discovery.py [NAME ...]

The networks are those of `tests/architectures`, whose groups are written down there by hand, on small images and short texts
(one image of 224 x 224 pixels for ViT). torch.export is warm. Coverage is the share of the units of the hand-written table that
are found.
"""

import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("benchmarks", "tests", "tests/fusion"))

from architectures import FIXTURES, Table
from tables import show
from test_architectures import coverage

from sklearn_wbfuse import discover
from sklearn_wbfuse.exceptions import FusionWarning

OPTIONS = {"vgg11_bn": {"norm": True}, "unet_group_norm": {"groups": 8}}
IMAGES = {"vgg11_bn": 32, "vit": 224, "convnext": 64}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", FusionWarning)
    discover(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)))
    rows = []
    for name in names or FIXTURES:
        torch.manual_seed(0)
        fixture = FIXTURES[name]
        network = fixture.kind(**OPTIONS.get(name, {})).eval()
        inputs = [t.float() if t.is_floating_point() else t for t in fixture.build()[2]]
        if name in IMAGES:
            inputs = [torch.randn(1, 3, IMAGES[name], IMAGES[name])]
        begin = time.perf_counter()
        spec = discover(network, tuple(inputs))
        seconds = time.perf_counter() - begin
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        units = sum(spec.sizes.values())
        share = coverage(Table(network), spec)
        rows.append([name, f"{millions:.1f}", str(len(spec.groups)), str(units), f"{share:.3f}", f"{seconds:.2f}"])
    show("discovery in published widths", ["network", "million parameters", "groups", "units", "coverage", "seconds"], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
