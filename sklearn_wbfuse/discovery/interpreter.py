"""The interpreter: runs a traced graph on unit labels."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..exceptions import DiscoveryError
from ..layers import Constraints, LabelMap, Value, rule_for
from ..layers.conv import is_depthwise
from ..layers.operations import Operation, facts_of, schema_name
from ..network.types import State
from .states import DeclaredStates

__all__ = ["Interpreter"]

_MAX_CONSTANT = 1 << 22  # constants with more elements are not computed


class Interpreter:
    """Passes labels through an exported program, rule by rule.

    Parameters
    ----------
    program : ExportedProgram
    names : mapping of str to str
        Every name of a tensor -> its first name (tied weights).
    floating : mapping of str to Tensor
        The tensors to label; all other buffers are constants.
    states : DeclaredStates
        Inputs and outputs that are recurrent states.

    Attributes
    ----------
    constraints : Constraints
    axes : dict of (str, int) to Tensor
        The labels of each axis of each tensor.
    operations : list of Operation
        The operations in order, with the options that belong to the architecture.
    reached : set of str
        Tensors that some operation reads.
    diagonal : dict of str to int
        The number of groups of each weight of a grouped convolution.
    shapes : dict of str to tuple
        The shape of each labelled tensor; of those in `diagonal`, that of the whole tensor.
    """

    def __init__(self, program: Any, names: Mapping[str, str], floating: State, states: DeclaredStates):
        self.program = program
        self.states = states
        self.constraints = Constraints()
        self.axes: dict[tuple[str, int], Tensor] = {}
        self.operations: list[Operation] = []
        self.reached: set[str] = set()
        self.parameters: dict[str, Value] = {}
        self.uses: dict[str, int] = {}
        self.diagonal = _in_groups(program, names)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in floating.items():
            shape, label_maps, blocks = list(tensor.shape), [], self.diagonal.get(name, 1)
            shape[1:2] = [n * blocks for n in shape[1:2]]
            for axis, size in enumerate(shape):
                self.axes[name, axis] = self.constraints.fresh(size)
                label_maps.append(LabelMap.along(self.axes[name, axis], axis, shape))
            self.shapes[name] = tuple(shape)
            self.parameters[name] = Value(tuple(shape), tuple(label_maps), is_weight=True, name=name, diagonal=blocks)
        self._run(names)

    def _run(self, names: Mapping[str, str]) -> None:
        """Interpret all nodes in order."""
        values: dict[Node, Any] = {}
        self.position = {node: k for k, node in enumerate(self.program.graph.nodes)}
        specs = self.program.graph_signature.input_specs
        for node, spec in zip(self.program.graph.find_nodes(op="placeholder"), specs, strict=True):
            target = names.get(spec.target, spec.target)
            self.uses[target] = self.uses.get(target, 0) + len(node.users)
        placeholders = iter(specs)
        self.input_positions = itertools.count()
        self.depend_on_inputs = {n for n, s in zip(self.position, specs, strict=False) if s.kind == InputKind.USER_INPUT}
        for node in self.program.graph.nodes:
            if self.depend_on_inputs.intersection(node.all_input_nodes):
                self.depend_on_inputs.add(node)
            if node.op == "placeholder":
                values[node] = self._placeholder(node, next(placeholders), names)
            elif node.op == "call_function":
                values[node] = self._call(node, values)
            elif node.op == "output":
                self._outputs(node, values)
            else:
                values[node] = Value(())

    def _placeholder(self, node: Node, spec: Any, names: Mapping[str, str]) -> Value:
        """Return the value of a parameter, input or constant."""
        name = names.get(spec.target, spec.target) if spec.target else None
        if name in self.parameters:
            if node.users:
                self.reached.add(str(name))
            return replace(self.parameters[str(name)], shared=self.uses[str(name)] > 1)
        if spec.kind == InputKind.USER_INPUT:
            example, position = node.meta.get("val"), next(self.input_positions)
            if not isinstance(example, Tensor):
                return Value((), constant=torch.zeros(()))
            shape = tuple(example.shape)
            is_state = position in self.states.inputs
            return self.states.value(self.constraints, position, shape) if is_state else Value(shape, dtype=example.dtype)
        if name is None:  # the token of an operation with side effects
            return Value(())
        state = self.program.constants if spec.target in self.program.constants else self.program.state_dict
        return _known(state[spec.target].detach())

    def _outputs(self, node: Node, values: Mapping[Node, Any]) -> None:
        """Keep the network's outputs in place, except for declared states."""
        specs, results = self.program.graph_signature.output_specs, cast("tuple[Any, ...]", node.args[0])
        returned = [n for n, s in zip(results, specs, strict=True) if s.kind == OutputKind.USER_OUTPUT]
        spec = self.program.call_spec.out_spec
        children = spec.children() if spec.type in (tuple, list) else [spec]
        if max(self.states.outputs, default=-1) >= len(children):
            raise DiscoveryError(
                f"Outputs that are declared to be states must exist. Got positions {self.states.outputs}, but the network "
                f"returns {len(children)} outputs in a tuple."
            )
        declared = [k in self.states.outputs for k, child in enumerate(children) for _ in range(child.num_leaves)]
        position = -1
        for output, is_state in zip(returned, declared, strict=True):
            value = values.get(output)
            if not isinstance(value, Value):
                continue
            position += 1
            if is_state:
                self.states.pair_output(self.constraints, position, value)
            else:
                states = [label_map for label_map in value.label_maps if self.constraints.is_state(label_map)]
                self.constraints.freeze(states, "a state that is returned to the caller")
                self.constraints.fix_outputs(*value.label_maps)

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """Return the result of an operation."""
        arguments = map_arg(node.args, lambda n: values[n])
        keywords = map_arg(node.kwargs, lambda n: values[n])
        if node.target is operator.getitem:
            results, position = arguments[0], int(node.args[1])  # type: ignore[arg-type]
            return results[position] if isinstance(results, tuple) and position < len(results) else Value(_shape(node))
        name = schema_name(node.target) or str(node.target)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        self.operations.append(Operation(name, path, _options(node, self.position)))
        if all(v.constant is not None for v in _leaves(arguments, keywords)):
            return self._constant(node, arguments, keywords)
        used_results = {int(u.args[1]) for u in node.users if u.target is operator.getitem and u.users}  # type: ignore[arg-type]
        with self.constraints.in_operation(path, f"{path} ({name})" if path else name, used_results):
            return self._by_rule(node, name, arguments, keywords)

    def _by_rule(self, node: Node, name: str, arguments: Any, keywords: Any) -> Any:
        """Return the result of an operation by its rule; without one, its units stay in place."""
        operands, rule, facts = _leaves(arguments, keywords), rule_for(name), facts_of(node)
        if rule is None:
            self.constraints.freeze([label_map for v in operands for label_map in v.label_maps], "no rule")
            return _without_labels(node)
        if facts.computes:
            self.constraints.observes([label_map for v in operands for label_map in v.label_maps])
        try:
            result = _completed(node, rule(self.constraints, *arguments, **keywords))
            if facts.moves and not facts.keeps_all_values:
                self.constraints.moves(operands, _leaves(result), of_table=node not in self.depend_on_inputs)
            return result
        except DiscoveryError:
            raise
        except Exception as error:  # a case that the rule does not handle
            self.constraints.freeze(
                [label_map for v in operands for label_map in v.label_maps], f"no rule ({type(error).__name__}: {error})"
            )
            return _without_labels(node)

    def _constant(self, node: Node, arguments: Any, keywords: Any) -> Any:
        """Compute a value that depends on neither inputs nor parameters."""
        examples = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        if not examples or sum(t.numel() for t in examples) > _MAX_CONSTANT:
            return _without_labels(node)
        constants = map_values(arguments, lambda v: v.constant), map_values(keywords, lambda v: v.constant)
        try:
            with torch.random.fork_rng(devices=[]):
                result = node.target(*constants[0], **constants[1])  # type: ignore[operator]
        except Exception:
            return _without_labels(node)
        if facts_of(node).unset:  # uninitialised values must not distinguish units
            result = torch.zeros_like(result)
        return tuple(map(_known, result)) if isinstance(result, (tuple, list)) else _known(result)


def _known(tensor: Any) -> Value:
    """Return a computed value; of a sparse tensor, only its shape is known."""
    if not isinstance(tensor, Tensor):
        return Value(())
    constant = tensor if tensor.layout == torch.strided else None
    return Value(tuple(tensor.shape), constant=constant, dtype=tensor.dtype)


def _in_groups(program: Any, names: Mapping[str, str]) -> dict[str, int]:
    """Return the numbers of groups of weights that only grouped convolutions of one such number read, except depthwise ones."""
    groups_of: dict[str, set[int]] = {}
    fx_graph, specs = program.graph, program.graph_signature.input_specs
    for node, spec in zip(fx_graph.find_nodes(op="placeholder"), specs, strict=True):
        shape = getattr(node.meta.get("val"), "shape", ())
        for user in node.users:
            facts = facts_of(user)
            reads = facts.kind == "convolves" and user.args[1] is node and user.args[0] is not node
            n_groups = user.args[6] if reads and len(user.args) > 6 else 1
            is_grouped = reads and not is_depthwise(shape, n_groups, facts.transposed)
            groups_of.setdefault(names.get(spec.target, spec.target), set()).add(n_groups if is_grouped else 1)
    return {name: groups.pop() for name, groups in groups_of.items() if len(groups) == 1 and groups != {1}}


def map_values(tree: Any, change: Any) -> Any:
    """Replace every `Value` in nested arguments."""
    if isinstance(tree, Value):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_values(t, change) for t in tree)
    if isinstance(tree, Mapping):
        return {k: map_values(v, change) for k, v in tree.items()}
    return tree


def _leaves(*trees: Any) -> list[Value]:
    """Return every `Value` in nested arguments."""
    values: list[Value] = []
    map_values(trees, values.append)
    return values


def _shape(node: Node) -> tuple[int, ...]:
    example = node.meta.get("val")
    return tuple(example.shape) if isinstance(example, Tensor) else ()


def _without_labels(node: Node) -> Any:
    """Return the values of a node without labels."""
    example = node.meta.get("val")
    if isinstance(example, (tuple, list)):
        return tuple(Value(tuple(t.shape)) if isinstance(t, Tensor) else Value(()) for t in example)
    return Value(_shape(node), dtype=getattr(example, "dtype", None))


def _completed(node: Node, result: Any) -> Any:
    """Fill in shapes that a rule left open from the trace; a tensor that several operations read is not the input of one norm."""
    example = node.meta.get("val")
    if isinstance(result, tuple):
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else () for t in example]  # type: ignore[union-attr]
        return tuple(_shaped(v, s, node) for v, s in zip(result, shapes, strict=False))
    return _shaped(result if result is not None else Value(()), _shape(node), node)


def _shaped(value: Value, shape: tuple[int, ...], node: Node) -> Value:
    """Return a value with the shape and dtype of the trace."""
    label_maps = value.label_maps
    if value.shape == (-1,):  # a declared module: labels along one dimension of a shape that only the trace knows
        label_maps = tuple(
            LabelMap.along(label_map.ids, label_map.dims[0] % len(shape), shape)
            for label_map in label_maps
            if len(label_map.ids) > 1 or shape
        )
    elif value.shape != shape and value.label_maps:
        raise AssertionError(f"The rule of {node.target} computed shape {value.shape}, the network {shape}.")
    dtype = getattr(node.meta.get("val"), "dtype", None)
    return replace(value, shape=shape, label_maps=label_maps, dtype=dtype, bias=value.bias if len(node.users) == 1 else None)


def _options(node: Node, position: Mapping[Node, int]) -> tuple[str, ...]:
    """Return the wiring, and the options that belong to the architecture, without sizes."""
    facts = facts_of(node)

    def as_text(argument: Any) -> str:
        if isinstance(argument, Node):
            return f"%{position[argument]}"
        if isinstance(argument, (list, tuple)):
            return f"[{', '.join(map(as_text, argument))}]"
        return "_" if facts.sizes and isinstance(argument, int) else repr(argument)

    arguments: list[Any] = list(node.args)
    if facts.kind == "convolves" and len(arguments) > 6:
        shape, groups = arguments[1].meta["val"].shape, arguments[6]
        arguments[6] = "depthwise" if is_depthwise(shape, groups, facts.transposed) else groups
    return (*map(as_text, arguments), *(f"{key}={as_text(value)}" for key, value in node.kwargs.items()))
