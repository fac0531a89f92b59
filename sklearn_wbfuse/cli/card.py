"""The README.md beside a fused network: what it was made of and how to load it."""

from __future__ import annotations

import argparse
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..fusion.agreement import agreement_text
from ..persistence import CARD_HEAD
from .checkpoints import Checkpoint
from .text import notes

__all__ = ["Result", "write_card"]


@dataclass
class Result:
    """A fitted fusion, the rows of its table, what these are, and the text of both."""

    fusion: Any
    table: list[dict[str, Any]]
    title: str
    text: str


def write_card(
    folder: Path, result: Result, checkpoints: Sequence[Checkpoint], label: str, widths: str, arguments: argparse.Namespace
) -> None:
    """Write the model card into the folder of a saved fusion; `label` is its repr, `widths` its groups as text."""
    fusion = result.fusion
    files = "\n".join(f"| {i} | `{c}` | `{c.sha256}` |" for i, c in enumerate(checkpoints))
    weights = fusion.weights if fusion.weights is not None else "equal"
    data = "" if arguments.data is None else f" Data: `{arguments.data}`."
    said = "\n".join(f"- {note}" for note in notes(arguments.caught)) or "None."
    text = f"""{CARD_HEAD}

`model.safetensors` holds one {type(fusion.fused_model_).__name__}, fused from {len(checkpoints)} by the Wasserstein barycenter of
their neurons ([arXiv:2210.06671](https://arxiv.org/abs/2210.06671)). Made by

```console
$ {shlex.join(["wbfuse", *arguments.argv])}
```

## How to load it

```python
{_snippet(folder, arguments)}
```

Paths count from the folder in which it was made, `{Path.cwd()}`.
`fusion.transform([model])` carries other networks into its neuron order.
`safetensors.torch.load_model(network, "model.safetensors")` fills a network of these widths without sklearn_wbfuse, strictly;
tied tensors are in the file once.

## Parents

| | file | sha256 |
|---|---|---|
{files}

## Widths

```text
{widths}
```

`{label}`: energy {fusion.energy_:.6g} after {fusion.n_iter_} sweeps; correction: {fusion.correction or "none"};
weights of the parents: {weights}.

## Agreement

```text
{agreement_text(fusion.agreement_, fusion.agreement_reason_)}
```

## Table

{result.title}{data}

{_table(result.table)}

## Notes

{said}

Versions: sklearn_wbfuse {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}.
"""
    (folder / "README.md").write_text(text, encoding="utf-8", errors="replace")  # names of files may be no text


def _snippet(folder: Path, arguments: argparse.Namespace) -> str:
    if arguments.model is None:
        template = f"torch.load({str(arguments.parents[0])!r}, weights_only=False)"
        first = ["import torch", "from sklearn_wbfuse import load", f"template = {template}  # runs the code in it"]
        call = "template"
    else:
        where, _, name = arguments.model.rpartition(":")
        if Path(where).suffix == ".py":
            first, call = _IMPORT.format(file=where, folder=str(Path(where).parent)).splitlines(), f"code.{name}()"
        else:
            first, call = ["from sklearn_wbfuse import load", f"from {where} import {name}"], f"{name}()"
    return "\n".join([*first, f"fusion = load({str(folder)!r}, model={call})", "network = fusion.fused_model_"])


# By its path, under a name of its own: a file may have any name, also one of the standard library.
_IMPORT = """\
import importlib.util
import sys
from sklearn_wbfuse import load
sys.path.append({folder!r})  # for what the file imports itself
spec = importlib.util.spec_from_file_location("network_code", {file!r})
code = sys.modules["network_code"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(code)"""


def _table(table: Sequence[dict[str, Any]]) -> str:
    """The printed table in Markdown."""
    every = ("name", "score", "agreement", "parameters", "energy", "seconds", "note")
    keys = [k for k in every if any(row.get(k) for row in table)]
    lines = [f"| {' | '.join(keys)} |", "|---" * len(keys) + "|"]
    for row in table:
        cells = ["" if row.get(k) is None else f"{row[k]:.4g}" if isinstance(row[k], float) else f"{row[k]}" for k in keys]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
