"""``wbfuse fuse``: fuse networks in files into one in a folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
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
from ..network.types import Inputs
from ..persistence import FILES
from .card import Result, write_card
from .checkpoints import Checkpoint, Template, network_of, read_checkpoint
from .data import check_dtypes, example_inputs, read_data
from .factories import build
from .messages import plain_errors, timed
from .output import check_output
from .summary import group_summary, read_description

__all__ = ["run"]

_ENERGIES = (
    "The energy of the fusion is measured with balanced scales of all neurons and before corrections; it includes activations "
    "if these are compared. That of the plain average is measured on the unchanged parents."
)


def run(arguments: argparse.Namespace) -> int:
    """Read networks, fuse them, save the result and print the table."""
    folder = arguments.output
    check_output(folder, arguments.overwrite)
    with plain_errors():
        checkpoints, result = _read_and_fuse(arguments)
        result.fusion.save(folder)
    description = read_description(folder)
    widths = group_summary(description)
    write_card(folder, result, checkpoints, description["fusion"], widths, arguments)
    # Nothing is printed before the save: a closed pipe, as after `| head`, must not cost the result.
    for position, checkpoint in enumerate(checkpoints):
        print(f"parent {position}: {checkpoint}")
    agreement = agreement_text(result.fusion.agreement_, result.fusion.agreement_reason_)
    files = f"The fused network: {folder / FILES[0]}\nHow to load it: {folder / 'README.md'}"
    print(f"\n{result.text}\n\n{agreement}\n\n{widths}\n\n{files}")
    return 0


def _read_and_fuse(arguments: argparse.Namespace) -> tuple[list[Checkpoint], Result]:
    data = None if arguments.data is None else read_data(arguments.data)
    inputs = example_inputs(arguments.input_shape)
    fits_use_data = data is not None and "X_fit" in data
    if inputs is None and data is not None:
        inputs = noise_like(FusionInput([], data["X"]).arrays)
    template = None if arguments.model is None else Template(build(arguments.model), inputs)
    options = arguments.trust_pickle, arguments.ignore_extra
    checkpoints = [timed(f"reading {p}", partial(read_checkpoint, p, *options))[0] for p in arguments.parents]
    network = checkpoints[0].network if template is None else template.network
    if data is not None and network is not None:
        check_dtypes(network, data)
    models = [network_of(checkpoint, template) for checkpoint in checkpoints]
    fusion = _estimator(arguments, None if fits_use_data and arguments.input_shape is None else inputs)
    return checkpoints, _without_data(models, fusion) if data is None else _with_data(models, fusion, data)


def _estimator(arguments: argparse.Namespace, inputs: Inputs | None) -> WassersteinFusion:
    return WassersteinFusion(
        arguments.widths,
        arguments.reg,
        arguments.alpha_h,
        weights=arguments.weights,
        schedule=arguments.schedule,
        merge="auto" if arguments.widths is None else "all",  # "auto" cannot fill targets wider than every parent
        cost=arguments.cost,
        correction=None if arguments.correction == "none" else arguments.correction,
        example_inputs=inputs,
        device=arguments.device,
        random_state=arguments.seed,
    )


def _with_data(models: list[nn.Module], fusion: Any, data: Mapping[str, Any]) -> Result:
    """Fit the fusion and score it next to the controls of `compare`."""
    rows, labels, rows_to_fit = data["X"], data["y"], data.get("X_fit")
    table, _ = timed("fusing", lambda: compare(models, rows, labels, [fusion], X_fit=rows_to_fit, verbose=False))
    row = next(r for r in table if r["name"] == label_of(fusion))
    if row["estimator"] is None:
        raise FusionError(row["note"])
    # `compare` names estimators by their parameters; the inputs are omitted, as they are noise or follow from --input-shape
    names = {label_of(e): label_of(clone(e).set_params(example_inputs=None)) for e in (fusion, unaligned(fusion))}
    for entry in table:
        entry["name"] = names.get(entry["name"], entry["name"])
    return Result(row["estimator"], table, table.title, str(table))


def _without_data(models: list[nn.Module], fusion: Any) -> Result:
    """Fit the plain average and the fusion, and compare their energies."""
    discover(nn.Linear(2, 2))  # PyTorch initialises itself, which is not to count in the seconds
    table = [{"name": f"parent {i}", "parameters": n_parameters(model)} for i, model in enumerate(models)]
    shared = {name: getattr(fusion, name) for name in ("weights", "example_inputs", "device", "random_state")}
    try:
        table.append(_fit("plain average", VanillaAveraging(**shared), models))
    except WidthError:
        table.append({"name": "plain average", "note": "needs equal widths"})
    table.append(_fit("fused", fusion, models))
    cells: list[tuple[str, ...]] = [("network", "parameters", "energy", "seconds")]
    for row in table:
        numbers = [
            format(row[k], f) if k in row else "" for k, f in (("parameters", ",d"), ("energy", ".4g"), ("seconds", ".2f"))
        ]
        cells.append((": ".join(str(row[k]) for k in ("name", "note") if k in row), *numbers))
    return Result(fusion, table, _ENERGIES, f"{aligned(cells)}\n\n{_ENERGIES}")


def _fit(name: str, fusion: Any, models: list[nn.Module]) -> dict[str, Any]:
    """Fit an estimator and return its row of the table."""
    _, seconds = timed(f"fitting: {name}", lambda: fusion.fit(models))
    return {"name": name, "parameters": n_parameters(fusion.fused_model_), "energy": fusion.energy_, "seconds": seconds}
