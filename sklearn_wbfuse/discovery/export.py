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
from .contexts import traced, untouched_modules
from .declared import declared_forwards, hold_declared
from .inputs import shapes_of
from .tensors import lent

__all__ = ["export"]

_LOCK = threading.Lock()  # torch.export is not re-entrant


def export(model: nn.Module, inputs: Sequence[Any], *, runs: bool = True) -> torch.export.ExportedProgram:
    """Trace a plain eval-mode model into a functional graph of ATen operations.

    Parameters
    ----------
    model : Module
    inputs : sequence
    runs : bool, default=True
        Whether the model is run first. A trace computes no values, so that it costs the same for inputs of any size; without a
        run errors that only values raise come later.

    Raises
    ------
    DiscoveryError
        If the model does not run on the inputs or can't be exported.
    """
    if runs:
        _run(model, inputs)
    try:
        with _LOCK, traced(model), torch.random.fork_rng(devices=[]), declared_forwards(model):
            program = torch.export.export(_Root(model), tuple(inputs), strict=False)
            program = program if _is_functional(program) else program.run_decompositions(_decompositions())
            _rename(program, model)
            hold_declared(program)
            return program
    except Exception as error:
        if not runs:
            _run(model, inputs)  # tells better what is wrong
        if "not a known type" in str(error):
            raise DiscoveryError(
                f"{type(model).__name__} returns something else than tensors in tuples, lists and dicts: "
                f"{_first_line(error).partition(' If this')[0]} Switch it off (a cache: config.use_cache = False), or register "
                "its type with torch.utils._pytree."
            ) from error
        raise DiscoveryError(
            f"{type(model).__name__} can't be traced by torch.export: {_first_line(error)}{_line_of(error)}. Branches that "
            "depend on values must be taken out of forward, or the module that holds them declared "
            "(sklearn_wbfuse.layers.declare)."
        ) from error


def _run(model: nn.Module, inputs: Sequence[Any]) -> None:
    try:
        with torch.no_grad(), lent(model), untouched_modules(model):
            model(*inputs)
    except Exception as error:
        raise DiscoveryError(
            f"{type(model).__name__} does not run on example inputs of shapes {shapes_of(tuple(inputs))}: "
            f"{_first_line(error)}{_line_of(error)}. Give inputs that it takes: example_inputs=(tensor, ...)."
        ) from error


class _Root(nn.Module):
    """Holds a network, whose own parts may be called like attributes of a traced graph (code, graph, meta)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)


def _rename(program: torch.export.ExportedProgram, model: nn.Module) -> None:
    """Call tensors and modules as the network does; a tensor that code reads past its module is known by its memory."""
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
    """Where a tensor's numbers lie."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return (id(tensor),)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _decompositions() -> dict[Any, Any]:
    """What PyTorch makes of the operations that have no rule."""
    return {op: made_of for op, made_of in torch.export.default_decompositions().items() if rule_for(schema_name(op)) is None}


def _is_functional(program: torch.export.ExportedProgram) -> bool:
    """Whether no operation changes its operands and none needs a rule that it has not: the slow pass over the graph is spared."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and n.target is not operator.getitem]
    return all((rule_for(schema_name(n.target)) or _is_filled(n)) and not n.target._schema.is_mutable for n in nodes)


def _is_filled(node: Node) -> bool:
    """Whether a node is a tensor of zeros, of a range or the like, a constant of the trace."""
    return facts_of(node).kind == "fills" and not node.all_input_nodes


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _line_of(error: Exception) -> str:
    """The line of the network's own code that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.name == "forward" and f"{os.sep}torch{os.sep}" not in f.filename and f.line]
    return f" at '{own[-1].line}'" if own else ""
