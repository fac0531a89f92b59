"""Progress of fits in the package's log."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["log", "logs_progress"]

log = logging.getLogger("sklearn_wbfuse")

_LOCK = threading.Lock()
_RUNNING: list[Callable[[], None]] = []
"""One entry for each fit in any thread that logs its progress: the function that restores the logger's settings."""


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Show progress in the log while any fit with `verbose` runs, then restore the logger's settings."""
    with _LOCK:
        _RUNNING.append(_show() if not _RUNNING else _RUNNING[-1])
    try:
        yield
    finally:
        with _LOCK:
            undo = _RUNNING.pop()
            if not _RUNNING:
                undo()


def _show() -> Callable[[], None]:
    """Make the logger show progress; return a function that restores its settings."""
    level, handler = log.level, None if log.hasHandlers() else logging.StreamHandler()
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    if handler is not None:
        log.addHandler(handler)

    def undo() -> None:
        log.setLevel(level)
        if handler is not None:
            log.removeHandler(handler)

    return undo


def logs_progress(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the method `fit` of an estimator with a parameter `verbose`."""

    @functools.wraps(fit)
    def wrapper(self: Any, *arguments: Any, **options: Any) -> Any:
        with _shown() if self.verbose else contextlib.nullcontext():
            return fit(self, *arguments, **options)

    return wrapper
