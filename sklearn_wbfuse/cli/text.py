"""What commands print beside tables: progress for those who watch, and errors."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sklearn.utils._param_validation import InvalidParameterError

from ..exceptions import FusionError

__all__ = ["notes", "plain_errors", "timed"]


def timed(what: str, action: Callable[[], Any]) -> tuple[Any, float]:
    """The result of an action and its seconds; says what is going on if somebody is watching."""
    if sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def notes(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """What warnings say, once each."""
    return list(dict.fromkeys(str(w.message) for w in caught))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What PyTorch and NumPy raise about the user's networks and numbers, as a FusionError of one line."""
    try:
        yield
    except (FusionError, InvalidParameterError, NotImplementedError):
        raise  # they say what to do
    except MemoryError as error:
        raise FusionError("There is not enough memory for networks or inputs of this size.") from error
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        lines = str(error).strip().splitlines() or ["no message"]
        if "allocate memory" in lines[0]:  # PyTorch has no class for it
            raise FusionError("There is not enough memory for networks or inputs of this size.") from error
        raise FusionError(f"{type(error).__name__}: {lines[0]}") from error
