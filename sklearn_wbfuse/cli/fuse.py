"""``wbfuse fuse``: networks in files into one in a folder."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from sklearn.base import clone
from torch import nn

from .. import VanillaAveraging, WassersteinFusion, compare, discover
from ..base import aligned, label_of
from ..data.fusion_input import FusionInput, noise_like
from ..exceptions import FusionError, WidthError
from ..fusion.agreement import agreement_text
from ..model_selection.comparison import unaligned
from ..model_selection.table import n_parameters
from ..persistence import FILES
from .card import Result, write_card
from .checkpoints import Checkpoint, Template, network_of, read
from .data import check_dtypes, example_inputs, read_data
from .factories import build
from .output import check_output
from .summary import described, summary
from .text import plain_errors, timed

__all__ = ["run"]

_ENERGIES = (
    "Energies: of the fusion after all neurons were brought to balanced scales and before corrections, with activations where "
    "these are compared; of the plain average as they stand."
)


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
    agreement = agreement_text(result.fusion.agreement_, result.fusion.agreement_reason_)
    files = f"The fused network: {folder / FILES[0]}\nHow to load it: {folder / 'README.md'}"
    print(f"\n{result.text}\n\n{agreement}\n\n{widths}\n\n{files}")
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
    rows, labels, rows_to_fit = data["X"], data["y"], data.get("X_fit")
    table, _ = timed("fusing", lambda: compare(models, rows, labels, [fusion], X_fit=rows_to_fit, verbose=False))
    row = next(r for r in table if r["name"] == label_of(fusion))
    if row["estimator"] is None:
        raise FusionError(row["note"])
    # compare names estimators by their parameters; of these the inputs are noise, or of the shapes that the user gave
    names = {label_of(e): label_of(clone(e).set_params(example_inputs=None)) for e in (fusion, unaligned(fusion))}
    for other in table:
        other["name"] = names.get(other["name"], other["name"])
    return Result(row["estimator"], table, table.title, str(table))


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
