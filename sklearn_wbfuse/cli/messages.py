"""Messages of the commands: progress on terminals, warnings, and errors of one line."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sklearn.utils._param_validation import InvalidParameterError

from ..exceptions import FusionError

__all__ = ["plain_errors", "timed", "warning_texts"]

_Result = TypeVar("_Result")


def timed(message: str, action: Callable[[], _Result]) -> tuple[_Result, float]:
    """Return the result of an action and its duration in seconds; on a terminal, print a message before it starts."""
    if sys.stderr.isatty():
        print(f"{message} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def warning_texts(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return the distinct texts of warnings."""
    return list(dict.fromkeys(str(w.message) for w in caught))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Convert the errors of PyTorch and NumPy about the user's networks and numbers to a FusionError of one line."""
    try:
        yield
    except (FusionError, InvalidParameterError, NotImplementedError):
        raise  # these messages already name a remedy
    except MemoryError as error:
        raise FusionError("There is not enough memory for networks or inputs of this size.") from error
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        lines = str(error).strip().splitlines() or ["no message"]
        if "allocate memory" in lines[0]:  # PyTorch has no error class for this
            raise FusionError("There is not enough memory for networks or inputs of this size.") from error
        raise FusionError(f"{type(error).__name__}: {lines[0]}") from error
