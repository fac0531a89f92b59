"""Progress of fits, by the package's logger."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["log", "tells_progress"]

log = logging.getLogger("sklearn_wbfuse")

_LOCK = threading.Lock()
_RUNNING: list[Callable[[], None]] = []
"""For each fit that tells its progress now, in any thread; the first of them holds what undoes the logger's settings."""


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """The logger lets progress through while fits last that tell it; then it is as it was before the first of them."""
    with _LOCK:
        _RUNNING.append(_let_through() if not _RUNNING else _RUNNING[-1])
    try:
        yield
    finally:
        with _LOCK:
            undo = _RUNNING.pop()
            if not _RUNNING:
                undo()


def _let_through() -> Callable[[], None]:
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


def tells_progress(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method `fit` of an estimator with a parameter `verbose`."""

    @functools.wraps(fit)
    def telling(self: Any, *arguments: Any, **options: Any) -> Any:
        with _shown() if self.verbose else contextlib.nullcontext():
            return fit(self, *arguments, **options)

    return telling
