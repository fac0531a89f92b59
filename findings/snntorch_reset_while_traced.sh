#!/usr/bin/env bash
# snntorch 1.0.0 with torch 2.13.0: tracing a network with torch.export destroys the state of other networks in the process.
#
# Expected: torch.export.export(model, ...) affects no other module. Observed: a forward that begins with
# snntorch.utils.reset(net), as in the tutorials, resets every neuron that was ever constructed and is listed in
# SpikingNeuron.instances, whichever network it belongs to (deep copies are not listed). Under a trace the new states are
# FakeTensors, so the other network can no longer be run or deep-copied. Exits 1 if that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy==2.4.6 snntorch==1.0.0
"$folder/env/bin/python" - <<'PY'
import sys

import snntorch
import torch
from snntorch import utils
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), snntorch.Leaky(beta=0.9, init_hidden=True, output=True))

    def forward(self, x):
        utils.reset(self.layers)
        return torch.stack([self.layers(x[:, t])[1] for t in range(x.shape[1])]).sum(0)


traced, bystander = Net().eval(), Net().eval()
x = torch.randn(2, 3, 5)
with torch.no_grad():
    traced(x), bystander(x)
before = type(bystander.layers[1].mem).__name__
torch.export.export(traced, (x,), strict=False)
after = type(bystander.layers[1].mem).__name__
print("torch", torch.__version__, "- state of a network that was not traced, before and after:", before, after)
sys.exit((before, after) != ("Tensor", "FakeTensor"))
PY
