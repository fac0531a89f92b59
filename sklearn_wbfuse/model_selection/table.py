"""The table of a comparison in text, and numbers of things."""

from __future__ import annotations

import textwrap
from typing import Any

from torch import nn

from ..base import aligned

__all__ = ["counted", "n_parameters", "table_text"]

LONGEST_NOTE = 60  # characters; longer ones are printed below the table


def n_parameters(model: nn.Module) -> int:
    """How many numbers the parameters of a network hold; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def counted(things: Any, name: str) -> str:
    """How many things, with their name in the plural where it belongs."""
    return f"{len(things):,} {name}{'s' if len(things) != 1 else ''}"


def table_text(table: list[dict[str, Any]], metric: str) -> str:
    """The table in aligned columns, long notes below it."""
    digits = ".2%" if metric == "accuracy" else ".4f"
    share = ".1%" if metric == "accuracy" else ".3f"
    formats = {"score": digits, "to_parents": "+z" + digits, "agreement": share, "parameters": ",d", "seconds": ".2f"}
    heads = {"score": metric, "to_parents": "to parents", "agreement": "agrees"}
    if all(row["agreement"] is None for row in table):
        del formats["agreement"]
    cells = [["network", *(heads.get(key, key) for key in formats), "note"]]
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
