"""The table of a comparison, as rows, as text, or as a data frame."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sized
from typing import Any

from torch import nn

from ..base import aligned

__all__ = ["Comparison", "counted", "n_parameters"]

LONGEST_NOTE = 60  # characters; longer notes are printed below the table


def n_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a network; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def counted(items: Sized, name: str) -> str:
    """Return the number of items with their name, in the plural if needed."""
    return f"{len(items):,} {name}{'s' if len(items) != 1 else ''}"


class Comparison(list[dict[str, Any]]):
    """The rows of a comparison, one dict each, with their metric and title.

    It is the list of its rows; ``print(comparison)`` shows the table.

    Attributes
    ----------
    metric : {"accuracy", "R2"}
        The metric of ``score``.
    title : str
        A description of the networks, the rows and the data of the fits.

    Examples
    --------
    >>> row = {"name": "parent 0", "score": 0.5, "to_parents": 0.0, "agreement": None}
    >>> comparison = Comparison([row | {"parameters": 10, "seconds": None, "note": ""}], "accuracy", "1 network.")
    >>> print(comparison)
    1 network.
    <BLANKLINE>
    network   accuracy  to parents  parameters  seconds  note
    --------  --------  ----------  ----------  -------  ----
    parent 0    50.00%       +0.00          10
    >>> comparison[0]["score"]
    0.5
    """

    def __init__(self, rows: Iterable[dict[str, Any]], metric: str, title: str):
        super().__init__(rows)
        self.metric, self.title = metric, title

    def __str__(self) -> str:
        return f"{self.title}\n\n{_table_text(self, self.metric)}"

    def __repr__(self) -> str:
        return f"Comparison({counted(self, 'row')}, {self.metric})"

    def to_frame(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd  # imported here: nothing else needs it
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas. Without it, list(comparison) has the rows.") from error
        return pd.DataFrame(list(self))


def _table_text(table: list[dict[str, Any]], metric: str) -> str:
    """Format the table in aligned columns, with long notes below it."""
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
