"""How many samples of a probe networks are run on, and how many at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..discovery import Architecture, cast_inputs
from ..discovery.isolation import untouched_modules
from ..discovery.tensors import lent
from .parent_runner import rows_in
from .probe import Probe

__all__ = ["sized", "work_of"]

_CAP = 1e12
"""Multiply-adds that correction="auto" lets all networks spend on its samples, half a minute of one core."""

_AT_ONCE = 6
"""So many values of the size of its largest one a network may hold at once."""

_LOCK = threading.Lock()
"""Held while settings of PyTorch that all threads share are others."""

_FEWEST = 64
"""Samples that it takes whatever they cost."""


def sized(probe: Probe, architectures: Sequence[Architecture], *, capped: bool) -> Probe:
    """The probe with batches so small that what a network holds on the way takes no more than activations may, and, if capped,
    with so few samples that all networks together spend at most `_CAP` multiply-adds on them.
    """
    work = [(rows_in(a.inputs), *work_of(a.plain, a.inputs)) for a in dict.fromkeys(architectures)]
    adds, size = (max(one[k] / max(one[0], 1) for one in work) for k in (1, 2))
    n_samples = probe.n_samples
    if capped:
        runner = 3 * probe.n_steps / 2  # of every other sample, forwards and twice as much back
        most = _CAP / max(adds * (len(architectures) * (1 + runner) + 1), 1.0)
        n_samples = min(n_samples, max(_FEWEST, int(most)))
    batch_size = min(probe.batch_size, n_samples, int(probe.budget / max(_AT_ONCE * size, 1.0)))
    return clone(probe).set_params(n_samples=n_samples, batch_size=max(1, batch_size))


@torch.no_grad()
def work_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[float, int]:
    """How many multiplications and additions a network needs for inputs, as PyTorch counts them, and the bytes of its largest
    value.
    """
    with lent(model), untouched_modules(model), torch.random.fork_rng(devices=[]), _in_products():
        counter, largest = FlopCounterMode(display=False), _Largest([*model.parameters(), *model.buffers()])
        with counter, largest:
            model(*cast_inputs(inputs, model))
    return counter.get_total_flops() / 2, largest.size


class _Largest(TorchDispatchMode):
    """Remembers the bytes of the largest value that an operation returns, views of given tensors aside."""

    def __init__(self, given: Sequence[Tensor]):
        super().__init__()
        self.size, self.given = 0, {t.untyped_storage().data_ptr() for t in given if t.layout == torch.strided}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        tensors = [t for t in pytree.tree_leaves(returned) if isinstance(t, Tensor) and t.layout == torch.strided]
        own = [t for t in tensors if t.untyped_storage().data_ptr() not in self.given]
        self.size = max([self.size, *(t.numel() * t.element_size() for t in own)])
        return returned


@contextlib.contextmanager
def _in_products() -> Iterator[None]:
    """Recurrent layers and attention run as the products that they consist of: fused kernels count as nothing."""
    with _LOCK, _without_fused_kernels(), sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


@contextlib.contextmanager
def _without_fused_kernels() -> Iterator[None]:
    is_fast, had_mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
        torch.backends.mkldnn.enabled = had_mkldnn
