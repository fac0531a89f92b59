"""
Two networks for the command line
=================================

This script trains two networks with different widths on scikit-learn's digits and
writes ``a.safetensors``, ``b.safetensors`` and ``test.npz`` to the current folder.
Fuse them with ``wbfuse fuse a.safetensors b.safetensors -o fused --model
examples/train.py:Net --data test.npz``.
"""

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from sklearn_wbfuse.datasets import load_digits


class Net(nn.Module):
    """A perceptron for 8 x 8 pixels."""

    def __init__(self, width=64):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(64, width), nn.Linear(width, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def train(width, seed, data):
    torch.manual_seed(seed)
    model = Net(width)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(30):
        for rows in torch.randperm(len(data.X_train)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(data.X_train[rows]), data.y_train[rows]).backward()
            optimizer.step()
    return model


def main():
    torch.set_num_threads(1)  # small networks run faster on one thread
    data = load_digits()
    for name, width, seed in (("a", 64, 0), ("b", 96, 1)):
        save_file(train(width, seed, data).state_dict(), f"{name}.safetensors")
    np.savez("test.npz", X=data.X_test, y=data.y_test, X_fit=data.X_val)


if __name__ == "__main__":
    main()
