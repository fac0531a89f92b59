"""Run a graph on unit labels."""

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
from .states import Declared

__all__ = ["Interpreter"]

_TALLY = 1 << 22  # constants larger than this are not computed


class Interpreter:
    """Carries labels through an exported program, rule by rule.

    Parameters
    ----------
    program : ExportedProgram
    names : mapping of str to str
        Every name of a tensor -> its first name (tied weights).
    floating : mapping of str to Tensor
        The tensors to label; all other buffers are constants.
    states : Declared
        Inputs and outputs that are recurrent states.

    Attributes
    ----------
    record : Record
    axes : dict of (str, int) to Tensor
        The labels of each axis of each tensor.
    operations : list of Operation
        The operations in order, with the options that belong to the architecture.
    reached : set of str
        Tensors that some operation reads.
    diagonal : dict of str to int
        Weights of convolutions in groups, and how many groups there are.
    shapes : dict of str to tuple
        Shape of each labelled tensor; of those in `diagonal` as a whole.
    """

    def __init__(self, program: Any, names: Mapping[str, str], floating: Mapping[str, Tensor], states: Declared):
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
            shape, layers, blocks = list(tensor.shape), [], self.diagonal.get(name, 1)
            shape[1:2] = [n * blocks for n in shape[1:2]]
            for axis, size in enumerate(shape):
                self.axes[name, axis] = self.constraints.fresh(size)
                layers.append(LabelMap.along(self.axes[name, axis], axis, shape))
            self.shapes[name] = tuple(shape)
            self.parameters[name] = Value(tuple(shape), tuple(layers), is_weight=True, name=name, diagonal=blocks)
        self._run(names)

    def _run(self, names: Mapping[str, str]) -> None:
        values: dict[Node, Any] = {}
        self.position = {node: k for k, node in enumerate(self.program.graph.nodes)}
        specs = self.program.graph_signature.input_specs
        for node, spec in zip(self.program.graph.find_nodes(op="placeholder"), specs, strict=True):
            target = names.get(spec.target, spec.target)
            self.uses[target] = self.uses.get(target, 0) + len(node.users)
        placeholders = iter(specs)
        self.inputs = itertools.count()
        self.of_inputs = {n for n, s in zip(self.position, specs, strict=False) if s.kind == InputKind.USER_INPUT}
        for node in self.program.graph.nodes:
            if self.of_inputs.intersection(node.all_input_nodes):
                self.of_inputs.add(node)
            if node.op == "placeholder":
                values[node] = self._placeholder(node, next(placeholders), names)
            elif node.op == "call_function":
                values[node] = self._call(node, values)
            elif node.op == "output":
                self._outputs(node, values)
            else:
                values[node] = Value(())

    def _placeholder(self, node: Node, spec: Any, names: Mapping[str, str]) -> Value:
        name = names.get(spec.target, spec.target) if spec.target else None
        if name in self.parameters:
            if node.users:
                self.reached.add(str(name))
            return replace(self.parameters[str(name)], shared=self.uses[str(name)] > 1)
        if spec.kind == InputKind.USER_INPUT:
            example, leaf = node.meta.get("val"), next(self.inputs)
            if not isinstance(example, Tensor):
                return Value((), constant=torch.zeros(()))
            shape = tuple(example.shape)
            is_state = leaf in self.states.inputs
            return self.states.value(self.constraints, leaf, shape) if is_state else Value(shape, dtype=example.dtype)
        if name is None:  # the token of an operation with side effects
            return Value(())
        state = self.program.constants if spec.target in self.program.constants else self.program.state_dict
        return _known(state[spec.target].detach())

    def _outputs(self, node: Node, values: Mapping[Node, Any]) -> None:
        """What is returned stays in place: rightly, if it is no state; a declared state is free."""
        specs, results = self.program.graph_signature.output_specs, cast("tuple[Any, ...]", node.args[0])
        returned = [n for n, s in zip(results, specs, strict=True) if s.kind == OutputKind.USER_OUTPUT]
        spec = self.program.call_spec.out_spec
        children = spec.children() if spec.type in (tuple, list) else [spec]
        if max(self.states.outputs, default=-1) >= len(children):
            raise DiscoveryError(
                f"Outputs {self.states.outputs} are declared to be states, but the network returns {len(children)} in a tuple."
            )
        declared = [k in self.states.outputs for k, child in enumerate(children) for _ in range(child.num_leaves)]
        leaf = -1
        for output, is_state in zip(returned, declared, strict=True):
            value = values.get(output)
            if not isinstance(value, Value):
                continue
            leaf += 1
            if is_state:
                self.states.returned(self.constraints, leaf, value)
            else:
                states = [layer for layer in value.layers if self.constraints.is_state(layer)]
                self.constraints.freeze(states, "a state that is returned to the caller")
                self.constraints.returned(*value.layers)

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        arguments = map_arg(node.args, lambda n: values[n])
        named = map_arg(node.kwargs, lambda n: values[n])
        if node.target is operator.getitem:
            whole, key = arguments[0], int(node.args[1])  # type: ignore[arg-type]
            return whole[key] if isinstance(whole, tuple) and key < len(whole) else Value(_shape(node))
        name = schema_name(node.target) or str(node.target)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        self.operations.append(Operation(name, path, _options(node, self.position)))
        if all(v.constant is not None for v in _leaves(arguments, named)):
            return self._constant(node, arguments, named)
        wanted = {int(u.args[1]) for u in node.users if u.target is operator.getitem and u.users}  # type: ignore[arg-type]
        with self.constraints.during(path, f"{path} ({name})" if path else name, wanted):
            return self._by_rule(node, name, arguments, named)

    def _by_rule(self, node: Node, name: str, arguments: Any, named: Any) -> Any:
        read, rule, facts = _leaves(arguments, named), rule_for(name), facts_of(node)
        if rule is None:
            self.constraints.freeze([layer for v in read for layer in v.layers], "no rule")
            return _without_labels(node)
        if facts.computes:
            self.constraints.observes([layer for v in read for layer in v.layers])
        try:
            result = _completed(node, rule(self.constraints, *arguments, **named))
            if facts.moves and not facts.keeps_places:
                self.constraints.moves(read, _leaves(result), of_table=node not in self.of_inputs)
            return result
        except DiscoveryError:
            raise
        except Exception as error:  # a case that the rule does not know
            self.constraints.freeze([layer for v in read for layer in v.layers], f"no rule ({type(error).__name__}: {error})")
            return _without_labels(node)

    def _constant(self, node: Node, arguments: Any, named: Any) -> Any:
        """A value that depends on neither inputs nor parameters is computed."""
        examples = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        if not examples or sum(t.numel() for t in examples) > _TALLY:
            return _without_labels(node)
        concrete = map_values(arguments, lambda v: v.constant), map_values(named, lambda v: v.constant)
        try:
            with torch.random.fork_rng(devices=[]):
                result = node.target(*concrete[0], **concrete[1])  # type: ignore[operator]
        except Exception:
            return _without_labels(node)
        if facts_of(node).unset:  # what stands there by chance tells no units apart
            result = torch.zeros_like(result)
        return tuple(map(_known, result)) if isinstance(result, (tuple, list)) else _known(result)


def _known(tensor: Any) -> Value:
    """A value that is computed; of a sparse one only the shape is known."""
    if not isinstance(tensor, Tensor):
        return Value(())
    constant = tensor if tensor.layout == torch.strided else None
    return Value(tuple(tensor.shape), constant=constant, dtype=tensor.dtype)


def _in_groups(program: Any, names: Mapping[str, str]) -> dict[str, int]:
    """Weights that only convolutions in groups read, all in as many groups; depthwise ones are tensors like any other."""
    found: dict[str, set[int]] = {}
    fx_graph, specs = program.graph, program.graph_signature.input_specs
    for node, spec in zip(fx_graph.find_nodes(op="placeholder"), specs, strict=True):
        shape = getattr(node.meta.get("val"), "shape", ())
        for user in node.users:
            facts = facts_of(user)
            reads = facts.kind == "convolves" and user.args[1] is node and user.args[0] is not node
            groups = user.args[6] if reads and len(user.args) > 6 else 1
            whole = reads and not is_depthwise(shape, groups, facts.transposed)
            found.setdefault(names.get(spec.target, spec.target), set()).add(groups if whole else 1)
    return {name: groups.pop() for name, groups in found.items() if len(groups) == 1 and groups != {1}}


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
    found: list[Value] = []
    map_values(trees, found.append)
    return found


def _shape(node: Node) -> tuple[int, ...]:
    example = node.meta.get("val")
    return tuple(example.shape) if isinstance(example, Tensor) else ()


def _without_labels(node: Node) -> Any:
    example = node.meta.get("val")
    if isinstance(example, (tuple, list)):
        return tuple(Value(tuple(t.shape)) if isinstance(t, Tensor) else Value(()) for t in example)
    return Value(_shape(node), dtype=getattr(example, "dtype", None))


def _completed(node: Node, result: Any) -> Any:
    """Shapes that the rule left open come from the trace; a tensor read by several operations is no single norm's input."""
    example = node.meta.get("val")
    if isinstance(result, tuple):
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else () for t in example]  # type: ignore[union-attr]
        return tuple(_shaped(v, s, node) for v, s in zip(result, shapes, strict=False))
    return _shaped(result if result is not None else Value(()), _shape(node), node)


def _shaped(value: Value, shape: tuple[int, ...], node: Node) -> Value:
    layers = value.layers
    if value.shape == (-1,):  # a declared module: labels along one dimension of a shape that only the trace knows
        layers = tuple(
            LabelMap.along(layer.ids, layer.dims[0] % len(shape), shape) for layer in layers if len(layer.ids) > 1 or shape
        )
    elif value.shape != shape and value.layers:
        raise AssertionError(f"The rule of {node.target} computed shape {value.shape}, the network {shape}.")
    dtype = getattr(node.meta.get("val"), "dtype", None)
    return replace(value, shape=shape, layers=layers, dtype=dtype, bias=value.bias if len(node.users) == 1 else None)


def _options(node: Node, position: Mapping[Node, int]) -> tuple[str, ...]:
    """Wiring and options that belong to the architecture; sizes do not."""
    facts = facts_of(node)

    def shown(argument: Any) -> str:
        if isinstance(argument, Node):
            return f"%{position[argument]}"
        if isinstance(argument, (list, tuple)):
            return f"[{', '.join(map(shown, argument))}]"
        return "_" if facts.sizes and isinstance(argument, int) else repr(argument)

    arguments: list[Any] = list(node.args)
    if facts.kind == "convolves" and len(arguments) > 6:
        shape, groups = arguments[1].meta["val"].shape, arguments[6]
        arguments[6] = "depthwise" if is_depthwise(shape, groups, facts.transposed) else groups
    return (*map(shown, arguments), *(f"{key}={shown(value)}" for key, value in node.kwargs.items()))
