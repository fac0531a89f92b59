"""The tensors of a network: by name, in a state, and lent to it for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

__all__ = ["LENDING", "aliases", "floating_state", "lent"]

LENDING = threading.RLock()
"""Fits in several threads may share the networks that discovery keeps."""


def floating_state(model: nn.Module) -> dict[str, Tensor]:
    """Floating-point parameters and persistent buffers by name, each tensor once."""
    parameters, buffers = _named_tensors(model)
    persistent = set(model.state_dict(keep_vars=True)) if buffers else set()
    named = [*parameters, *((n, b) for n, b in buffers if n in persistent)]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def _named_tensors(model: nn.Module) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """Parameters and buffers, as ``named_parameters`` and ``named_buffers`` give them, in one walk: a fit asks forty times."""
    seen, found = set[int](), (list[tuple[str, Tensor]](), list[tuple[str, Tensor]]())
    for path, module in model.named_modules():
        for store, named in zip((module._parameters, module._buffers), found, strict=True):
            for name, tensor in store.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    named.append((f"{path}.{name}" if path else name, tensor))
    return found


def aliases(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> the first name of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    both = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in both:
        names[name] = first.setdefault(id(tensor), name)
    return names


@contextlib.contextmanager
def lent(
    model: nn.Module, state: Mapping[str, Tensor] = MappingProxyType({}), dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Lend a plain network the tensors of a state until the end, and its other ones on the CPU, floating ones in a dtype.

    Buffers that are in no state are copies: what a run writes into them is lost. Other threads lend afterwards.
    """
    with LENDING:
        parameters, buffers = _named_tensors(model)
        named = [*((n, p, False) for n, p in parameters), *((n, b, True) for n, b in buffers)]
        own = [(tensor, tensor.data) for _, tensor, _ in named]
        try:
            for name, tensor, is_buffer in named:
                if name in state:
                    tensor.data = state[name]
                else:
                    kept = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                    tensor.data = tensor.data.to("cpu", kept, copy=is_buffer)
            yield
        finally:
            for tensor, data in own:
                tensor.data = data
