"""Runs of a network without side effects: random streams and the attributes of modules are as before afterwards."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["isolated_random_state", "untouched_modules", "watched_assignments"]


def isolated_random_state(*devices: torch.device) -> contextlib.AbstractContextManager[None]:
    """Let networks draw random numbers on the CPU and on some devices without changing the caller's random streams."""
    return torch.random.fork_rng([d for d in set(devices) if d.type == "cuda"])


@contextlib.contextmanager
def untouched_modules(model: nn.Module) -> Iterator[None]:
    """Undo, at the end, all assignments to attributes of modules by runs of a model in this thread.

    A network may store its state as an attribute, and may reset that of every network of the process: a trace would leave tensors
    without values in the caller's networks.
    """
    modules = list(model.modules())
    stores = [(attributes, dict(attributes)) for m in modules for attributes in (m._buffers, m._parameters, vars(m))]
    with watched_assignments():
        outer, n_before = _watch.modules, len(_watch.previous)
        _watch.modules = {id(m) for m in modules}
        try:
            yield
        finally:
            _watch.modules = outer
            for module, name, value in reversed(_watch.previous[n_before:]):
                _Switch.original(module, name, value)
            del _watch.previous[n_before:]
            for attributes, values in stores:
                attributes.clear()
                attributes.update(values)


@contextlib.contextmanager
def watched_assignments() -> Iterator[None]:
    """Record assignments to attributes of modules until the end, in all threads that require it.

    Each start and each end clears Python's cache of the methods of modules, which costs as much as a run of a small network.
    Start it once around several runs.
    """
    with _Switch.lock:
        if not _Switch.users:
            _Switch.original = nn.Module.__setattr__
            nn.Module.__setattr__ = _assign  # type: ignore[method-assign,assignment]
        _Switch.users += 1
    try:
        yield
    finally:
        with _Switch.lock:
            _Switch.users -= 1
            if not _Switch.users:
                nn.Module.__setattr__ = _Switch.original  # type: ignore[method-assign,assignment]


class _Switch:
    """The number of users that record assignments, and torch's own method of assignment."""

    lock, users = threading.Lock(), 0
    original: Callable[[nn.Module, str, Any], None]


class _Watch(threading.local):
    """The modules of the network that runs in this thread, and previous values of attributes of all other modules."""

    def __init__(self) -> None:
        self.modules: set[int] | None = None
        self.previous: list[tuple[nn.Module, str, Any]] = []


_watch = _Watch()


def _assign(module: nn.Module, name: str, value: Any) -> None:
    if _watch.modules is not None and id(module) not in _watch.modules:
        previous = getattr(module, name, None)
        if isinstance(value, Tensor) or isinstance(previous, Tensor):
            _watch.previous.append((module, name, previous))
    _Switch.original(module, name, value)
