"""A saved fusion in a few lines: widths, and what happened to the neurons of each parent."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils._pprint import _changed_params

from ..base import aligned
from ..exceptions import FusionError
from ..network.couplings import Coupling, Permutation
from ..persistence import decode, read_folder

__all__ = ["described", "summary"]

_SHOWN = 4  # parents that have a column


def described(folder: Path) -> dict[str, Any]:
    """What the description says of the innermost fusion: `fusion` is its repr, `parents` hold couplings, `values` are counted.

    Raises
    ------
    FusionError
        The save is of something else than a fusion.
    """
    content, state, tensors = read_folder(folder)
    body = content
    while "graphs" not in body.get("fitted", {}):
        inner = [v["$estimator"] for v in body.get("fitted", {}).values() if isinstance(v, dict) and "$estimator" in v]
        if not inner:
            raise FusionError(f"{folder} holds a {content['estimator']}, not a fusion; read it by sklearn_wbfuse.load.")
        body = inner[0]
    fitted, options = body["fitted"], {key: body[key] for key in ("estimator", "parameters")}
    return {
        **content,
        **fitted,
        "fusion": _label(decode({"$estimator": options}, tensors)),
        "parents": decode(fitted["parents"], tensors),
        "agreement": decode(fitted.get("agreement"), tensors),
        "values": sum(t.numel() for t in state.values()),
    }


def _label(estimator: Any) -> str:
    """An estimator with the parameters that are not at their defaults, long ones cut."""
    short = reprlib.Repr()
    short.maxother = short.maxstring = 30
    shown = [f"{k}={' '.join(short.repr(v).split())}" for k, v in _changed_params(estimator).items()]
    return f"{type(estimator).__name__}({', '.join(shown)})"


def summary(content: Mapping[str, Any]) -> str:
    """The groups, from `described`, as a table: widths, and per parent how its neurons were coupled."""
    sizes = {name: row["size"] for name, row in content["graphs"][0].items()}
    shown = content["parents"][:_SHOWN]
    rows = [("group", "width", *(f"parent {i}" for i in range(len(shown))))]
    for name, size in sizes.items():
        rows.append((name, f"{size}", *(_cell(parent, name) for parent in shown)))
    text = f"Neuron groups, and what became of each parent's neurons:\n\n{aligned(rows)}"
    more = len(content["parents"]) - len(shown)
    return text + (f"\n... and {more} more parents" if more else "")


def _cell(parent: Mapping[str, Any], name: str) -> str:
    coupling: Coupling = parent["couplings"][name]
    rows, columns = coupling.shape
    if not isinstance(coupling, Permutation):
        moved = f", {1 - np.trace(coupling.mass):.0%} of the mass moved" if rows == columns else ""
        return f"{columns} by a plan{moved}"
    moved_units = int(np.sum(coupling.index != np.arange(rows)))
    flipped = int(np.sum(coupling.sign < 0))
    words = [f"{moved_units} moved" if moved_units else "in place", *([f"{flipped} with signs"] if flipped else [])]
    return f"{columns}, {', '.join(words)}"
