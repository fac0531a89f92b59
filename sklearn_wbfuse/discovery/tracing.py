"""The settings under which a network is traced: checks of values, packing, compilation and output are off."""

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

from .isolation import untouched_modules

__all__ = ["PACKING", "TRACING", "trace_settings"]


@contextlib.contextmanager
def trace_settings(model: nn.Module) -> Iterator[None]:
    """Prepare a trace: packing and checks of values off, no output, and modules unchanged afterwards."""
    TRACING.on = True
    try:
        with _quiet(), _padded(), _unvalidated(), _uncompiled(), untouched_modules(model):
            yield
    finally:
        TRACING.on = False


TRACING = threading.local()
"""Holds whether this thread traces a network, as its attribute `on`."""

PACKING = {
    f.__name__: types.FunctionType(f.__code__, f.__globals__, f.__name__)
    for f in (rnn.pack_padded_sequence, rnn.pad_packed_sequence)
}
"""Copies of torch's functions, for threads that do not trace."""


@contextlib.contextmanager
def _padded() -> Iterator[None]:
    """Leave sequences padded in this thread: packing cannot be traced, and does nothing to units.

    The bodies of torch's functions are replaced, since networks import them under various names; other threads run the original
    bodies. The replacements run with the globals of torch's module, so that they import from this one by its full name.
    """

    def pack_padded_sequence(input, lengths, batch_first=False, enforce_sorted=True):
        from sklearn_wbfuse.discovery.tracing import PACKING, TRACING

        if not getattr(TRACING, "on", False):
            return PACKING["pack_padded_sequence"](input, lengths, batch_first, enforce_sorted)
        return input

    def pad_packed_sequence(sequence, batch_first=False, padding_value=0.0, total_length=None):
        from sklearn_wbfuse.discovery.tracing import PACKING, TRACING

        if not getattr(TRACING, "on", False):
            return PACKING["pad_packed_sequence"](sequence, batch_first, padding_value, total_length)
        # torch is a global of the replaced function
        steps, batch = (sequence.shape[d] for d in ((1, 0) if batch_first else (0, 1)))
        extra = (total_length or steps) - steps
        if extra > 0:
            sequence = torch.nn.functional.pad(sequence, (0, 0, 0, extra) if batch_first else (0, 0, 0, 0, 0, extra))
        if padding_value:
            sequence = torch.where(sequence == sequence, sequence, padding_value)
        return sequence, torch.full((batch,), steps)

    detect, originals = transformer._detect_is_causal_mask, [rnn.pack_padded_sequence, rnn.pad_packed_sequence]
    bodies = [f.__code__ for f in originals]
    transformer._detect_is_causal_mask = _hint_of_causality
    for original, padded in zip(originals, (pack_padded_sequence, pad_packed_sequence), strict=True):
        original.__code__ = padded.__code__
    try:
        yield
    finally:
        for original, body in zip(originals, bodies, strict=True):
            original.__code__ = body
        transformer._detect_is_causal_mask = detect


def _hint_of_causality(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Return the caller's hint that a mask is causal, without reading its values, which cannot be traced."""
    return bool(is_causal)


@contextlib.contextmanager
def _unvalidated() -> Iterator[None]:
    """Skip the checks of arguments of distributions in this thread, which depend on values."""
    original = Distribution.__init__

    def create(self: Any, batch_shape: Any = (), event_shape: Any = (), validate_args: bool | None = None) -> None:
        on = getattr(TRACING, "on", False)
        original(self, torch.Size(batch_shape), torch.Size(event_shape), validate_args=False if on else validate_args)

    Distribution.__init__ = create  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distribution.__init__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Neither compile graphs to Python code before they are run nor record source lines, if PyTorch allows it.

    These take a third of the time of a trace.
    """
    config, option = getattr(torch.fx, "config", None), "do_not_emit_stack_traces"
    use_lazy_modules = getattr(getattr(torch.fx, "_lazy_graph_module", None), "_use_lazy_graph_module", None)
    previous = getattr(config, option, None)
    with contextlib.nullcontext() if use_lazy_modules is None else use_lazy_modules(True):
        if previous is not None:
            setattr(config, option, True)
        try:
            yield
        finally:
            if previous is not None:
                setattr(config, option, previous)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the graphs and warnings that an export writes to stderr; our own error contains what matters."""
    root, trace = logging.getLogger("torch"), logging.getLogger("torch.__trace")
    level, disabled = root.level, trace.disabled
    root.setLevel(logging.CRITICAL)
    trace.disabled = True  # otherwise every step of the trace is formatted for handlers of the root logger
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
