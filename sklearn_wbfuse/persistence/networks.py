"""A network between memory and disk: its state dict, and its neuron groups found again on a template."""

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

__all__ = [
    "checked_template",
    "completed",
    "example_outputs",
    "fill",
    "group_table",
    "resized_to",
    "restored_network",
    "stored_state",
]

_SHOWN = 1000  # values of each output that are kept for comparison


def stored_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict on the CPU with each tensor once, and for every further name of a tensor the first.

    Raises
    ------
    PersistenceError
        If the state dict holds something that is no tensor.
    """
    first: dict[int, str] = {}
    state, ties = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise PersistenceError(
                f"The state dict of {type(model).__name__} holds {name!r}, a {type(tensor).__name__}, which safetensors can't "
                "hold; leave out get_extra_state."
            )
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state, ties


def completed(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict with all names of the tensors that a model has tied and that were stored once."""
    same: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        same.setdefault(id(tensor), []).append(name)
    full = dict(state)
    for names in same.values():
        held = next((n for n in names if n in state), None)
        if held is not None:
            full |= {n: state[held] for n in names if n not in state}
    return full


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict into a network and take over its dtypes; tied tensors may be in it once.

    Raises
    ------
    ArchitectureMismatchError
        Naming tensors or shapes that differ, or two tensors that are stored for one of the network.
    """
    full = completed(state, model)
    _check_tensors(model, full)
    floating = {t.dtype for t in state.values() if t.is_floating_point()}
    if len(floating) == 1:
        model.to(floating.pop())  # with buffers that are not in the state dict
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(full[name].dtype)
    model.load_state_dict(full)
    _check_held(model, full)
    recompute(model)


def _check_held(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise unless a network holds all that was loaded: of two tensors for one memory it holds the later one."""
    own = model.state_dict()
    for name, tensor in own.items():
        given = state[name].to(tensor.device)
        if tensor.dtype == given.dtype and torch.equal(
            *(t.nan_to_num() if t.is_floating_point() else t for t in (tensor, given))
        ):
            continue
        memory = tensor.untyped_storage().data_ptr()
        tied = next((n for n, t in own.items() if n != name and t.untyped_storage().data_ptr() == memory), None)
        why = "" if tied is None else f", for it is one tensor with {tied!r} (tied), and two different ones are stored"
        raise ArchitectureMismatchError(
            f"The {type(model).__name__} can't hold the stored {name!r}{why}. Give a network in which they are two parameters, "
            "or store equal tensors."
        )


def group_table(spec: NetworkSpec) -> dict[str, dict[str, Any]]:
    """What tells the groups of one graph from those of another, by name: size, symmetries, blocks."""
    return {
        name: {"size": group.size, "scalable": group.scalable, "signable": group.signable, "within": group.block_group}
        for name, group in spec.groups.items()
    }


def checked_template(model: Any) -> nn.Module:
    """The template, unwrapped.

    Raises
    ------
    InvalidModelError
        If it is missing or no module.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InvalidModelError(f"The template must be a network. Got the class; give an instance, model={model.__name__}(...).")
    if not isinstance(model, nn.Module):
        got = "none" if model is None else type(model).__name__
        raise InvalidModelError(
            f"load needs a template, a torch.nn.Module of the saved architecture in any widths. Got {got}; "
            "call load(folder, model=Net(...))."
        )
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        raise InvalidModelError("The template is on the meta device, without values; build it on the CPU.")
    try:
        return validate_models([model])[0]
    except FusionError as error:
        raise type(error)(f"The template can't be used: {error}") from error


def resized_to(model: nn.Module, inputs: Sequence[Any], tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[Architecture]:
    """The architecture of a template in the widths of each of some tables, from `group_table`.

    Raises
    ------
    ArchitectureMismatchError
        If the template does not take the inputs, or its groups are others.
    """
    kind = type(model).__name__
    try:
        own = Architecture.of(model, tuple(inputs), warn=False)
    except (DiscoveryError, SelfCheckError) as error:
        raise ArchitectureMismatchError(
            f"The template, a {kind}, is no network of the saved architecture: with the stored example inputs its groups can't "
            f"be found. {error} (A network with declared states needs a template of the saved widths.)"
        ) from error
    _check_groups(own.spec, tables[0], kind)
    return [_with_table(own, table) for table in tables]


def _check_groups(spec: NetworkSpec, table: Mapping[str, Mapping[str, Any]], kind: str) -> None:
    only = [n for n in table if n not in spec.groups], [n for n in spec.groups if n not in table]
    if any(only):
        raise ArchitectureMismatchError(
            f"The template, a {kind}, has other neuron groups than the saved network: only the saved one has {only[0][:5]}, only "
            f"the template has {only[1][:5]}. Give a network of the same architecture; its widths may differ, its depth may not."
        )
    for name, own in group_table(spec).items():
        saved = table[name]
        lost = [s for s in ("scalable", "signable") if saved[s] and not own[s]]
        if lost or own["within"] != saved["within"]:
            raise ArchitectureMismatchError(
                f"Group {name!r} of the template, a {kind}, is {own}, that of the saved network {saved}: an activation or a norm "
                "between its layers differs. Give a network of the same architecture."
            )


def _with_table(own: Architecture, table: Mapping[str, Mapping[str, Any]]) -> Architecture:
    found = own.resized({name: row["size"] for name, row in table.items()})
    spec = drop_symmetry(found.spec, "scales", {n for n, row in table.items() if not row["scalable"]})
    spec = drop_symmetry(spec, "signs", {n for n, row in table.items() if not row["signable"]})
    return dataclasses.replace(found, spec=spec)


def restored_network(
    model: nn.Module, architecture: Architecture, state: Mapping[str, Tensor], inputs: Sequence[Any], outputs: Any
) -> nn.Module:
    """A copy of the template in eval mode and in the widths of an architecture that holds a state dict in its dtypes.

    Parameters
    ----------
    model : Module
        The template; its device is the result's.
    architecture : Architecture
        From `resized_to`.
    state : dict of str to Tensor
        From `stored_state`.
    inputs : tuple
    outputs : list of Tensor or None
        What the network is to compute of the inputs, from `example_outputs`.

    Raises
    ------
    ArchitectureMismatchError
        If names or shapes differ, or what the network computes.
    """
    result = write_back(model, {}, sized=architecture.plain).to("cpu")
    fill(result, state)
    found = None if outputs is None else example_outputs(result, inputs)
    if found is not None:
        _check_outputs(found, outputs, type(model).__name__)
    return result.to(device_of(model))


def _check_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own, kind = model.state_dict(), type(model).__name__
    only = [n for n in state if n not in own], [n for n in own if n not in state]
    if any(only):
        raise ArchitectureMismatchError(
            f"The stored tensors are not those of the {kind} that is to hold them: only stored are {only[0][:5]}, only the "
            f"network has {only[1][:5]}. Give a network of the same architecture."
        )
    wrong = [f"{n!r} {tuple(t.shape)} instead of {tuple(own[n].shape)}" for n, t in state.items() if own[n].shape != t.shape]
    if wrong:
        raise ArchitectureMismatchError(
            f"The stored tensors have other shapes than those of the {kind} that is to hold them, in neurons that can't be "
            f"resized: {', '.join(wrong[:5])}. Give a network of the same architecture, inputs and outputs."
        )


@torch.no_grad()
def example_outputs(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor] | None:
    """First values of what a network computes of its example inputs on the CPU; None if it does not run there."""
    twin = plain_copy(model, plain=False).to("cpu")
    try:
        with torch.random.fork_rng(devices=[]):
            found = twin(*cast_inputs(inputs, twin))
    except RuntimeError:  # half precision without a kernel
        return None
    return [leaf.flatten()[:_SHOWN] for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def _check_outputs(found: Sequence[Tensor], saved: Sequence[Tensor], kind: str) -> None:
    for position, (own, other) in enumerate(zip(found, saved, strict=False)):
        tol = 3e-2 if own.dtype in (torch.float16, torch.bfloat16) else 1e-4
        a, b = own.double(), other.double()
        scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
        if a.shape == b.shape and torch.allclose(a, b, rtol=tol, atol=tol * scale, equal_nan=True):
            continue
        raise ArchitectureMismatchError(
            f"The template, a {kind}, takes the saved tensors but computes other values of the stored example inputs (output "
            f"{position}): an activation, a constant such as eps, or a buffer that is not in its state dict differs. Build the "
            "template as the parents were built."
        )
    if len(found) != len(saved):
        raise ArchitectureMismatchError(f"The template, a {kind}, returns {len(found)} tensors, the saved network {len(saved)}.")
