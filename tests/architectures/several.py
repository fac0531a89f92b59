"""Networks with several inputs or outputs; each knows its units, see `tables`."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Siamese(nn.Module):
    """One encoder for two images, compared feature by feature [Koch et al. 2015]."""

    def __init__(self, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5)
        self.conv2 = nn.Conv2d(width, 2 * width, 5)
        self.fc = nn.Linear(2 * width * 16, 16 * width)
        self.head = nn.Linear(16 * width, 1)

    def encode(self, x):
        """Features of images of 28 x 28."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return torch.sigmoid(self.fc(x.flatten(1)))

    def forward(self, a, b):
        return self.head((self.encode(a) - self.encode(b)).abs())

    def units(self, t):
        x = t.layer(self.conv2, t.layer(self.conv1, None))
        t.reads(self.head, t.layer(self.fc, np.repeat(x, 16)))


class TwoInputs(nn.Module):
    """An image and a vector, each with a branch of its own, joined; a class and a number come out."""

    def __init__(self, width=64, features=7, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.fc1 = nn.Linear(features, width)
        self.fc2 = nn.Linear(width, width)
        self.joint = nn.Linear(3 * width, 2 * width)
        self.classes = nn.Linear(2 * width, classes)
        self.number = nn.Linear(2 * width, 1)

    def forward(self, image, vector):
        x = F.max_pool2d(F.relu(self.conv1(image)), 2)
        x = F.relu(self.norm(self.conv2(x))).mean((2, 3))
        y = torch.tanh(self.fc2(torch.tanh(self.fc1(vector))))
        x = F.relu(self.joint(torch.cat([x, y], 1)))
        return self.classes(x), self.number(x)

    def units(self, t):
        x = t.layer(self.conv2, t.layer(self.conv1, None), self.norm)
        y = t.layer(self.fc2, t.layer(self.fc1, None))
        x = t.layer(self.joint, np.concatenate([x, y]))
        t.reads(self.classes, x)
        t.reads(self.number, x)
