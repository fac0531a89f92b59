"""Tables in text, and that of a comparison: names of its rows, numbers of parameters."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

__all__ = ["aligned", "counted", "n_parameters", "table_text"]

LONGEST_NOTE = 60  # characters; longer ones are printed below the table


def n_parameters(model: nn.Module) -> int:
    """How many numbers the parameters of a network hold; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def counted(things: Any, name: str) -> str:
    """How many things, with their name in the plural where it belongs."""
    return f"{len(things):,} {name}{'s' if len(things) != 1 else ''}"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows of cells, the first of them the heads, in columns; those named in `left` flush left, the others right.

    Examples
    --------
    >>> print(aligned([("name", "size"), ("a", "1,000")]))
    name   size
    ----  -----
    a     1,000
    """
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(n) if i in left else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, lengths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * n for n in lengths))
    return "\n".join(line.rstrip() for line in lines)


def table_text(table: list[dict[str, Any]], metric: str) -> str:
    """The table in aligned columns, long notes below it."""
    digits = ".2%" if metric == "accuracy" else ".4f"
    formats = {"score": digits, "to_parents": "+z" + digits, "parameters": ",d", "seconds": ".2f"}
    cells = [["network", metric, "to parents", "parameters", "seconds", "note"]]
    below: dict[str, list[str]] = {}
    for row in table:
        numbers = ["" if row[key] is None else format(row[key], how) for key, how in formats.items()]
        numbers[1] = numbers[1].rstrip("%")  # a difference is in percentage points
        note = row["note"]
        if len(note) > LONGEST_NOTE:
            below.setdefault(note, []).append(row["name"])
            note = "see below"
        cells.append([row["name"], *numbers, note])
    lines = aligned(cells, (0, len(cells[0]) - 1)).splitlines()
    for note, names in below.items():
        lines += ["", textwrap.fill(f"{', '.join(names)}: {note}", max(len(lines[1]), 80), subsequent_indent="    ")]
    return "\n".join(lines)
