"""What commands print: aligned tables, and progress for those who watch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["aligned", "timed"]


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of cells, the first of them the heads, in columns; so many of these flush left, the others right.

    Examples
    --------
    >>> print(aligned([("name", "size"), ("a", "1,000")], left=1))
    name   size
    ----  -----
    a     1,000
    """
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(n) if i < left else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, lengths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * n for n in lengths))
    return "\n".join(line.rstrip() for line in lines)


def timed(what: str, action: Callable[[], Any]) -> tuple[Any, float]:
    """The result of an action and its seconds; says what is going on if somebody is watching."""
    if sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start
