"""A network that runs one operation at a time, each on all batches."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.export.passes import move_to_device_pass
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..discovery.export import export
from ..discovery.tensors import aliases, lent
from ..layers.operations import facts_of, operation_names
from ..network.types import Inputs, State
from .memory import Held, Memory

__all__ = ["Runner", "program_of"]

aten = torch.ops.aten
_ANY_STRIDES: dict[Any, Any] = {getattr(aten, name).default: aten.reshape.default for name in operation_names(same_as="reshape")}
"""Replacements of views: networks are traced on the CPU, and other devices may return results in other strides."""


def program_of(plain: nn.Module, inputs: Sequence[Any], like: Tensor) -> torch.export.ExportedProgram:
    """Trace a plain network on the inputs of one batch, for the dtype and device of a tensor.

    Raises
    ------
    DiscoveryError
        If the network does not run on the inputs, or can't be exported.
    """
    inputs = pytree.tree_map(lambda t: _like(t, torch.zeros((), dtype=like.dtype)), tuple(inputs))
    with lent(plain, dtype=like.dtype):
        program = export(plain, inputs, runs=False)
    program = program if like.device.type == "cpu" else move_to_device_pass(program, like.device)
    _tidy(program.graph)
    return program


def _tidy(graph: Graph) -> None:
    """Remove operations that nothing reads, and restore the batch norms that making a graph functional replaces."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    for node in graph.nodes:
        arguments: list[Any] = list(node.args)
        if facts_of(node).same_as != "batch_norm" or len(arguments) == 8 or any(user.args[1] != 0 for user in node.users):
            continue  # with 8 arguments it changes running statistics
        if len(arguments) == 7:  # input, weight, bias, mean, var, momentum, eps
            arguments.insert(5, False)
        else:  # input, weight, bias, training, momentum, eps
            arguments[3:3] = [None, None]
        for output in list(node.users):
            with graph.inserting_before(output):
                named = graph.call_function(aten.batch_norm.default, (*arguments, False))
            named.meta = dict(output.meta)
            output.replace_all_uses_with(named)
            graph.erase_node(output)
        graph.erase_node(node)


class Runner:
    """Runs the operations of a network in order, and holds their values on all batches as long as something reads them.

    Networks of one architecture have the same operations at the same positions, so that they can run in lockstep. A runner runs
    once.

    Parameters
    ----------
    program : ExportedProgram
        The trace of this network, or of another one of the same architecture and widths.
    plain : Module
        A plain copy of the network.
    state : mapping of str to Tensor
        Its floating-point tensors, in the dtype and on the device of computation.
    batches : sequence of tuple
        Inputs, all of the shapes of the program.
    memory : Memory, optional
        The budget for values; by default all values stay in memory.

    Attributes
    ----------
    nodes : list of Node
    position : dict of Node to int
    parameters : dict of Node to str
        The name of each floating-point tensor.
    inputs, returned : list of Node
        The inputs and outputs of the network; outputs may include constants.
    state : dict of str to Tensor
        The tensors; they may be replaced between operations.
    values : dict of Node to sequence
        The values that are held, one for each batch.
    """

    def __init__(
        self,
        program: Any,
        plain: nn.Module,
        state: State,
        batches: Sequence[Inputs],
        memory: Memory | None = None,
    ):
        self.memory = Memory() if memory is None else memory
        like = next(iter(state.values()), torch.zeros(()))
        self.nodes: list[Node] = list(program.graph.nodes)
        self.position = {node: k for k, node in enumerate(self.nodes)}
        self.state = dict(state)
        self.parameters: dict[Node, str] = {}
        self.inputs: list[Node] = []
        self.values: dict[Node, Sequence[Any]] = {}
        self.n_batches = len(batches)
        self.last = {operand: self.position[node] for node in self.nodes for operand in node.all_input_nodes}
        self.keep(self.nodes[-1].all_input_nodes, len(self.nodes))
        outputs: Any = zip(program.graph_signature.output_specs, self.nodes[-1].args[0], strict=True)  # type: ignore[arg-type]
        self.returned = [node for spec, node in outputs if spec.kind == OutputKind.USER_OUTPUT]
        names, specs, leaves = aliases(plain), program.graph_signature.input_specs, itertools.count()
        inputs = [pytree.tree_leaves(tuple(batch)) for batch in batches]
        for node, spec in zip(program.graph.find_nodes(op="placeholder"), specs, strict=True):
            name = names.get(spec.target, spec.target)
            if name in self.state:
                self.parameters[node] = name
            elif spec.kind == InputKind.USER_INPUT:
                leaf = next(leaves)
                self.inputs.append(node)
                self.values[node] = [_like(batch[leaf], like) for batch in inputs]
            else:
                self.values[node] = [_like(_constant(spec.target, plain, program), like)] * self.n_batches

    def read(self, node: Any, batch: int) -> Any:
        """Return the value of a node on one batch."""
        name = self.parameters.get(node)
        return self.values[node][batch] if name is None else self.state[name]

    def outputs(self, batch: int) -> list[Any]:
        """Return the flat outputs of the network on one batch."""
        return [self.read(node, batch) if isinstance(node, Node) else node for node in self.returned]

    def run(self, node: Node) -> None:
        """Compute one operation on all batches; its operands must have been computed."""
        if node.op == "call_function":
            self.values[node] = Held(self.memory, (self.compute(node, batch) for batch in range(self.n_batches)))

    def compute(self, node: Node, batch: int, arguments: Any = None) -> Any:
        """Return the value of an operation on one batch, optionally with other arguments."""
        nodes = (node.args if arguments is None else arguments), node.kwargs
        args, kwargs = map_arg(nodes, lambda n: self.read(n, batch))
        return _ANY_STRIDES.get(node.target, node.target)(*args, **kwargs)

    def keep(self, nodes: Iterable[Node], position: int) -> None:
        """Hold the values of nodes up to a position."""
        for node in nodes:
            self.last[node] = max(self.last.get(node, position), position)

    def forget(self, position: int) -> None:
        """Release all values that nothing after a position reads; outputs stay."""
        for node in [n for n in self.values if self.last.get(n, -1) <= position]:
            held = self.values.pop(node)
            if isinstance(held, Held):
                held.release()


def _constant(name: str, plain: nn.Module, program: Any) -> Any:
    """Return a constant of the network, or of the program if it is written in the code."""
    try:
        return operator.attrgetter(name)(plain)
    except AttributeError:
        return program.constants[name]


def _like(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
