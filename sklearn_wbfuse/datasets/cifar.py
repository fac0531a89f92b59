"""CIFAR-10: 50,000 training and 10,000 test images of ten classes."""

from __future__ import annotations

import io
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor

from .files import download, local_file

__all__ = ["load_cifar10"]

# The binary version, since the version for Python is a pickle, which can run code.
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_MEMBERS = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.247, 0.243, 0.261)


def load_cifar10() -> Bunch:
    """Load CIFAR-10 as x/255, normalised by the mean and the standard deviation of each channel.

    The means are (.4914, .4822, .4465), the standard deviations (.247, .243, .261). The images are read from ``$WBFUSE_DATA`` if
    that variable is set: from ``cifar10.npz``, uint8 images of shape (n, 32, 32, 3), or from ``cifar10_jpeg.npz``, the same as
    JPEG (needs Pillow). Otherwise the original archive of 170 MB is downloaded once to the cache, ``~/.cache/sklearn_wbfuse`` or
    ``$XDG_CACHE_HOME/sklearn_wbfuse``.

    Returns
    -------
    Bunch
        ``X_train``, ``X_test``: float32 tensors of shape (n, 3, 32, 32); ``y_train``, ``y_test``: int64 tensors of shape (n,).

    Raises
    ------
    DatasetError
        If the file is missing and cannot be downloaded.
    ImportError
        If the images are JPEG and Pillow is not installed.
    """
    path = local_file("cifar10.npz", "cifar10_jpeg.npz")
    data = Bunch()
    for split in ("train", "test"):
        if path is None:
            images, labels = _from_archive(download(_URL, _SHA256), _MEMBERS[split])
        else:
            images, labels = _from_npz(path, split)
        data[f"X_{split}"] = _normalised(images)
        data[f"y_{split}"] = torch.as_tensor(labels, dtype=torch.int64)
    return data


def _from_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 32, 32, 3) and labels of one split."""
    with np.load(path) as arrays:
        if f"x_{split}" in arrays:
            return arrays[f"x_{split}"], arrays[f"y_{split}"]
        return _decode(arrays[f"jpeg_{split}"], arrays[f"offset_{split}"]), arrays[f"y_{split}"]


def _decode(stream: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Decode concatenated JPEG files: file i is ``stream[offsets[i]:offsets[i + 1]]``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Decoding cifar10_jpeg.npz needs Pillow. Install it: pip install pillow") from error
    files = (io.BytesIO(stream[start:end].tobytes()) for start, end in pairwise(offsets))
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def _from_archive(path: Path, members: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels from rows of 1 + 3072 bytes: the label, followed by the three channels."""
    with tarfile.open(path) as archive:
        files = {Path(member.name).name: member for member in archive.getmembers()}
        parts = [archive.extractfile(files[name]) for name in members]
        rows = np.frombuffer(b"".join(part.read() for part in parts if part is not None), np.uint8).reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].copy()


def _normalised(images: np.ndarray) -> Tensor:
    """Convert uint8 images (n, 32, 32, 3) to normalised float32 images (n, 3, 32, 32)."""
    x = torch.as_tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), dtype=torch.float32).div_(255)
    return x.sub_(torch.tensor(_MEAN).view(1, 3, 1, 1)).div_(torch.tensor(_STD).view(1, 3, 1, 1))
