"""The number of samples of a probe, and the batch size, that time and memory allow."""

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
from ..network.types import Inputs
from .parent_runner import n_samples_in
from .probe import Probe

__all__ = ["CAP", "sized_probe", "work_of"]

CAP = 1e12
"""Multiply-adds that all networks may spend on the samples of correction="auto", half a minute of one core."""

_AT_ONCE = 6
"""Assumed number of values of the size of the largest one that a network holds at once."""

_LOCK = threading.Lock()
"""Held while settings of PyTorch that all threads share are changed."""

_FEWEST = 64
"""Number of samples of correction="auto" whatever they cost."""


def sized_probe(probe: Probe, architectures: Sequence[Architecture], *, capped: bool) -> Probe:
    """Return a probe whose batch size keeps the values of a network within the memory limit.

    If `capped`, its number of samples also keeps all networks together within `CAP` multiply-adds.
    """
    work = [(n_samples_in(a.inputs), *work_of(a.plain, a.inputs)) for a in dict.fromkeys(architectures)]
    adds, size = (max(costs[k] / max(costs[0], 1) for costs in work) for k in (1, 2))
    n_samples = probe.n_samples
    if capped:
        passes = 3 * probe.n_steps / 2  # on every other sample, forwards and twice as expensive backwards
        n_affordable = CAP / max(adds * (len(architectures) * (1 + passes) + 1), 1.0)
        n_samples = min(n_samples, max(_FEWEST, int(n_affordable)))
    batch_size = min(probe.batch_size, n_samples, int(probe.budget / max(_AT_ONCE * size, 1.0)))
    return clone(probe).set_params(n_samples=n_samples, batch_size=max(1, batch_size))


@torch.no_grad()
def work_of(model: nn.Module, inputs: Inputs) -> tuple[float, int]:
    """Return the multiply-adds of a network on inputs, as PyTorch counts them, and the bytes of its largest value."""
    with lent(model), untouched_modules(model), torch.random.fork_rng(devices=[]), _in_products():
        counter, largest = FlopCounterMode(display=False), _Largest([*model.parameters(), *model.buffers()])
        with counter, largest:
            model(*cast_inputs(inputs, model))
    return counter.get_total_flops() / 2, largest.size


class _Largest(TorchDispatchMode):
    """Records the bytes of the largest value that an operation returns, not counting views of given tensors."""

    def __init__(self, ignored: Sequence[Tensor]):
        super().__init__()
        self.size, self.ignored = 0, {t.untyped_storage().data_ptr() for t in ignored if t.layout == torch.strided}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        tensors = [t for t in pytree.tree_leaves(returned) if isinstance(t, Tensor) and t.layout == torch.strided]
        new = [t for t in tensors if t.untyped_storage().data_ptr() not in self.ignored]
        self.size = max([self.size, *(t.numel() * t.element_size() for t in new)])
        return returned


@contextlib.contextmanager
def _in_products() -> Iterator[None]:
    """Run recurrent layers and attention as products: the counter ignores fused kernels."""
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
