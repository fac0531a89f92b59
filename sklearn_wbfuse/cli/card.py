"""The model card, a README.md next to a fused network: its origin and how to load it."""

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
from .messages import warning_texts

__all__ = ["Result", "write_card"]


@dataclass
class Result:
    """A fitted fusion, the rows of its table, the title of the table, and both as text."""

    fusion: Any
    table: list[dict[str, Any]]
    title: str
    text: str


def write_card(
    folder: Path, result: Result, checkpoints: Sequence[Checkpoint], label: str, widths: str, arguments: argparse.Namespace
) -> None:
    """Write the model card to the folder of a saved fusion; `label` describes its parameters, `widths` its neuron groups."""
    fusion = result.fusion
    files = "\n".join(f"| {i} | `{c}` | `{c.sha256}` |" for i, c in enumerate(checkpoints))
    weights = fusion.weights if fusion.weights is not None else "equal"
    data = "" if arguments.data is None else f" Data: `{arguments.data}`."
    notes = "\n".join(f"- {note}" for note in warning_texts(arguments.caught)) or "None."
    text = f"""{CARD_HEAD}

`model.safetensors` contains one {type(fusion.fused_model_).__name__}, fused from {len(checkpoints)} by the Wasserstein
barycenter of their neurons ([arXiv:2210.06671](https://arxiv.org/abs/2210.06671)). Created by

```console
$ {shlex.join(["wbfuse", *arguments.argv])}
```

## How to load it

```python
{_snippet(folder, arguments)}
```

Paths are relative to the folder in which the command was run, `{Path.cwd()}`.
`fusion.transform([model])` maps other networks to the neuron order of the fused one.
Without sklearn_wbfuse, `safetensors.torch.load_model(network, "model.safetensors")` loads the file strictly into a network of
these widths; the file contains tied tensors once.

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

{notes}

Versions: sklearn_wbfuse {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}.
"""
    (folder / "README.md").write_text(text, encoding="utf-8", errors="replace")  # file names may not be valid text


def _snippet(folder: Path, arguments: argparse.Namespace) -> str:
    """Return Python code that loads the fused network."""
    if arguments.model is None:
        template = f"torch.load({str(arguments.parents[0])!r}, weights_only=False)"
        imports = ["import torch", "from sklearn_wbfuse import load", f"template = {template}  # runs the code in the file"]
        call = "template"
    else:
        source, _, name = arguments.model.rpartition(":")
        if Path(source).suffix == ".py":
            imports, call = _IMPORT.format(file=source, folder=str(Path(source).parent)).splitlines(), f"code.{name}()"
        else:
            imports, call = ["from sklearn_wbfuse import load", f"from {source} import {name}"], f"{name}()"
    return "\n".join([*imports, f"fusion = load({str(folder)!r}, model={call})", "network = fusion.fused_model_"])


# Imported by its path under a fixed module name, since the file may be named like a module of the standard library.
_IMPORT = """\
import importlib.util
import sys
from sklearn_wbfuse import load
sys.path.append({folder!r})  # for the imports of the file
spec = importlib.util.spec_from_file_location("network_code", {file!r})
code = sys.modules["network_code"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(code)"""


def _table(table: Sequence[dict[str, Any]]) -> str:
    """Format the printed table as Markdown, without empty columns."""
    columns = ("name", "score", "agreement", "parameters", "energy", "seconds", "note")
    keys = [k for k in columns if any(row.get(k) for row in table)]
    lines = [f"| {' | '.join(keys)} |", "|---" * len(keys) + "|"]
    for row in table:
        cells = ["" if row.get(k) is None else f"{row[k]:.4g}" if isinstance(row[k], float) else f"{row[k]}" for k in keys]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
