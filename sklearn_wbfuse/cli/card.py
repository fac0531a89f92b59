"""The README.md beside a fused network: what it was made of and how to load it."""

from __future__ import annotations

import argparse
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .checkpoints import Checkpoint
from .summary import summary

__all__ = ["write_card"]


def write_card(
    folder: Path, fusion: Any, checkpoints: Sequence[Checkpoint], table: Sequence[dict[str, Any]], arguments: argparse.Namespace
) -> None:
    """Write the model card into the folder of a saved fusion."""
    files = "\n".join(f"| {i} | `{c}` | `{c.sha256}` |" for i, c in enumerate(checkpoints))
    weights = fusion.weights if fusion.weights is not None else "equal"
    (folder / "README.md").write_text(f"""# A fused network

`model.safetensors` holds one {type(fusion.fused_model_).__name__}, fused from {len(checkpoints)} by the Wasserstein barycenter of
their neurons ([arXiv:2210.06671](https://arxiv.org/abs/2210.06671)). Made by

```console
$ {shlex.join(["wbfuse", *arguments.argv])}
```

## How to load it

```python
{_snippet(folder, arguments)}
```

`fusion.transform([model])` carries other networks into its neuron order.
`safetensors.torch.load_file("model.safetensors")` reads the state dict alone.

## Parents

| | file | sha256 |
|---|---|---|
{files}

## Widths

```text
{summary(folder)}
```

Energy {fusion.energy_:.6g} after {fusion.n_iter_} sweeps; weights of the parents: {weights}.

## Table

{_table(table)}

Versions: sklearn_wbfuse {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}.
""")


def _snippet(folder: Path, arguments: argparse.Namespace) -> str:
    lines = ["from sklearn_wbfuse import load"]
    if arguments.model is None:
        lines[:0] = ["import torch"]
        template = f"torch.load({str(arguments.parents[0])!r}, weights_only=False)"
        lines += [f"template = {template}  # runs the code in it"]
        call = "template"
    else:
        where, _, name = arguments.model.rpartition(":")
        path = Path(where)
        if path.suffix == ".py":
            lines[:0] = ["import sys", f"sys.path.insert(0, {str(path.parent)!r})"]
            where = path.stem
        lines += [f"from {where} import {name}"]
        call = f"{name}()"
    return "\n".join([*lines, f"fusion = load({str(folder)!r}, model={call})", "network = fusion.fused_model_"])


def _table(table: Sequence[dict[str, Any]]) -> str:
    """The printed table in Markdown."""
    keys = [k for k in ("name", "score", "parameters", "energy", "seconds", "note") if any(row.get(k) for row in table)]
    lines = [f"| {' | '.join(keys)} |", "|---" * len(keys) + "|"]
    for row in table:
        cells = ["" if row.get(k) is None else f"{row[k]:.4g}" if isinstance(row[k], float) else f"{row[k]}" for k in keys]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
