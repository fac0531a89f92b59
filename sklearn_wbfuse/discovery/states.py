"""Recurrent states that the caller gives to a network or gets from it, where the user has declared them."""

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

__all__ = ["Declared", "declared_states", "on_states", "resized_inputs", "with_states"]


@dataclass(eq=False)
class Declared:
    """Which tensors among a network's inputs are declared states, which of its outputs, and the labels of their units.

    Attributes
    ----------
    inputs : set of int
        Positions among the tensors of the inputs.
    outputs : tuple of int
        Positions in the tuple that forward returns.
    given : list of Tensor
        The labels of each input state that no output state has been paired with yet.
    labels : dict of (bool, int, int or None) to Tensor
        For each (given, position, slot), the labels along the last dimension.
    """

    inputs: set[int] = field(default_factory=set)
    outputs: tuple[int, ...] = ()
    given: list[Tensor] = field(default_factory=list)
    labels: dict[tuple[bool, int, int | None], Tensor] = field(default_factory=dict)

    def value(self, constraints: Constraints, leaf: int, shape: tuple[int, ...]) -> Value:
        """A state that the caller gives: fresh labels for each unit of each layer and direction."""
        slots = shape[0] if len(shape) == 3 else 1
        ids = constraints.fresh(slots * shape[-1]).view(*([slots] if len(shape) == 3 else []), 1, shape[-1])
        self._keep(True, leaf, ids)
        self.given.append(ids)
        return Value(shape, (LabelMap(ids.expand(shape)),))

    def returned(self, constraints: Constraints, leaf: int, value: Value) -> None:
        """A state that the caller gets, and will give back where the network takes one: they are the same units."""
        last = len(value.shape) - 1
        given = self.given.pop(0) if self.given else None
        fits = [k for k in value.layers if set(k.dims) <= {0, last} and (len(value.shape) == 3 or k.dims == (last,))]
        constraints.freeze(
            [k for k in value.layers if k not in fits], "a declared state that varies along more than layers and units"
        )
        for layer in fits:
            ids = layer.ids.narrow(last - 1, 0, 1)
            self._keep(False, leaf, ids)
            if given is not None and given.shape == ids.shape:
                constraints.unite(given, ids)
                constraints.same_factor(given, ids)
                given = None
            elif any(key[0] for key in self.labels) or not constraints.is_state(layer):
                raise DiscoveryError(
                    f"Output {leaf} of shape {value.shape} is declared to be a state, but no declared input has its units: each "
                    "state that is returned needs the argument that takes it back, in the same order (declare(..., "
                    "state_inputs=, state_outputs=))."
                )
        if given is not None:
            constraints.freeze([LabelMap(given)], "a declared state that is not given back as it was returned")

    def _keep(self, given: bool, leaf: int, ids: Tensor) -> None:
        if ids.dim() == 3:
            for slot in range(len(ids)):
                self.labels[given, leaf, slot] = ids[slot, 0]
        else:
            self.labels[given, leaf, None] = ids[0]


def declared_states(model: nn.Module, inputs: Sequence[Any]) -> Declared:
    """What ``declare(type(model), state_inputs=..., state_outputs=...)`` said, as positions among all tensors.

    Raises
    ------
    DiscoveryError
        If forward has no argument of a declared name, or the inputs leave it out.
    """
    declaration = declaration_of(model)
    if declaration is None or not (declaration.state_inputs or declaration.state_outputs):
        return Declared()
    names = list(inspect.signature(model.forward).parameters)
    found: set[int] = set()
    for name in declaration.state_inputs:
        if name not in names[: len(inputs)]:
            raise DiscoveryError(
                f"{type(model).__name__} is declared to take a state {name!r}, but example_inputs give {names[: len(inputs)]}."
            )
        before = len(pytree.tree_leaves(tuple(inputs[: names.index(name)])))
        found |= set(range(before, before + len(pytree.tree_leaves(inputs[names.index(name)]))))
    return Declared(found, declaration.state_outputs)


def with_states(spec: NetworkSpec, labels: Mapping[tuple[bool, int, int | None], str]) -> NetworkSpec:
    """The graph with some of its tensors taken out and kept as states."""
    states = tuple(RecurrentState(*key, labels=spec.tensors[name]) for key, name in labels.items())
    names = set(labels.values())
    return replace(spec, tensors={n: t for n, t in spec.tensors.items() if n not in names}, states=states)


def on_states(
    leaves: Sequence[Any], spec: NetworkSpec, given: bool, change: Callable[[Tensor, LabelledTensor], Tensor]
) -> list[Any]:
    """The tensors with a change made along the units of every state among them; units come first in what is changed."""
    result = list(leaves)
    for leaf in {s.leaf for s in spec.states if s.given == given}:
        own = {s.slot: s.labels for s in spec.states if s.given == given and s.leaf == leaf}
        tensor = leaves[leaf]
        if None not in own and len(tensor) != len(own):
            raise DiscoveryError(f"A declared state must be (layers, batch, units) or (batch, units). Got {tuple(tensor.shape)}.")
        parts = [tensor] if None in own else [tensor[slot] for slot in own]
        moved = [change(t.movedim(-1, 0), labels).movedim(0, -1) for t, labels in zip(parts, own.values(), strict=True)]
        result[leaf] = moved[0] if None in own else torch.stack(moved)
    return result


def _cut(tensor: Tensor, size: int) -> Tensor:
    """The last dimension brought to a size, with zeros where it grows."""
    return nn.functional.pad(tensor, (0, size - tensor.shape[-1]))


def resized_inputs(inputs: Sequence[Any], spec: NetworkSpec, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """Inputs whose states have the widths of a resized network."""
    leaves, tree = pytree.tree_flatten(tuple(inputs))

    def change(tensor: Tensor, labels: LabelledTensor) -> Tensor:
        size = len(tensor) + sum(sizes[s.group] - len(s.index) for s in labels.spans[0])
        return _cut(tensor.movedim(0, -1), size).movedim(-1, 0)

    return pytree.tree_unflatten(on_states(leaves, spec, True, change), tree)
