"""Data sets and reference architectures; only the demo, the examples and the benchmarks use them."""

from .architectures import MLP, VGG11, MLPNet, RecurrentNet, ResNet20, TextNet
from .cifar import load_cifar10
from .digits import load_digits, train_mlp, train_recurrent
from .files import DatasetError
from .mnist import load_mnist
from .text import load_ag_news, load_sst2

__all__ = [
    "MLP",
    "VGG11",
    "DatasetError",
    "MLPNet",
    "RecurrentNet",
    "ResNet20",
    "TextNet",
    "load_ag_news",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "load_sst2",
    "train_mlp",
    "train_recurrent",
]
