"""``wbfuse inspect``: what a file or a saved fusion holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from .. import discover, load
from ..exceptions import FusionError
from ..fusion.agreement import agreement_text
from ..fusion.storage import stored_agreement
from ..model_selection.table import n_parameters
from .checkpoints import Template, network_of, read
from .data import example_inputs
from .factories import build
from .summary import described, summary
from .text import plain_errors

__all__ = ["run"]


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
    agreement = agreement_text(*stored_agreement(content))
    return (
        f"{folder}: {len(content['parents'])} networks fused, {content['values']:,} values; saved by sklearn_wbfuse "
        f"{content['library_version']} with PyTorch {content['torch_version']}\n{content['fusion']}\n"
        f"energy {content['energy']:.6g} after {content['n_iter']} sweeps\n\n{parents}\n\n{agreement}\n\n{summary(content)}"
    )
