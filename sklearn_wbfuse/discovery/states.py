"""Recurrent states that the caller passes to a network or receives from it, as declared by the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..exceptions import DiscoveryError
from ..layers import Constraints, LabelMap, Value, declaration_of
from ..network.groups import LabelledTensor
from ..network.spec import NetworkSpec, RecurrentState
from ..network.types import Inputs

__all__ = ["DeclaredStates", "change_states", "declared_states", "resized_inputs", "with_states"]

StateKey = tuple[bool, int, int | None]
"""Whether a state is an input, its position and its layer index, see `RecurrentState`."""


@dataclass(eq=False)
class DeclaredStates:
    """The declared states among a network's inputs and outputs, and the labels of their units.

    Attributes
    ----------
    inputs : set of int
        Positions among the tensors of the inputs.
    outputs : tuple of int
        Positions in the tuple that forward returns.
    unpaired : list of Tensor
        The labels of each input state that no output state has been paired with yet.
    labels : dict of (bool, int, int or None) to Tensor
        For each (is_input, position, layer_index), the labels along the last dimension.
    """

    inputs: set[int] = field(default_factory=set)
    outputs: tuple[int, ...] = ()
    unpaired: list[Tensor] = field(default_factory=list)
    labels: dict[StateKey, Tensor] = field(default_factory=dict)

    def value(self, constraints: Constraints, position: int, shape: tuple[int, ...]) -> Value:
        """Return an input state, with fresh labels for each unit of each layer and direction."""
        n_layers = shape[0] if len(shape) == 3 else 1
        ids = constraints.fresh(n_layers * shape[-1]).view(*([n_layers] if len(shape) == 3 else []), 1, shape[-1])
        self._store(True, position, ids)
        self.unpaired.append(ids)
        return Value(shape, (LabelMap(ids.expand(shape)),))

    def pair_output(self, constraints: Constraints, position: int, value: Value) -> None:
        """Unite an output state with the input state that takes it back."""
        last = len(value.shape) - 1
        input_ids = self.unpaired.pop(0) if self.unpaired else None
        state_maps = [m for m in value.label_maps if set(m.dims) <= {0, last} and (len(value.shape) == 3 or m.dims == (last,))]
        constraints.freeze(
            [m for m in value.label_maps if m not in state_maps], "a declared state that varies along more than layers and units"
        )
        for label_map in state_maps:
            ids = label_map.ids.narrow(last - 1, 0, 1)
            self._store(False, position, ids)
            if input_ids is not None and input_ids.shape == ids.shape:
                constraints.unite(input_ids, ids)
                constraints.same_factor(input_ids, ids)
                input_ids = None
            elif any(key[0] for key in self.labels) or not constraints.is_state(label_map):
                raise DiscoveryError(
                    "Each declared output state must have a declared input state of the same units. Got no input for output "
                    f"{position} of shape {value.shape}. Declare the arguments that take states back in the order of the "
                    "outputs: declare(..., state_inputs=, state_outputs=)."
                )
        if input_ids is not None:
            constraints.freeze([LabelMap(input_ids)], "a declared state that is returned with other units")

    def _store(self, is_input: bool, position: int, ids: Tensor) -> None:
        if ids.dim() == 3:
            for layer_index in range(len(ids)):
                self.labels[is_input, position, layer_index] = ids[layer_index, 0]
        else:
            self.labels[is_input, position, None] = ids[0]


def declared_states(model: nn.Module, inputs: Sequence[Any]) -> DeclaredStates:
    """Return the declared states of a model, as positions among all tensors.

    Raises
    ------
    DiscoveryError
        If forward has no argument of a declared name, or the inputs leave it out.
    """
    declaration = declaration_of(model)
    if declaration is None or not (declaration.state_inputs or declaration.state_outputs):
        return DeclaredStates()
    names = list(inspect.signature(model.forward).parameters)
    positions: set[int] = set()
    for name in declaration.state_inputs:
        if name not in names[: len(inputs)]:
            raise DiscoveryError(
                f"example_inputs must contain every declared state. Got {names[: len(inputs)]} without the state {name!r} of "
                f"{type(model).__name__}."
            )
        n_before = len(pytree.tree_leaves(tuple(inputs[: names.index(name)])))
        positions |= set(range(n_before, n_before + len(pytree.tree_leaves(inputs[names.index(name)]))))
    return DeclaredStates(positions, declaration.state_outputs)


def with_states(spec: NetworkSpec, names: Mapping[StateKey, str]) -> NetworkSpec:
    """Return the spec with some of its tensors converted to states."""
    states = tuple(RecurrentState(*key, labels=spec.tensors[name]) for key, name in names.items())
    state_names = set(names.values())
    return replace(spec, tensors={n: t for n, t in spec.tensors.items() if n not in state_names}, states=states)


def change_states(
    leaves: Sequence[Any], spec: NetworkSpec, is_input: bool, change: Callable[[Tensor, LabelledTensor], Tensor]
) -> list[Any]:
    """Return tensors with a change applied to the units of every state; units are the first dimension of its argument."""
    result = list(leaves)
    for position in {s.position for s in spec.states if s.is_input == is_input}:
        labels_of = {s.layer_index: s.labels for s in spec.states if s.is_input == is_input and s.position == position}
        tensor = leaves[position]
        if None not in labels_of and len(tensor) != len(labels_of):
            raise DiscoveryError(
                f"A declared state must have shape (layers, batch, units) or (batch, units). Got {tuple(tensor.shape)}."
            )
        parts = [tensor] if None in labels_of else [tensor[layer_index] for layer_index in labels_of]
        changed = [change(t.movedim(-1, 0), labels).movedim(0, -1) for t, labels in zip(parts, labels_of.values(), strict=True)]
        result[position] = changed[0] if None in labels_of else torch.stack(changed)
    return result


def _resize_last(tensor: Tensor, size: int) -> Tensor:
    """Resize the last dimension, with zeros where it grows."""
    return nn.functional.pad(tensor, (0, size - tensor.shape[-1]))


def resized_inputs(inputs: Sequence[Any], spec: NetworkSpec, sizes: Mapping[str, int]) -> Inputs:
    """Return inputs whose states have the widths of a resized network."""
    leaves, tree = pytree.tree_flatten(tuple(inputs))

    def change(tensor: Tensor, labels: LabelledTensor) -> Tensor:
        size = len(tensor) + sum(sizes[s.group] - len(s.index) for s in labels.spans[0])
        return _resize_last(tensor.movedim(0, -1), size).movedim(-1, 0)

    return pytree.tree_unflatten(change_states(leaves, spec, True, change), tree)
