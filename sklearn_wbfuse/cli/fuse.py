"""``wbfuse fuse``: networks in files into one in a folder."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import VanillaAveraging, WassersteinFusion, compare, discover
from ..exceptions import FusionError, WidthError
from ..fusion.data import FusionInput, noise_like
from ..model_selection.table import aligned, n_parameters, table_text
from ..persistence import FILES
from .card import Result, write_card
from .checkpoints import Checkpoint, Template, network_of, read
from .data import check_dtypes, example_inputs, read_data
from .factories import build
from .options import add_model_options, cost, device, fractions, seed, widths
from .output import check_output
from .summary import described, summary
from .text import plain_errors, timed

__all__ = ["add_command", "run"]

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
    group.add_argument(
        "--weights",
        type=fractions,
        metavar="0.7,0.3",
        help="proportions of the parents (default: equal); if the first is negative, --weights=-0.5,1.5",
    )
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


# compare names estimators by their parameters; these are noise, or of the shapes that the user gave
_INPUTS_IN_NAME = re.compile(r"example_inputs=.*?, (?=device=|random_state=)")


def run(arguments: argparse.Namespace) -> int:
    """Read, fuse, save, print the table."""
    folder = arguments.output
    check_output(folder, arguments.overwrite)
    with plain_errors():
        checkpoints, result = _result(arguments)
        result.fusion.save(folder)
    content = described(folder)
    widths = summary(content)
    write_card(folder, result, checkpoints, content["fusion"], widths, arguments)
    # All that is printed comes after the save: a reader that went away, as head does, costs no result.
    for position, checkpoint in enumerate(checkpoints):
        print(f"parent {position}: {checkpoint}")
    print(f"\n{result.text}\n\n{widths}\n\nThe fused network: {folder / FILES[0]}\nHow to load it: {folder / 'README.md'}")
    return 0


def _result(arguments: argparse.Namespace) -> tuple[list[Checkpoint], Result]:
    data = None if arguments.data is None else read_data(arguments.data)
    inputs = example_inputs(arguments.input_shape)
    fits_see_data = data is not None and "X_fit" in data
    if inputs is None and data is not None:
        inputs = noise_like(FusionInput([], data["X"]).arrays)
    template = None if arguments.model is None else Template(build(arguments.model), inputs)
    options = arguments.trust_pickle, arguments.ignore_extra
    checkpoints = [timed(f"reading {p}", partial(read, p, *options))[0] for p in arguments.parents]
    network = checkpoints[0].network if template is None else template.network
    if data is not None and network is not None:
        check_dtypes(network, data)
    models = [network_of(checkpoint, template) for checkpoint in checkpoints]
    fusion = _estimator(arguments, None if fits_see_data and arguments.input_shape is None else inputs)
    return checkpoints, _without_data(models, fusion) if data is None else _with_data(models, fusion, data)


def _estimator(arguments: argparse.Namespace, inputs: Any) -> WassersteinFusion:
    return WassersteinFusion(
        arguments.widths,
        arguments.reg,
        arguments.alpha_h,
        weights=arguments.weights,
        schedule=arguments.schedule,
        merge="auto" if arguments.widths is None else "all",  # "auto" has nothing for targets wider than every parent
        cost=arguments.cost,
        correction=None if arguments.correction == "none" else arguments.correction,
        example_inputs=inputs,
        device=arguments.device,
        random_state=arguments.seed,
    )


def _with_data(models: list[nn.Module], fusion: Any, data: Any) -> Result:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        table, _ = timed("fusing", lambda: compare(models, data["X"], data["y"], [fusion], X_fit=data.get("X_fit")))
    row = next(r for r in table if r["name"].startswith("WassersteinFusion"))
    if row["estimator"] is None:
        raise FusionError(row["note"])
    for other in table:
        other["name"] = _INPUTS_IN_NAME.sub("", other["name"])
    title = next(line for line in reversed(printed.getvalue().splitlines()) if "The fits saw" in line)
    metric = "accuracy" if "; accuracy on" in title else "R2"
    return Result(row["estimator"], table, title, f"{title}\n\n{table_text(table, metric)}")


def _without_data(models: list[nn.Module], fusion: Any) -> Result:
    discover(nn.Linear(2, 2))  # PyTorch loads parts of itself: not part of the seconds
    table = [{"name": f"parent {i}", "parameters": n_parameters(model)} for i, model in enumerate(models)]
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
    return Result(fusion, table, _ENERGIES, f"{aligned(cells)}\n\n{_ENERGIES}")


def _fitted(name: str, fusion: Any, models: list[nn.Module]) -> dict[str, Any]:
    _, seconds = timed(f"fitting: {name}", lambda: fusion.fit(models))
    return {"name": name, "parameters": n_parameters(fusion.fused_model_), "energy": fusion.energy_, "seconds": seconds}
