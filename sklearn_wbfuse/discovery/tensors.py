"""The tensors of a network: by name, in a state, and lent to it temporarily."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..network.types import State

__all__ = ["LENDING", "aliases", "floating_state", "lent", "tensor_shapes"]

LENDING = threading.RLock()
"""Held while a network runs on lent tensors, since fits in several threads may share the networks of a discovery."""


def floating_state(model: nn.Module) -> dict[str, Tensor]:
    """Return floating-point parameters and persistent buffers by name, each tensor once."""
    parameters, buffers = _named_tensors(model)
    persistent = set(model.state_dict(keep_vars=True)) if buffers else set()
    named = [*parameters, *((n, b) for n, b in buffers if n in persistent)]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in `floating_state`."""
    return {name: tuple(t.shape) for name, t in floating_state(model).items()}


def _named_tensors(model: nn.Module) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """Return parameters and buffers like ``named_parameters`` and ``named_buffers``, in one walk, since fits do so often."""
    seen, tensors = set[int](), (list[tuple[str, Tensor]](), list[tuple[str, Tensor]]())
    for path, module in model.named_modules():
        for store, named in zip((module._parameters, module._buffers), tensors, strict=True):
            for name, tensor in store.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    named.append((f"{path}.{name}" if path else name, tensor))
    return tensors


def aliases(model: nn.Module) -> dict[str, str]:
    """Return the first name of the same tensor for every name of every parameter and buffer."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names[name] = first.setdefault(id(tensor), name)
    return names


@contextlib.contextmanager
def lent(model: nn.Module, state: State = MappingProxyType({}), dtype: torch.dtype | None = None) -> Iterator[None]:
    """Lend a plain network the tensors of a state, and its others on the CPU, floating-point ones in `dtype`, until the end.

    Buffers that are not in the state are copies: what a run writes into them is lost. Other threads wait.
    """
    with LENDING:
        parameters, buffers = _named_tensors(model)
        named = [*((n, p, False) for n, p in parameters), *((n, b, True) for n, b in buffers)]
        data_of = [(tensor, tensor.data) for _, tensor, _ in named]
        try:
            for name, tensor, is_buffer in named:
                if name in state:
                    tensor.data = state[name]
                else:
                    target_dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                    tensor.data = tensor.data.to("cpu", target_dtype, copy=is_buffer)
            yield
        finally:
            for tensor, data in data_of:
                tensor.data = data
