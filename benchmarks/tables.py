"""Plain tables in fixed-width columns."""

from collections.abc import Sequence

import numpy as np


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column flush left, the others flush right."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in (header, ["-" * w for w in widths], *rows)
    ]
    print(f"\n{title}\n\n" + "\n".join(line.rstrip() for line in lines), flush=True)


def number(value: float, digits: int = 2) -> str:
    """A number, empty where there is none."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation (of a sample) of several values."""
    if len(values) < 2:
        return number(values[0], digits)
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
