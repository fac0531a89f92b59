"""Saved networks: their state dicts, and their neuron groups, which are discovered again on a template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..discovery import Architecture, cast_inputs, device_of, plain_copy, validate_models, write_back
from ..discovery.parametrized import recompute
from ..discovery.spec_changes import drop_symmetry
from ..exceptions import (
    ArchitectureMismatchError,
    DiscoveryError,
    FusionError,
    InvalidModelError,
    PersistenceError,
    SelfCheckError,
)
from ..network.spec import NetworkSpec
from ..network.types import Inputs, State

__all__ = [
    "checked_template",
    "complete_ties",
    "example_outputs",
    "fill",
    "group_table",
    "resized_architectures",
    "restored_network",
    "stored_state",
]

_COMPARED = 1000  # values of each output that are stored for comparison


def stored_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict on the CPU with each tensor once, and for each further name of a tensor its first name.

    Raises
    ------
    PersistenceError
        If an entry of the state dict is not a tensor.
    """
    first_names: dict[int, str] = {}
    state, ties = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise PersistenceError(
                f"All entries of the state dict of {type(model).__name__} must be tensors. Got {name!r}, a "
                f"{type(tensor).__name__}. Remove its method get_extra_state."
            )
        if id(tensor) in first_names:
            ties[name] = first_names[id(tensor)]
            continue
        first_names[id(tensor)] = name
        state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state, ties


def complete_ties(state: State, model: nn.Module) -> dict[str, Tensor]:
    """Add to a state dict the missing names of tensors that are tied in a model."""
    tied_names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied_names.setdefault(id(tensor), []).append(name)
    full = dict(state)
    for names in tied_names.values():
        stored_name = next((n for n in names if n in state), None)
        if stored_name is not None:
            full |= {n: state[stored_name] for n in names if n not in state}
    return full


def fill(model: nn.Module, state: State) -> None:
    """Load a state dict into a network, which takes its dtypes; the state dict may contain tied tensors only once.

    Raises
    ------
    ArchitectureMismatchError
        If tensors or shapes differ, or different values are stored for tied tensors of the network.
    """
    full = complete_ties(state, model)
    _check_tensors(model, full)
    floating = {t.dtype for t in state.values() if t.is_floating_point()}
    if len(floating) == 1:
        model.to(floating.pop())  # including buffers that are not in the state dict
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(full[name].dtype)
    model.load_state_dict(full)
    _check_loaded(model, full)
    recompute(model)


def _check_loaded(model: nn.Module, state: State) -> None:
    """Check that a network contains all loaded values: of two tensors that share memory, only the later one remains."""
    loaded = model.state_dict()
    for name, tensor in loaded.items():
        stored = state[name].to(tensor.device)
        if tensor.dtype == stored.dtype and torch.equal(
            *(t.nan_to_num() if t.is_floating_point() else t for t in (tensor, stored))
        ):
            continue
        memory = tensor.untyped_storage().data_ptr()
        tied_name = next((n for n, t in loaded.items() if n != name and t.untyped_storage().data_ptr() == memory), None)
        reason = "" if tied_name is None else f", because it is tied to {tied_name!r} and different values are stored for the two"
        raise ArchitectureMismatchError(
            f"The {type(model).__name__} cannot take the stored {name!r}{reason}. Give a network in which they are two "
            "parameters, or store equal tensors."
        )


def group_table(spec: NetworkSpec) -> dict[str, dict[str, Any]]:
    """Return the properties of each neuron group that a template must share: size, symmetries and block group."""
    return {
        name: {"size": group.size, "scalable": group.scalable, "signable": group.signable, "within": group.block_group}
        for name, group in spec.groups.items()
    }


def checked_template(model: Any) -> nn.Module:
    """Return the template without wrappers.

    Raises
    ------
    InvalidModelError
        If it is missing or not a module.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InvalidModelError(
            f"The template must be a network. Got the class {model.__name__}. Give an instance, model={model.__name__}(...)."
        )
    if not isinstance(model, nn.Module):
        raise InvalidModelError(
            "load needs a template, a torch.nn.Module of the saved architecture of any widths. Got "
            f"{'none' if model is None else type(model).__name__}. Call load(folder, model=Net(...))."
        )
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        raise InvalidModelError("The template must have values. Got a network on the meta device. Build it on the CPU.")
    try:
        return validate_models([model])[0]
    except FusionError as error:
        raise type(error)(f"The template cannot be used: {error}") from error


def resized_architectures(
    model: nn.Module, inputs: Inputs, tables: Sequence[Mapping[str, Mapping[str, Any]]]
) -> list[Architecture]:
    """Return the architecture of a template, resized to the widths of each table of `group_table`.

    Raises
    ------
    ArchitectureMismatchError
        If the template does not accept the inputs, or has other neuron groups.
    """
    kind = type(model).__name__
    try:
        architecture = Architecture.of(model, tuple(inputs), warn=False)
    except (DiscoveryError, SelfCheckError) as error:
        raise ArchitectureMismatchError(
            f"The template must have the saved architecture. Got a {kind}, whose neuron groups cannot be discovered with the "
            f"stored example inputs: {error} (A network with declared states needs a template of the saved widths.)"
        ) from error
    _check_groups(architecture.spec, tables[0], kind)
    return [_with_table(architecture, table) for table in tables]


def _check_groups(spec: NetworkSpec, table: Mapping[str, Mapping[str, Any]], kind: str) -> None:
    only_saved, only_template = [n for n in table if n not in spec.groups], [n for n in spec.groups if n not in table]
    if only_saved or only_template:
        raise ArchitectureMismatchError(
            f"The template must have the neuron groups of the saved network. Got a {kind}: only the saved network has "
            f"{only_saved[:5]}, only the template has {only_template[:5]}. Give a network of the same architecture; its widths "
            "may differ, its depth may not."
        )
    for name, properties in group_table(spec).items():
        saved = table[name]
        lacks_symmetry = any(saved[s] and not properties[s] for s in ("scalable", "signable"))
        if lacks_symmetry or properties["within"] != saved["within"]:
            raise ArchitectureMismatchError(
                f"Group {name!r} of the template must have the properties of the saved group, {saved}. Got {properties} in a "
                f"{kind}: an activation or a norm between its layers differs. Give a network of the same architecture."
            )


def _with_table(architecture: Architecture, table: Mapping[str, Mapping[str, Any]]) -> Architecture:
    """Return an architecture with the widths of a table, and without the scales and signs that its groups lack."""
    resized = architecture.resized({name: row["size"] for name, row in table.items()})
    spec = drop_symmetry(resized.spec, "scales", {n for n, row in table.items() if not row["scalable"]})
    spec = drop_symmetry(spec, "signs", {n for n, row in table.items() if not row["signable"]})
    return dataclasses.replace(resized, spec=spec)


def restored_network(
    model: nn.Module, architecture: Architecture, state: State, inputs: Inputs, outputs: Sequence[Tensor] | None
) -> nn.Module:
    """Return a copy of the template in eval mode, with the widths of an architecture and the values and dtypes of a state dict.

    Parameters
    ----------
    model : Module
        The template; the result is on its device.
    architecture : Architecture
        From `resized_architectures`.
    state : dict of str to Tensor
        From `stored_state`.
    inputs : tuple
    outputs : list of Tensor or None
        The expected outputs for these inputs, from `example_outputs`.

    Raises
    ------
    ArchitectureMismatchError
        If names, shapes or the computed outputs differ.
    """
    network = write_back(model, {}, sized=architecture.plain).to("cpu")
    fill(network, state)
    computed = None if outputs is None else example_outputs(network, inputs)
    if outputs is not None and computed is not None:
        _check_outputs(computed, outputs, type(model).__name__)
    return network.to(device_of(model))


def _check_tensors(model: nn.Module, state: State) -> None:
    """Check that a state dict has the names and shapes of a network."""
    expected, kind = model.state_dict(), type(model).__name__
    only_stored, only_network = [n for n in state if n not in expected], [n for n in expected if n not in state]
    if only_stored or only_network:
        raise ArchitectureMismatchError(
            f"The stored tensors must have the names of those of the {kind}. Got names that are only stored, {only_stored[:5]}, "
            f"and names that only the network has, {only_network[:5]}. Give a network of the same architecture."
        )
    shapes = [(n, tuple(t.shape), tuple(expected[n].shape)) for n, t in state.items()]
    wrong = [f"{name!r} {stored} instead of {shape}" for name, stored, shape in shapes if stored != shape]
    if wrong:
        raise ArchitectureMismatchError(
            f"The stored tensors must have the shapes of those of the {kind}, except for neurons that can be resized. Got "
            f"{', '.join(wrong[:5])}. Give a network of the same architecture, inputs and outputs."
        )


@torch.no_grad()
def example_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor] | None:
    """Return the first values of each output of a network for its example inputs on the CPU; None if it does not run there."""
    network = plain_copy(model, plain=False).to("cpu")
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = network(*cast_inputs(inputs, network))
    except RuntimeError:  # half precision without a kernel
        return None
    return [leaf.flatten()[:_COMPARED] for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _check_outputs(computed: Sequence[Tensor], saved: Sequence[Tensor], kind: str) -> None:
    """Check that the outputs of a restored network equal the saved ones."""
    for position, (output, saved_output) in enumerate(zip(computed, saved, strict=False)):
        tol = 3e-2 if output.dtype in (torch.float16, torch.bfloat16) else 1e-4
        a, b = output.double(), saved_output.double()
        scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
        if a.shape == b.shape and torch.allclose(a, b, rtol=tol, atol=tol * scale, equal_nan=True):
            continue
        raise ArchitectureMismatchError(
            f"The template must compute the saved outputs. Got a {kind} that computes other values for the stored example inputs "
            f"(output {position}): an activation, a constant such as eps, or a buffer that is not in its state dict differs. "
            "Build the template as the parents were built."
        )
    if len(computed) != len(saved):
        raise ArchitectureMismatchError(
            f"The template must return as many tensors as the saved network, {len(saved)}. Got {len(computed)} from a {kind}. "
            "Build the template as the parents were built."
        )
