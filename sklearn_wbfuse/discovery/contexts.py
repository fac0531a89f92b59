"""What is switched off, or held still, while a network is run or traced."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.nn.utils import rnn

__all__ = ["own_draws", "traced", "untouched_modules", "watched_assignments"]


def own_draws(*devices: torch.device) -> contextlib.AbstractContextManager[None]:
    """Networks may draw on the CPU and on some devices, and the streams of the caller stay as they are."""
    return torch.random.fork_rng([d for d in set(devices) if d.type == "cuda"])


@contextlib.contextmanager
def traced(model: nn.Module) -> Iterator[None]:
    """All that a trace needs: packing and checks of values off, no output, and modules left as they were."""
    _tracing.on = True
    try:
        with _quiet(), _padded(), _unvalidated(), _uncompiled(), untouched_modules(model):
            yield
    finally:
        _tracing.on = False


@contextlib.contextmanager
def untouched_modules(model: nn.Module) -> Iterator[None]:
    """Tensors that a run of a model in this thread assigns to attributes of modules, whichever, are taken back at the end.

    A network may keep its state as an attribute, and may reset that of every network of the process: a trace would leave
    tensors without values in networks of the caller.
    """
    modules = list(model.modules())
    held = [(store, dict(store)) for m in modules for store in (m._buffers, m._parameters, vars(m))]
    with watched_assignments():
        outer, first = _watch.own, len(_watch.before)
        _watch.own = {id(m) for m in modules}
        try:
            yield
        finally:
            _watch.own = outer
            for module, name, old in reversed(_watch.before[first:]):
                _Switch.original(module, name, old)
            del _watch.before[first:]
            for store, values in held:
                store.clear()
                store.update(values)


@contextlib.contextmanager
def watched_assignments() -> Iterator[None]:
    """Assignments to attributes of modules are seen until the end, in all threads that want it.

    Whenever it starts or ends Python forgets what it knows of the methods of modules, which costs as much as the run of a small
    network: around several runs it is started once.
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
    """How many want to see assignments, and what torch does with one."""

    lock, users = threading.Lock(), 0
    original: Callable[[nn.Module, str, Any], None]


class _Watch(threading.local):
    """The modules of the network that runs in this thread, and what others held before it assigned tensors to them."""

    def __init__(self) -> None:
        self.own: set[int] | None = None
        self.before: list[tuple[nn.Module, str, Any]] = []


_watch = _Watch()


def _assign(module: nn.Module, name: str, value: Any) -> None:
    if _watch.own is not None and id(module) not in _watch.own:
        old = getattr(module, name, None)
        if isinstance(value, Tensor) or isinstance(old, Tensor):
            _watch.before.append((module, name, old))
    _Switch.original(module, name, value)


_tracing = threading.local()
_PACKING = {
    f.__name__: types.FunctionType(f.__code__, f.__globals__, f.__name__)
    for f in (rnn.pack_padded_sequence, rnn.pad_packed_sequence)
}


@contextlib.contextmanager
def _padded() -> Iterator[None]:
    """Packing can't be traced, and does nothing to units: sequences stay padded, in this thread.

    The bodies of torch's functions are replaced, since networks import them under names of their own; in other threads they
    do what they did.
    """

    def pack_padded_sequence(input, lengths, batch_first=False, enforce_sorted=True):
        from sklearn_wbfuse.discovery.contexts import _PACKING, _tracing

        if not getattr(_tracing, "on", False):
            return _PACKING["pack_padded_sequence"](input, lengths, batch_first, enforce_sorted)
        return input

    def pad_packed_sequence(sequence, batch_first=False, padding_value=0.0, total_length=None):
        from sklearn_wbfuse.discovery.contexts import _PACKING, _tracing

        if not getattr(_tracing, "on", False):
            return _PACKING["pad_packed_sequence"](sequence, batch_first, padding_value, total_length)
        # torch is a global of the function that lends its name
        steps, batch = (sequence.shape[d] for d in ((1, 0) if batch_first else (0, 1)))
        extra = (total_length or steps) - steps
        if extra > 0:
            sequence = torch.nn.functional.pad(sequence, (0, 0, 0, extra) if batch_first else (0, 0, 0, 0, 0, extra))
        if padding_value:
            sequence = torch.where(sequence == sequence, sequence, padding_value)
        return sequence, torch.full((batch,), steps)

    detect, originals = transformer._detect_is_causal_mask, [rnn.pack_padded_sequence, rnn.pad_packed_sequence]
    bodies = [f.__code__ for f in originals]
    transformer._detect_is_causal_mask = _is_said_to_be_causal
    for original, padded in zip(originals, (pack_padded_sequence, pad_packed_sequence), strict=True):
        original.__code__ = padded.__code__
    try:
        yield
    finally:
        for original, body in zip(originals, bodies, strict=True):
            original.__code__ = body
        transformer._detect_is_causal_mask = detect


def _is_said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """What nn.Transformer asks of a mask, a hint for speed, without a look at its values, which can't be traced."""
    return bool(is_causal)


@contextlib.contextmanager
def _unvalidated() -> Iterator[None]:
    """Distributions check their arguments by their values, which can't be traced: in this thread they do not."""
    original = Distribution.__init__

    def create(self: Any, batch_shape: Any = (), event_shape: Any = (), validate_args: bool | None = None) -> None:
        on = getattr(_tracing, "on", False)
        original(self, torch.Size(batch_shape), torch.Size(event_shape), validate_args=False if on else validate_args)

    Distribution.__init__ = create  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distribution.__init__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Graphs are neither made Python code before they are run, nor told which lines they come from, if PyTorch can do without.

    These take a third of the time of a trace.
    """
    config, option = getattr(torch.fx, "config", None), "do_not_emit_stack_traces"
    lazily = getattr(getattr(torch.fx, "_lazy_graph_module", None), "_use_lazy_graph_module", None)
    before = getattr(config, option, None)
    with contextlib.nullcontext() if lazily is None else lazily(True):
        if before is not None:
            setattr(config, option, True)
        try:
            yield
        finally:
            if before is not None:
                setattr(config, option, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export dumps graphs and warnings to stderr; the error that we raise says what matters."""
    root, trace = logging.getLogger("torch"), logging.getLogger("torch.__trace")
    level, disabled = root.level, trace.disabled
    root.setLevel(logging.CRITICAL)
    trace.disabled = True  # or every step of the trace is formatted for whoever listens at the root logger
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        trace.disabled = disabled
