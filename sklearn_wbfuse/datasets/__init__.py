"""Data sets and reference architectures, for the demo, the examples and the benchmarks alone."""

from ._files import DatasetError
from .architectures import MLP, VGG11, MLPNet, RecurrentNet, ResNet20
from .cifar import load_cifar10
from .digits import load_digits, train_mlp
from .mnist import load_mnist

__all__ = [
    "MLP",
    "VGG11",
    "DatasetError",
    "MLPNet",
    "RecurrentNet",
    "ResNet20",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "train_mlp",
]
