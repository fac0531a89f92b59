"""scikit-learn's digits, and networks trained on them in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import sklearn.datasets
import torch
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch
from torch import Tensor, nn
from torch.nn import functional as F

from .architectures import MLP, RecurrentNet

__all__ = ["load_digits", "train_mlp", "train_recurrent"]

_Model = TypeVar("_Model", bound=nn.Module)


def load_digits(random_state: int = 0) -> Bunch:
    """Load scikit-learn's 1797 digits of 8 x 8 pixels, as 1000 training, 297 validation and 500 test rows.

    The pixels are standardised: over all pixels of the training rows, the mean is 0 and the standard deviation 1. The split is
    stratified by class.

    Parameters
    ----------
    random_state : int
        Seed of the split.

    Returns
    -------
    Bunch
        ``X_train``, ``X_val``, ``X_test``: float32 tensors of shape (n, 64); ``y_train``, ``y_val``, ``y_test``: int64
        tensors of shape (n,).

    Examples
    --------
    >>> digits = load_digits()
    >>> digits.X_train.shape, digits.X_val.shape, digits.X_test.shape
    (torch.Size([1000, 64]), torch.Size([297, 64]), torch.Size([500, 64]))
    """
    X, y = sklearn.datasets.load_digits(return_X_y=True)
    X_train, X_rest, y_train, y_rest = train_test_split(X / 16, y, train_size=1000, stratify=y, random_state=random_state)
    X_val, X_test, y_val, y_test = train_test_split(X_rest, y_rest, test_size=500, stratify=y_rest, random_state=random_state)
    mean, standard_deviation = X_train.mean(), X_train.std()

    def rows(x: np.ndarray) -> Tensor:
        return torch.as_tensor((x - mean) / standard_deviation, dtype=torch.float32)

    def labels(y: np.ndarray) -> Tensor:
        return torch.as_tensor(y, dtype=torch.int64)

    return Bunch(
        X_train=rows(X_train),
        y_train=labels(y_train),
        X_val=rows(X_val),
        y_val=labels(y_val),
        X_test=rows(X_test),
        y_test=labels(y_test),
    )


def train_mlp(
    X: Tensor,
    y: Tensor,
    widths: Sequence[int],
    seed: int = 0,
    *,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    batch_size: int = 50,
) -> MLP:
    """Train an `MLP` with Adam and the cross-entropy loss on the CPU.

    The seed determines the initial values and the order of the rows. PyTorch's global random state is unchanged. Training uses
    one thread, so the result does not depend on the number of threads.

    Parameters
    ----------
    X : Tensor of shape (n, ...)
    y : Tensor of shape (n,)
        Classes.
    widths : sequence of int
        The widths of all layers, from the inputs to the classes.
    seed : int
    epochs, learning_rate, batch_size : int, float, int

    Returns
    -------
    MLP
        In eval mode.

    Examples
    --------
    >>> digits = load_digits()
    >>> model = train_mlp(digits.X_train, digits.y_train, [64, 32, 10])
    >>> bool((model(digits.X_test).argmax(1) == digits.y_test).float().mean() > 0.9)
    True
    """
    return _train(lambda: MLP(widths), X, y, seed, epochs, learning_rate, batch_size)


def train_recurrent(
    X: Tensor,
    y: Tensor,
    cell: str,
    hidden: int,
    seed: int = 0,
    *,
    epochs: int = 20,
    learning_rate: float = 3e-3,
    batch_size: int = 50,
) -> RecurrentNet:
    """Train a `RecurrentNet` for ten classes in the same way as `train_mlp`.

    Parameters
    ----------
    X : Tensor of shape (n, steps, inputs)
        For the digits, 8 steps of 8 values: ``digits.X_train.view(-1, 8, 8)``.
    y : Tensor of shape (n,)
    cell : {"rnn", "lstm", "gru"}
    hidden : int
    seed : int
    epochs, learning_rate, batch_size : int, float, int

    Returns
    -------
    RecurrentNet
        In eval mode.

    Examples
    --------
    >>> digits = load_digits()
    >>> train_recurrent(digits.X_train.view(-1, 8, 8), digits.y_train, "gru", 16, epochs=1).rnn
    GRU(8, 16, batch_first=True)
    """
    return _train(lambda: RecurrentNet(cell, X.shape[2], hidden), X, y, seed, epochs, learning_rate, batch_size)


def _train(
    build: Callable[[], _Model], X: Tensor, y: Tensor, seed: int, epochs: int, learning_rate: float, batch_size: int
) -> _Model:
    """Build and train a network on one thread, with the same random numbers for the same seed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            model = build()
            optimizer = torch.optim.Adam(model.parameters(), learning_rate)
            for _ in range(epochs):
                for rows in torch.randperm(len(X)).split(batch_size):
                    optimizer.zero_grad()
                    F.cross_entropy(model(X[rows]), y[rows]).backward()
                    optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval()
