"""Declared modules: they pass through the trace as one operation whose rule follows the declaration."""

from __future__ import annotations

import contextlib
import copy
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import FIXED, Constraints, LabelMap, Value, declaration_of, register_rule
from ..layers.elementwise import combine
from ..layers.linear import read

__all__ = ["attach_declared", "declared_forwards"]

_NUMBERS = itertools.count()
_MODULES: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
"""Copies of the declared modules of every live trace, by their number in the trace."""


def _run(x: Tensor, parameters: Sequence[Tensor], key: int) -> Tensor:
    """Run a declared module with some parameters."""
    module = _MODULES[key]
    named = dict(zip(declaration_of(module).axes, parameters, strict=True))  # type: ignore[union-attr]
    return torch.func.functional_call(module, named, (x,))


@torch.library.custom_op("sklearn_wbfuse::declared", mutates_args=())
def declared(x: Tensor, parameters: list[Tensor], key: int) -> Tensor:
    """Represent the forward of a declared module."""
    return _run(x, parameters, key).clone()


@declared.register_fake
def _(x: Tensor, parameters: list[Tensor], key: int) -> Tensor:
    return torch.empty_like(_run(x, parameters, key))


@contextlib.contextmanager
def declared_forwards(model: nn.Module) -> Iterator[None]:
    """Make declared modules of the model single operations within the context."""
    changed, copies = [], []
    for module in model.modules():
        declaration = declaration_of(module)
        if declaration is None or not declaration.axes:
            continue
        key = next(_NUMBERS)
        copies.append(copy.deepcopy(module))
        _MODULES[key] = copies[-1]
        names = list(declaration.axes)

        def forward(x: Tensor, *, module: nn.Module = module, names: list[str] = names, key: int = key) -> Tensor:
            return declared(x, [module.get_parameter(n) for n in names], key)

        module.forward = forward
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def attach_declared(program: Any) -> None:
    """Attach the declared modules to the operations of a trace, so that they live as long as it does."""
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.sklearn_wbfuse.declared.default):
        node.meta["declared"] = _MODULES[node.args[2]]


@register_rule("sklearn_wbfuse::declared")
def declared_rule(constraints: Constraints, x: Value, parameters: Sequence[Value], key: int) -> Value:
    """Read by "in" axes, compute by "out" axes, and unite "unit" axes with the input."""
    declaration = declaration_of(_MODULES[key])
    assert declaration is not None
    constraints.rigid(*x.label_maps)
    units: list[LabelMap] = []
    for value, entry in zip(parameters, declaration.axes.values(), strict=True):
        for axis, kind in enumerate(entry):
            label_map = value.label_map(axis)
            if label_map is None:
                continue
            constraints.rigid(label_map)
            if kind is None:
                constraints.fix(label_map)
            elif kind == "in":
                read(constraints, x, declaration.input_dim, value, axis)
            elif kind == "unit":
                vector = Value((value.shape[axis],), (LabelMap.along(label_map.vector(axis), 0, (value.shape[axis],)),))
                combine(constraints, "a declared module", [_move_to_end(x, declaration.input_dim), vector], "general")
            else:
                units.append(LabelMap.along(label_map.vector(axis), 0, (value.shape[axis],)))
    if declaration.elementwise:
        return Value(x.shape, x.label_maps)
    for label_map in units:
        constraints.unite(units[0].ids, label_map.ids)
        constraints.produces(label_map.ids)
    labels = units[0].ids if units else torch.full((1,), FIXED)
    return Value((-1,), (LabelMap(labels, (declaration.output_dim,)),))


def _move_to_end(x: Value, dim: int) -> Value:
    return x.map(lambda ids: ids.movedim(dim, -1))
