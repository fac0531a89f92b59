"""Values of many batches under a memory limit; those beyond it are kept in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Held", "Memory"]


class Memory:
    """A limit for the values that several networks hold together.

    Parameters
    ----------
    limit : float
        In bytes.

    Attributes
    ----------
    used : int
        Bytes of the values in memory; views count as separate tensors.
    n_filed : int
        Number of values that have been written to files.
    """

    def __init__(self, limit: float = float("inf")):
        self.limit, self.used, self.n_filed = limit, 0, 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def path(self) -> Path:
        """Return the path of a new file, which is deleted with this object."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="wbfuse-", ignore_cleanup_errors=True)
        self.n_filed += 1
        return Path(self._folder.name) / f"{self.n_filed}.pt"


class Held(Sequence[Any]):
    """One value for each batch, in memory or in a file.

    Parameters
    ----------
    memory : Memory
    values : iterable, default=()
        Tensors, or tuples and lists of them. A generator is advanced after the previous value has been stored.
    """

    def __init__(self, memory: Memory, values: Iterable[Any] = ()):
        self.memory, self.size = memory, 0
        self.values: list[Any] = []
        for value in values:
            self.append(value)

    def append(self, value: Any) -> None:
        """Store the value of one more batch."""
        size = _bytes(value)
        if size and self.memory.used + size > self.memory.limit:
            path = self.memory.path()
            torch.save(
                pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, value), path
            )  # clones, since the whole storage of a view would be saved
            self.values.append(path)
        else:
            self.values.append(value)
            self.size += size
            self.memory.used += size

    @overload
    def __getitem__(self, batch: int) -> Any: ...
    @overload
    def __getitem__(self, batch: slice) -> list[Any]: ...
    def __getitem__(self, batch: int | slice) -> Any:
        if isinstance(batch, slice):
            return [self[k] for k in range(*batch.indices(len(self)))]
        value = self.values[batch]
        return torch.load(value, weights_only=True) if isinstance(value, Path) else value

    def __len__(self) -> int:
        return len(self.values)

    def release(self) -> None:
        """Delete the values and release their memory."""
        for value in self.values:
            if isinstance(value, Path):
                value.unlink()
        self.memory.used -= self.size
        self.values, self.size = [], 0


def _bytes(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(value) if isinstance(t, Tensor))
