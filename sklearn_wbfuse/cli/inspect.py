"""``wbfuse inspect``: what a file or a saved fusion holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from .. import discover, load
from ..exceptions import FusionError
from ..model_selection.table import n_parameters
from .checkpoints import Template, network_of, read
from .data import example_inputs
from .factories import build
from .options import add_model_options
from .summary import described, summary
from .text import plain_errors

__all__ = ["add_command", "run"]

_EXAMPLE = """example:
  wbfuse inspect fused                              what a saved fusion says of itself
  wbfuse inspect fused --model train.py:Net         the same, and its neuron groups, found again and checked
  wbfuse inspect a.pt --model train.py:Net          the neuron groups of a network: the names that --widths takes
"""


def add_command(commands: Any) -> None:
    """Add the command to those of a parser."""
    parser = commands.add_parser(
        "inspect",
        help="show the neuron groups of a network, or what a saved fusion holds",
        description="Show the neuron groups of a network in a file; of a saved fusion its parents, widths and couplings,\n"
        "for which no code is needed.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="MODEL", help="a file as for wbfuse fuse, or the folder of a saved fusion")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what there is."""
    with plain_errors():
        text = _of_folder(arguments) if arguments.path.is_dir() else _of_file(arguments)
    print(text)
    return 0


def _of_folder(arguments: argparse.Namespace) -> str:
    if arguments.input_shape is not None:
        raise FusionError("--input-shape is for networks in files; a saved fusion holds its example inputs. Leave it out.")
    text = _of_fusion(arguments.path)
    if arguments.model is None:
        return text
    fusion = load(arguments.path, model=build(arguments.model))
    fusion = getattr(fusion, "fusion_", fusion)
    return f"{text}\n\n{_parameters(fusion.fused_model_)}, neuron groups:\n\n{fusion.graph_}"


def _of_file(arguments: argparse.Namespace) -> str:
    if not arguments.path.exists():
        raise FusionError(f"There is no file {arguments.path}.")
    inputs = example_inputs(arguments.input_shape)
    template = None if arguments.model is None else Template(build(arguments.model), inputs)
    checkpoint = read(arguments.path, arguments.trust_pickle, arguments.ignore_extra)
    network = network_of(checkpoint, template)
    return f"{checkpoint}\n{_parameters(network)}, neuron groups:\n\n{discover(network, inputs)}"


def _parameters(network: nn.Module) -> str:
    return f"{type(network).__name__} with {n_parameters(network):,} parameters"


def _of_fusion(folder: Path) -> str:
    content = described(folder)
    parents = "\n".join(f"parent {i}: fingerprint {p['fingerprint']}" for i, p in enumerate(content["parents"]))
    return (
        f"{folder}: {len(content['parents'])} networks fused, {content['values']:,} values; saved by sklearn_wbfuse "
        f"{content['library_version']} with PyTorch {content['torch_version']}\n{content['fusion']}\n"
        f"energy {content['energy']:.6g} after {content['n_iter']} sweeps\n\n{parents}\n\n{summary(content)}"
    )
