"""What is switched off, or held still, while a network is run or traced."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.nn.utils import rnn

__all__ = ["own_draws", "traced", "untouched_modules"]


def own_draws(*devices: torch.device) -> contextlib.AbstractContextManager[None]:
    """Networks may draw on the CPU and on some devices, and the streams of the caller stay as they are."""
    return torch.random.fork_rng([d for d in set(devices) if d.type == "cuda"])


@contextlib.contextmanager
def traced(model: nn.Module) -> Iterator[None]:
    """All that a trace needs: packing and checks of values off, no output, and modules left as they were."""
    _tracing.on = True
    try:
        with _quiet(), _padded(), _unvalidated(), untouched_modules(model):
            yield
    finally:
        _tracing.on = False


@contextlib.contextmanager
def untouched_modules(model: nn.Module) -> Iterator[None]:
    """Tensors that a run of a model in this thread assigns to attributes of modules, whichever, are taken back at the end.

    A network may keep its state as an attribute, and may reset that of every network of the process: a trace would leave
    tensors without values in networks of the caller.
    """
    thread, original = threading.get_ident(), nn.Module.__setattr__
    held = [(store, dict(store)) for m in model.modules() for store in (m._buffers, m._parameters, vars(m))]
    own = {id(m) for m in model.modules()}
    before: list[tuple[nn.Module, str, Any]] = []

    def assign(module: nn.Module, name: str, value: Any) -> None:
        if id(module) not in own and threading.get_ident() == thread:
            old = getattr(module, name, None)
            if isinstance(value, Tensor) or isinstance(old, Tensor):
                before.append((module, name, old))
        original(module, name, value)

    nn.Module.__setattr__ = assign  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]
        for module, name, old in reversed(before):
            original(module, name, old)
        for store, values in held:
            store.clear()
            store.update(values)


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
        from sklearn_wbfuse.graph.contexts import _PACKING, _tracing

        if not getattr(_tracing, "on", False):
            return _PACKING["pack_padded_sequence"](input, lengths, batch_first, enforce_sorted)
        return input

    def pad_packed_sequence(sequence, batch_first=False, padding_value=0.0, total_length=None):
        from sklearn_wbfuse.graph.contexts import _PACKING, _tracing

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
