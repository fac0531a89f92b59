"""From a module to a flat, functional graph of operations."""

from __future__ import annotations

import operator
import os
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from ..exceptions import DiscoveryError
from ..layers import rule_for
from ..layers.operations import facts_of, schema_name
from .declared_modules import attach_declared, declared_forwards
from .inputs import shapes_of
from .isolation import untouched_modules
from .tensors import lent
from .tracing import trace_settings

__all__ = ["export"]

_LOCK = threading.Lock()  # torch.export is not re-entrant


def export(model: nn.Module, inputs: Sequence[Any], *, runs: bool = True) -> torch.export.ExportedProgram:
    """Trace a plain eval-mode model into a functional graph of ATen operations.

    Parameters
    ----------
    model : Module
    inputs : sequence
    runs : bool, default=True
        Whether the model is run first. A trace computes no values, so that its cost does not depend on the inputs' size; without
        a run, errors that depend on values occur later.

    Raises
    ------
    DiscoveryError
        If the model does not run on the inputs or can't be exported.
    """
    if runs:
        _run(model, inputs)
    try:
        with _LOCK, trace_settings(model), torch.random.fork_rng(devices=[]), declared_forwards(model):
            program = torch.export.export(_Root(model), tuple(inputs), strict=False)
            program = program if _is_functional(program) else program.run_decompositions(_decompositions())
            _rename(program, model)
            attach_declared(program)
            return program
    except Exception as error:
        if not runs:
            _run(model, inputs)  # its error is more specific
        if "not a known type" in str(error):
            raise DiscoveryError(
                f"A forward must return tensors in tuples, lists and dicts. Got another type from {type(model).__name__}: "
                f"{_first_line(error).partition(' If this')[0]} Switch it off (a cache: config.use_cache = False), or register "
                "its type with torch.utils._pytree."
            ) from error
        raise DiscoveryError(
            f"{type(model).__name__} can't be traced by torch.export: {_first_line(error)}{_line_of(error)}. Remove branches "
            "that depend on values from forward, or declare the module that contains them "
            "(sklearn_wbfuse.layers.declare)."
        ) from error


def _run(model: nn.Module, inputs: Sequence[Any]) -> None:
    """Run the model on the inputs, to raise its own errors."""
    try:
        with torch.no_grad(), lent(model), untouched_modules(model):
            model(*inputs)
    except Exception as error:
        raise DiscoveryError(
            f"{type(model).__name__} does not run on example inputs of shapes {shapes_of(tuple(inputs))}: "
            f"{_first_line(error)}{_line_of(error)}. Give inputs that it takes: example_inputs=(tensor, ...)."
        ) from error


class _Root(nn.Module):
    """Holds a network, whose submodules may have the names of attributes of a traced graph (code, graph, meta)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)


def _rename(program: torch.export.ExportedProgram, model: nn.Module) -> None:
    """Name tensors and modules as the network does; a tensor that code reads directly is recognised by its memory."""
    signature, prefix = program.graph_signature, "model."
    names = {_memory(t): n for n, t in [*model.named_buffers(), *model.named_parameters()] if t.numel()}
    for table in (program.state_dict, program.constants):
        for name in list(table):
            table[name.removeprefix(prefix)] = table.pop(name)
    for spec in signature.input_specs:
        spec.target = spec.target and spec.target.removeprefix(prefix)
        if spec.kind == InputKind.CONSTANT_TENSOR:
            spec.target = names.get(_memory(program.constants[str(spec.target)]), spec.target)
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {k: (path.removeprefix("model").removeprefix("."), t) for k, (path, t) in stack.items()}


def _memory(tensor: Any) -> tuple[Any, ...]:
    """Return where a tensor's values lie in memory."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return (id(tensor),)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _decompositions() -> dict[Any, Any]:
    """Return PyTorch's decompositions of the operations that have no rule."""
    return {
        op: decomposition
        for op, decomposition in torch.export.default_decompositions().items()
        if rule_for(schema_name(op)) is None
    }


def _is_functional(program: torch.export.ExportedProgram) -> bool:
    """Return whether no operation changes its operands or lacks a needed rule, so that the graph need not be decomposed."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and n.target is not operator.getitem]
    return all((rule_for(schema_name(n.target)) or _is_filled(n)) and not n.target._schema.is_mutable for n in nodes)


def _is_filled(node: Node) -> bool:
    """Return whether a node is a constant of the trace, such as a tensor of zeros or a range."""
    return facts_of(node).kind == "fills" and not node.all_input_nodes


def _first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _line_of(error: Exception) -> str:
    """Return the line of the network's own code that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    network_frames = [f for f in frames if f.name == "forward" and f"{os.sep}torch{os.sep}" not in f.filename and f.line]
    return f" at '{network_frames[-1].line}'" if network_frames else ""
