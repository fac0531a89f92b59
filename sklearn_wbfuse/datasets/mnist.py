"""MNIST: 60,000 training and 10,000 test images of handwritten digits."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor

from .files import download, local_file

__all__ = ["load_mnist"]

_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


def load_mnist() -> Bunch:
    """Load MNIST, normalised as (x/255 - 0.1307) / 0.3081.

    The images are read from ``$WBFUSE_DATA/mnist.npz`` if that variable is set. Otherwise a file of 11 MB is downloaded once to
    the cache, ``~/.cache/sklearn_wbfuse`` or ``$XDG_CACHE_HOME/sklearn_wbfuse``.

    Returns
    -------
    Bunch
        ``X_train``, ``X_test``: float32 tensors of shape (n, 1, 28, 28); ``y_train``, ``y_test``: int64 tensors of shape (n,).

    Raises
    ------
    DatasetError
        If the file is missing and cannot be downloaded.
    """
    path = local_file("mnist.npz") or download(_URL, _SHA256)
    with np.load(path) as arrays:
        return Bunch(
            X_train=_normalised(arrays["x_train"]),
            y_train=torch.as_tensor(arrays["y_train"], dtype=torch.int64),
            X_test=_normalised(arrays["x_test"]),
            y_test=torch.as_tensor(arrays["y_test"], dtype=torch.int64),
        )


def _normalised(images: np.ndarray) -> Tensor:
    """Convert uint8 images (n, 28, 28) to normalised float32 images (n, 1, 28, 28)."""
    return torch.as_tensor(images, dtype=torch.float32).div_(255).sub_(0.1307).div_(0.3081).unsqueeze(1)
