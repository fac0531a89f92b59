#!/usr/bin/env bash
# torch 2.13.0: a network with a top-level layer named `code` can be exported, but the exported program can't be decomposed.
#
# Expected: run_decompositions accepts every program that torch.export.export returns. Observed: if the name of a top-level layer
# is an attribute of torch.fx.GraphModule (code, graph, meta, recompile, ...), it raises RuntimeError "... references nonexistent
# attribute weight of code". The same network decomposes with another name, or one level deeper. Exits 1 if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import sys

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        setattr(self, name, nn.Linear(3, 4))

    def forward(self, x):
        return getattr(self, self.name)(x)


def seen(model):
    program = torch.export.export(model, (torch.randn(2, 3),), strict=False)
    try:
        program.run_decompositions({})
        return "decomposes"
    except RuntimeError as error:
        return str(error).splitlines()[0]


results = {name: seen(Net(name)) for name in ("bottleneck", "code", "graph", "meta", "recompile")}
results["code, one level deeper"] = seen(nn.Sequential(Net("code")))
print("torch", torch.__version__)
for name, what in results.items():
    print(f"{name}: {what}")
fails = [name for name, what in results.items() if "references nonexistent attribute" in what]
sys.exit(fails != ["code", "graph", "meta", "recompile"])
PY
