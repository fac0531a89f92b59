"""``wbfuse fuse``: networks in files into one in a folder."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import VanillaAveraging, WassersteinFusion, compare, discover
from ..exceptions import FusionError, WidthError
from ..persistence import FILES, check_writable
from .card import write_card
from .checkpoints import Template, build, network_of, read
from .options import add_model_options, cost, device, fractions, seed, widths
from .summary import summary
from .text import aligned, timed

__all__ = ["add_command", "example_inputs", "run"]

_EXAMPLE = """example:
  Two networks that train.py saved by torch.save(model.state_dict(), "a.pt"), of its class Net:

    wbfuse fuse a.pt b.pt -o fused --model train.py:Net
    wbfuse fuse a.pt b.pt -o fused --model train.py:Net --data test.npz --correction regression

  The second prints accuracies beside those of the parents, their ensemble and their plain average; test.npz was written by
  numpy.savez("test.npz", X=images, y=labels). In Python: sklearn_wbfuse.load("fused", model=Net()).fused_model_
"""


def add_command(commands: Any) -> None:
    """Add the command to those of a parser."""
    parser = commands.add_parser(
        "fuse",
        help="fuse networks in files into one",
        description="Fuse trained networks of one architecture, of any widths, into one. Writes a folder with the fused\n"
        "network (model.safetensors), its couplings, and a README.md that says how to load it.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parents", nargs="+", type=Path, metavar="PARENT", help="a state dict (.safetensors, .pt, .pth) or the folder of a fusion"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--overwrite", action="store_true", help="write over an earlier result in that folder")
    add_model_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="arrays X and y to score on, labels being numbers of outputs; X_fit, without labels, for activations and "
        "corrections; X0, X1, ... for networks of several inputs",
    )
    group = parser.add_argument_group("fusion")
    group.add_argument(
        "--widths",
        type=widths,
        metavar="WIDTHS",
        help="of the result: 1.5 (a factor), sum, fc1=64,fc2=32 (by group) or 64,32 (all); those of the widest parent by default",
    )
    group.add_argument("--weights", type=fractions, metavar="0.7,0.3", help="proportions of the parents (default: equal)")
    group.add_argument(
        "--correction", choices=["none", "batchnorm", "repair", "regression"], default="none", help=_HELP["correction"]
    )
    group.add_argument("--cost", type=cost, default="weight", help=_HELP["cost"])
    group.add_argument("--schedule", choices=["joint", "layerwise"], default="joint", help="default: joint")
    group.add_argument("--reg", type=float, default=0.0, help="entropic regularisation (default: 0)")
    group.add_argument("--alpha-h", type=float, default=1.0, help="weight of recurrent tensors (default: 1)")
    group.add_argument("--device", type=device, help="where to compute, such as cuda (default: cpu)")
    group.add_argument("--seed", type=seed, default=0, help="default: 0")
    parser.set_defaults(run=run)


_ENERGIES = "Energies: of the fusion after all neurons were brought to balanced scales, of the plain average as they stand."

_HELP = {
    "correction": "what follows the alignment; deep networks need regression (default: none)",
    "cost": "compare weights, activations, or both: 0.5 (default: weight)",
}


def run(arguments: argparse.Namespace) -> int:
    """Read, fuse, print the table, save."""
    folder = arguments.output
    _check_output(folder, arguments.overwrite)
    data = None if arguments.data is None else _read_data(arguments.data)
    inputs = example_inputs(arguments.input_shape)
    if inputs is None and data is not None:
        inputs = tuple(torch.as_tensor(a[:2]) for a in _tuple(data["X"]))
    template = None if arguments.model is None else Template(build(arguments.model), inputs)
    checkpoints = [timed(f"reading {p}", partial(read, p, arguments.trust_pickle))[0] for p in arguments.parents]
    models = [network_of(checkpoint, template) for checkpoint in checkpoints]
    for position, checkpoint in enumerate(checkpoints):
        print(f"parent {position}: {checkpoint}")
    print()
    fusion, table = _fuse(models, _estimator(arguments), data)
    fusion.save(folder)
    write_card(folder, fusion, checkpoints, table, arguments)
    print(f"\n{summary(folder)}\n\nThe fused network: {folder / FILES[0]}\nHow to load it: {folder / 'README.md'}")
    return 0


def example_inputs(shapes: Sequence[Sequence[int]] | None) -> tuple[Tensor, ...] | None:
    """Two rows of noise for each shape."""
    generator = torch.Generator().manual_seed(0)
    return None if shapes is None else tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)


def _estimator(arguments: argparse.Namespace) -> WassersteinFusion:
    return WassersteinFusion(
        arguments.widths,
        arguments.reg,
        arguments.alpha_h,
        weights=arguments.weights,
        schedule=arguments.schedule,
        merge="auto" if arguments.widths is None else "all",  # "auto" has nothing for targets wider than every parent
        cost=arguments.cost,
        correction=None if arguments.correction == "none" else arguments.correction,
        example_inputs=example_inputs(arguments.input_shape),
        device=arguments.device,
        random_state=arguments.seed,
    )


def _fuse(models: list[nn.Module], fusion: Any, data: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The fitted fusion and the rows of the table, which is printed."""
    if data is not None:
        table, _ = timed("fusing", lambda: compare(models, data["X"], data["y"], [fusion], X_fit=data.get("X_fit")))
        row = next(r for r in table if r["name"].startswith("WassersteinFusion"))
        if row["estimator"] is None:
            raise FusionError(row["note"])
        return row["estimator"], table
    discover(nn.Linear(2, 2))  # PyTorch loads parts of itself: not part of the seconds
    table = [{"name": f"parent {i}", "parameters": _size(model)} for i, model in enumerate(models)]
    shared = {name: getattr(fusion, name) for name in ("weights", "example_inputs", "device", "random_state")}
    try:
        table.append(_fitted("plain average", VanillaAveraging(**shared), models))
    except WidthError:
        table.append({"name": "plain average", "note": "needs equal widths"})
    table.append(_fitted("fused", fusion, models))
    cells: list[tuple[str, ...]] = [("network", "parameters", "energy", "seconds")]
    for row in table:
        numbers = [
            format(row[k], f) if k in row else "" for k, f in (("parameters", ",d"), ("energy", ".4g"), ("seconds", ".2f"))
        ]
        cells.append((": ".join(str(row[k]) for k in ("name", "note") if k in row), *numbers))
    print(f"{aligned(cells, 1)}\n\n{_ENERGIES}")
    return fusion, table


def _fitted(name: str, fusion: Any, models: list[nn.Module]) -> dict[str, Any]:
    _, seconds = timed(f"fitting: {name}", lambda: fusion.fit(models))
    return {"name": name, "parameters": _size(fusion.fused_model_), "energy": fusion.energy_, "seconds": seconds}


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _check_output(folder: Path, overwrite: bool) -> None:
    check_writable(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FusionError(f"{folder} holds an earlier result; add --overwrite to write over it, or give another folder.")


def _tuple(X: Any) -> tuple[Any, ...]:
    return X if isinstance(X, tuple) else (X,)


def _read_data(path: Path) -> dict[str, Any]:
    """Rows `X`, or a tuple of X0, X1, ..., likewise `X_fit`, and `y`.

    Raises
    ------
    FusionError
        No npz file, without X or y, or with pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise FusionError(
            f"--data {path} is no npz file of plain arrays, without pickled objects; write one: numpy.savez(path, X=..., y=...)."
        ) from error
    found: dict[str, Any] = {"y": arrays.get("y")}
    for name in ("X", "X_fit"):
        several = [arrays[f"{name}{i}"] for i in range(len(arrays)) if f"{name}{i}" in arrays]
        found[name] = arrays.get(name, tuple(several) if several else None)
    missing = [name for name in ("X", "y") if found[name] is None]
    if missing:
        raise FusionError(f"--data {path} holds {list(arrays)}, but no {' and no '.join(missing)}.")
    rows = {name: [len(a) if a.ndim else 0 for a in _tuple(found[name])] for name in found if found[name] is not None}
    if len({*rows["X"], *rows["y"]}) > 1 or len(set(rows.get("X_fit", []))) > 1 or not all(map(all, rows.values())):
        raise FusionError(
            f"--data {path} holds arrays of these numbers of rows: {rows}; X and y need equally many, at least one."
        )
    return {name: found[name] for name in rows}
