"""From a module to a flat, functional graph of operations."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import os
import threading
import traceback
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.utils import rnn

from ..exceptions import DiscoveryError
from ..layers import rule_for
from .declared import declared_forwards
from .inputs import shapes_of

__all__ = ["export"]

_LOCK = threading.Lock()  # torch.export is not re-entrant


def export(model: nn.Module, inputs: Sequence[Any]) -> torch.export.ExportedProgram:
    """Trace a plain eval-mode model into a functional graph of ATen operations.

    Raises
    ------
    DiscoveryError
        If the model does not run on the inputs or can't be exported.
    """
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        raise DiscoveryError(
            f"{type(model).__name__} does not run on example inputs of shapes {shapes_of(tuple(inputs))}: "
            f"{_first_line(error)}{_line_of(error)}. Give inputs that it takes: example_inputs=(tensor, ...)."
        ) from error
    try:
        with _LOCK, _quiet(), torch.random.fork_rng(devices=[]), declared_forwards(model), _padded():
            program = torch.export.export(model, tuple(inputs), strict=False)
            return program if _is_functional(program) else program.run_decompositions({})
    except Exception as error:
        if "not a known type" in str(error):
            raise DiscoveryError(
                f"{type(model).__name__} returns something else than tensors in tuples, lists and dicts: "
                f"{_first_line(error).partition(' If this')[0]} Switch it off (a cache: config.use_cache = False), or register "
                "its type with torch.utils._pytree."
            ) from error
        raise DiscoveryError(
            f"{type(model).__name__} can't be traced by torch.export: {_first_line(error)}. Branches that depend on values must "
            "be taken out of forward, or the module that holds them declared (sklearn_wbfuse.layers.declare)."
        ) from error


def _is_functional(program: torch.export.ExportedProgram) -> bool:
    """Whether no operation changes its operands and all have rules, so that the slow pass over the graph can be spared."""
    targets = {n.target for n in program.graph.nodes if n.op == "call_function"} - {operator.getitem}
    schemas = [getattr(target, "_schema", None) for target in targets]
    return all(s is not None and not s.is_mutable and rule_for(s.name) is not None for s in schemas)


_tracing = threading.local()
_PACKING = {
    f.__name__: types.FunctionType(f.__code__, f.__globals__, f.__name__)
    for f in (rnn.pack_padded_sequence, rnn.pad_packed_sequence)
}


@contextlib.contextmanager
def _padded() -> Iterator[None]:
    """Packing can't be traced, and does nothing to units: within the context sequences stay padded, in this thread.

    The bodies of torch's functions are replaced, since networks import them under names of their own; in other threads they
    do what they did.
    """

    def pack_padded_sequence(input, lengths, batch_first=False, enforce_sorted=True):
        from sklearn_wbfuse.graph.export import _PACKING, _tracing

        if not getattr(_tracing, "on", False):
            return _PACKING["pack_padded_sequence"](input, lengths, batch_first, enforce_sorted)
        return input

    def pad_packed_sequence(sequence, batch_first=False, padding_value=0.0, total_length=None):
        from sklearn_wbfuse.graph.export import _PACKING, _tracing

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
    _tracing.on = True
    transformer._detect_is_causal_mask = _is_said_to_be_causal
    for original, padded in zip(originals, (pack_padded_sequence, pad_packed_sequence), strict=True):
        original.__code__ = padded.__code__
    try:
        yield
    finally:
        for original, body in zip(originals, bodies, strict=True):
            original.__code__ = body
        transformer._detect_is_causal_mask = detect
        _tracing.on = False


def _is_said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """What nn.Transformer asks of a mask, a hint for speed, without a look at its values, which can't be traced."""
    return bool(is_causal)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _line_of(error: Exception) -> str:
    """The line of the network's own code that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.name == "forward" and f"{os.sep}torch{os.sep}" not in f.filename and f.line]
    return f" at '{own[-1].line}'" if own else ""


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
