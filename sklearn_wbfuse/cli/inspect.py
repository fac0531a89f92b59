"""``wbfuse inspect``: show the content of a file or of a saved fusion."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from .. import discover, load
from ..exceptions import FusionError
from ..fusion.agreement import agreement_text
from ..fusion.storage import stored_agreement
from ..model_selection.table import n_parameters
from .checkpoints import Template, network_of, read_checkpoint
from .data import example_inputs
from .factories import build
from .messages import plain_errors
from .summary import group_summary, read_description

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the neuron groups of a network, or the content of a saved fusion."""
    with plain_errors():
        text = _describe_folder(arguments) if arguments.path.is_dir() else _describe_file(arguments)
    print(text)
    return 0


def _describe_folder(arguments: argparse.Namespace) -> str:
    if arguments.input_shape is not None:
        raise FusionError("--input-shape is only for networks in files; a saved fusion has its example inputs. Leave it out.")
    text = _describe_fusion(arguments.path)
    if arguments.model is None:
        return text
    fusion = load(arguments.path, model=build(arguments.model))
    fusion = getattr(fusion, "fusion_", fusion)
    return f"{text}\n\n{_count_parameters(fusion.fused_model_)}, neuron groups:\n\n{fusion.graph_}"


def _describe_file(arguments: argparse.Namespace) -> str:
    if not arguments.path.exists():
        raise FusionError(f"There is no file {arguments.path}.")
    inputs = example_inputs(arguments.input_shape)
    template = None if arguments.model is None else Template(build(arguments.model), inputs)
    checkpoint = read_checkpoint(arguments.path, arguments.trust_pickle, arguments.ignore_extra)
    network = network_of(checkpoint, template)
    return f"{checkpoint}\n{_count_parameters(network)}, neuron groups:\n\n{discover(network, inputs)}"


def _count_parameters(network: nn.Module) -> str:
    return f"{type(network).__name__} with {n_parameters(network):,} parameters"


def _describe_fusion(folder: Path) -> str:
    fusion = read_description(folder)
    parents = "\n".join(f"parent {i}: fingerprint {p['fingerprint']}" for i, p in enumerate(fusion["parents"]))
    agreement = agreement_text(*stored_agreement(fusion))
    return (
        f"{folder}: {len(fusion['parents'])} networks fused, {fusion['values']:,} values; saved by sklearn_wbfuse "
        f"{fusion['library_version']} with PyTorch {fusion['torch_version']}\n{fusion['fusion']}\n"
        f"energy {fusion['energy']:.6g} after {fusion['n_iter']} sweeps\n\n{parents}\n\n{agreement}\n\n{group_summary(fusion)}"
    )
