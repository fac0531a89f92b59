"""Commands of `wbfuse` as users type them, and the files that they name."""

import numpy as np
import torch

from sklearn_wbfuse import cli

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, width), nn.BatchNorm1d(width), nn.Linear(width, 3)
    def forward(self, x):
        return self.head(self.norm(self.first(x)).relu())

class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def sum_of_two():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 4), nn.Linear(2, 4), nn.Linear(4, 3)
        def forward(self, x, y):
            return self.head((self.a(x) + self.b(y)).relu())
    return Sum()

def needs(width): return Net(width)
def number(): return 3
text = "no factory"
"""


def run(capsys, *arguments):
    """Exit code, output and errors of a command."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as exit_:
        code = exit_.code
    return (code, *capsys.readouterr())


MODEL = ("--model", "nets.py:Net")


def state(name):
    return torch.load(name, weights_only=True)


def users_net():
    import users_nets

    return users_nets.Net()


def nest(content):
    torch.save(content, "nested.pt")


def save_arrays(**arrays):
    return lambda: np.savez("bad.npz", **arrays)


def write(name, data):
    return lambda: open(name, "wb").write(data)


X = np.zeros((4, 5), "float32")
PAIR = ("fuse", "a.pt", "b.pt", "-o", "out")
DATA = (*PAIR, *MODEL, "--data", "bad.npz")
