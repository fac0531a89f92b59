"""The description of a saved fusion, and its summary: widths, and how the neurons of each parent were coupled."""

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

__all__ = ["group_summary", "read_description"]

_SHOWN = 4  # parents with a column


def read_description(folder: Path) -> dict[str, Any]:
    """Read the description of a save and, within a saved meta-estimator, of its fusion.

    Additional entries are `fusion`, the class and parameters of the fusion as text, and `values`, the number of saved values;
    `parents` and `agreement` are decoded.

    Raises
    ------
    FusionError
        If the saved estimator contains no fusion.
    """
    content, state, tensors = read_folder(folder)
    body = content
    while "graphs" not in body.get("fitted", {}):
        inner = [v["$estimator"] for v in body.get("fitted", {}).values() if isinstance(v, dict) and "$estimator" in v]
        if not inner:
            raise FusionError(f"{folder} must contain a fusion. Got a {content['estimator']}. Read it with sklearn_wbfuse.load.")
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
    """Format an estimator with the parameters that differ from their defaults, and shorten long values."""
    short = reprlib.Repr()
    short.maxother = short.maxstring = 30
    shown = [f"{k}={' '.join(short.repr(v).split())}" for k, v in _changed_params(estimator).items()]
    return f"{type(estimator).__name__}({', '.join(shown)})"


def group_summary(description: Mapping[str, Any]) -> str:
    """Format the neuron groups of a description as a table: widths, and how the neurons of each parent were coupled."""
    sizes = {name: row["size"] for name, row in description["graphs"][0].items()}
    shown = description["parents"][:_SHOWN]
    rows = [("group", "width", *(f"parent {i}" for i in range(len(shown))))]
    for name, size in sizes.items():
        rows.append((name, f"{size}", *(_cell(parent, name) for parent in shown)))
    text = f"Neuron groups, and how the neurons of each parent were coupled:\n\n{aligned(rows)}"
    omitted = len(description["parents"]) - len(shown)
    return text + (f"\n... and {omitted} more parents" if omitted else "")


def _cell(parent: Mapping[str, Any], name: str) -> str:
    """Describe the coupling of one group of a parent: its width, and the neurons that moved or changed their sign."""
    coupling: Coupling = parent["couplings"][name]
    rows, columns = coupling.shape
    if not isinstance(coupling, Permutation):
        moved = f", {1 - np.trace(coupling.mass):.0%} of the mass moved" if rows == columns else ""
        return f"{columns} by a plan{moved}"
    n_moved = int(np.sum(coupling.index != np.arange(rows)))
    n_negated = int(np.sum(coupling.sign < 0))
    words = [f"{n_moved} moved" if n_moved else "in place", *([f"{n_negated} negated"] if n_negated else [])]
    return f"{columns}, {', '.join(words)}"
