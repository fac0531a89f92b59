"""Ranges of the outputs of a network, as far as its operations imply them: which outputs are probabilities."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from ..exceptions import FusionError
from ..layers.operations import facts_of, operation, passes_on
from .export import export
from .modules import plain_copy

__all__ = ["returns_probabilities", "seems_probable"]

Range = tuple[float, float]
"""A lower and an upper bound of values."""

Read = Callable[[int], Range]
"""The range of an operation's argument at a position."""

_ANY: Range = (-math.inf, math.inf)
_TOLERANCE = 1e-3  # p + eps still counts as a probability
_MAX_SIZE = 1 << 16  # larger constants are not examined


def returns_probabilities(program: torch.export.ExportedProgram) -> bool:
    """Return whether operations restrict all outputs of a traced network to values within 0 and 1.

    These are a softmax or a sigmoid, ``1 - p``, ``exp`` of log-probabilities, ``x / x.sum()`` of nonnegative numbers, and
    operations that move, cast, clamp, select or average their values. Logits and log-probabilities are not bounded.
    """
    ranges: dict[Node, Range] = {}
    specs = iter(program.graph_signature.input_specs)
    returned: list[Any] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            ranges[node] = _range_of_input(next(specs), program)
        elif node.op == "call_function":
            ranges[node] = _computed(node, ranges)
        elif node.op == "output":
            outputs = zip(node.args[0], program.graph_signature.output_specs, strict=True)
            returned = [n for n, s in outputs if s.kind == OutputKind.USER_OUTPUT and isinstance(n, Node)]
    return bool(returned) and all(low >= 0 and high <= 1 + _TOLERANCE for low, high in map(ranges.__getitem__, returned))


def seems_probable(model: nn.Module, inputs: Sequence[Any]) -> bool:
    """Return whether a network is recognised to return probabilities; False if it cannot be traced on inputs of its dtype."""
    try:
        plain = plain_copy(model).to("cpu").float()
        floats = [t.cpu().float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in inputs]
        return returns_probabilities(export(plain, floats))
    except (FusionError, RuntimeError, IndexError):
        return False


def _range_of_input(spec: Any, program: torch.export.ExportedProgram) -> Range:
    """Return the range of a constant or buffer; inputs and parameters may be anything."""
    if spec.kind not in (InputKind.CONSTANT_TENSOR, InputKind.BUFFER):
        return _ANY
    tensors: Mapping[str, Any] = program.constants if spec.target in program.constants else program.state_dict
    value = tensors.get(spec.target)
    if not isinstance(value, Tensor) or value.is_complex() or not 0 < value.numel() <= _MAX_SIZE or value.is_meta:
        return _ANY
    low, high = (float(end) for end in value.detach().double().aminmax())
    return _ANY if math.isnan(low) else (low, high)


def _computed(node: Node, ranges: Mapping[Node, Range]) -> Range:
    """Return the range of an operation's result."""
    if node.target is operator.getitem:
        source, position = node.args
        assert isinstance(source, Node)
        return _ANY if facts_of(source).positions and position else ranges[source]

    def read(position: int) -> Range:
        return _range_of(node.args[position], ranges) if position < len(node.args) else _ANY

    facts = facts_of(node)
    if facts.bounds is not None:
        return facts.bounds
    if facts.averages or passes_on(node):
        return read(0)
    rule = _RULES.get(operation(node))
    return rule(node, read) if rule is not None else _ANY


def _range_of(value: Any, ranges: Mapping[Node, Range]) -> Range:
    """Return the range of a node, a number, or several of them."""
    if isinstance(value, Node):
        return ranges.get(value, _ANY)
    if isinstance(value, (bool, int, float)):
        return float(value), float(value)
    return _hull(*(_range_of(v, ranges) for v in value)) if isinstance(value, (list, tuple)) and value else _ANY


def _hull(*ranges: Range) -> Range:
    """Return the smallest range that contains all ranges."""
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _is_pair(node: Node) -> bool:
    """Return whether an operation has two operands."""
    return len(node.args) > 1 and isinstance(node.args[1], Node)


def _origin(node: Any) -> Any:
    """Return the node to which a chain of operations that preserve all values was applied."""
    while isinstance(node, Node) and (facts_of(node).kind in ("reshapes", "expands") or passes_on(node)):
        node = node.args[0]
    return node


def _times(a: float, b: float) -> float:
    """Multiply, with 0 times infinity equal to 0."""
    return 0.0 if 0 in (a, b) else a * b


def _product(a: Range, b: Range) -> Range:
    """Return the range of products."""
    ends = [_times(x, y) for x in a for y in b]
    return min(ends), max(ends)


def _added(node: Node, read: Read, sign: float = 1.0) -> Range:
    """Return the range of a sum or a difference."""
    alpha = node.kwargs.get("alpha", 1)
    times = sign * (float(alpha) if isinstance(alpha, (int, float)) else math.nan)
    first, second = read(0), read(1)
    if sign < 0 and operation(_origin(node.args[1])) == "logsumexp" and _same(_origin(node.args[1]).args[0], node.args[0]):
        return -math.inf, 0.0
    if math.isnan(times):
        return _ANY
    low, high = _product(second, (times, times))
    return first[0] + low, first[1] + high


def _reversed(node: Node, read: Read) -> Range:
    """Return the range of a difference with exchanged operands."""
    (low, high), (start, end) = read(0), read(1)
    return (start - high, end - low) if node.kwargs.get("alpha", 1) == 1 else _ANY


def _same(a: Any, b: Any, depth: int = 8) -> bool:
    """Return whether two values are the same node, or computed alike by a few operations, as in ``x.exp() / x.exp().sum()``."""
    a, b = _origin(a), _origin(b)
    if not isinstance(a, Node) or not isinstance(b, Node) or a is b or not depth:
        return a is b or (not isinstance(a, Node) and not isinstance(b, Node) and a == b)
    same_operation = a.op == "call_function" and (a.target, a.kwargs, len(a.args)) == (b.target, b.kwargs, len(b.args))
    return same_operation and all(_same(x, y, depth - 1) for x, y in zip(a.args, b.args, strict=True))


def _inverse(values: Range) -> Range:
    """Return the range of reciprocals."""
    low, high = values
    if low < 0 < high:
        return _ANY
    if low >= 0:
        return (1 / high if high else math.inf), (1 / low if low else math.inf)
    return (1 / high if high else -math.inf), 1 / low


def _quotient(node: Node, read: Read) -> Range:
    """Return the range of a quotient, which is a share if the divisor is a sum of nonnegative numbers."""
    if node.kwargs.get("rounding_mode") is not None:
        return _ANY
    total = _origin(node.args[1])
    while operation(total) in ("clamp", "clamp_min", "add") and not _is_pair(total):  # against division by 0
        total = _origin(total.args[0])
    is_sum = operation(total) == "sum" or (operation(total) in ("linalg_vector_norm", "norm") and 1 in total.args[1:2])
    if is_sum and read(0)[0] >= 0 and _same(total.args[0], node.args[0]):
        return 0.0, 1.0
    return _product(read(0), _inverse(read(1)))


def _sum(node: Node, read: Read) -> Range:
    """Return the range of a sum along dimensions."""
    summed = _origin(node.args[0])
    if operation(summed) == "mul" and _weighted(summed):
        return _mixture(summed, read(0))
    shapes = [getattr(n.meta.get("val"), "shape", None) for n in (node.args[0], node) if isinstance(n, Node)]
    if len(shapes) < 2 or None in shapes or not math.prod(shapes[1]):  # type: ignore[arg-type]
        return _ANY
    count = float(math.prod(shapes[0]) // math.prod(shapes[1]))  # type: ignore[arg-type]
    return _product(read(0), (count, count))


def _weighted(node: Node) -> bool:
    """Return whether one of the factors is a softmax: the gates of a mixture, the weights of attention."""
    factors = [f for a in node.args for f in (a if isinstance(a, (list, tuple)) else [a]) if isinstance(f, Node)]
    return any(facts_of(_origin(f)).kind == "softmax" for f in factors)


def _mixture(node: Node, products: Range) -> Range:
    """Return the range of a mean, weighted by gates, of numbers within 0 and 1."""
    return (0.0, 1.0) if products[0] >= 0 and products[1] <= 1 + _TOLERANCE else _ANY


def _contracted(node: Node, read: Read) -> Range:
    """Return the range of a contraction."""
    factors = [read(0), read(1)] if operation(node) != "einsum" else [read(1)] * 2
    return _mixture(node, _product(*factors)) if _weighted(node) else _ANY


def _bounded(low: int | None, high: int | None) -> Callable[[Node, Read], Range]:
    """Return a rule for a clamp whose bounds are arguments at some positions."""

    def rule(node: Node, read: Read) -> Range:
        least, most = read(0)
        if low is not None and len(node.args) > low and node.args[low] is not None:
            least, most = max(least, read(low)[0]), max(most, read(low)[1])
        if high is not None and len(node.args) > high and node.args[high] is not None:
            least, most = min(least, read(high)[0]), min(most, read(high)[1])
        return least, most

    return rule


def _rising(function: Callable[[float], float]) -> Callable[[Node, Read], Range]:
    """Return a rule for a nondecreasing function, on numbers where it is defined."""

    def end(value: float) -> float:
        try:
            return function(value)
        except OverflowError:
            return math.inf
        except ValueError:  # the logarithm of 0; NaN elsewhere
            return -math.inf

    return lambda node, read: (end(read(0)[0]), end(read(0)[1]))


def _absolute(node: Node, read: Read) -> Range:
    """Return the range of absolute values."""
    low, high = read(0)
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _power(node: Node, read: Read) -> Range:
    """Return the range of a power."""
    (low, high), (exponent, largest) = read(0), read(1) if operation(node) == "pow" else (2.0, 2.0)
    if exponent == largest and exponent > 0 and low >= 0:
        return low**exponent, high**exponent
    return (0.0, math.inf) if exponent == largest and exponent % 2 == 0 else _ANY


def _filled(node: Node, read: Read) -> Range:
    """Return the range of zeros or given numbers next to the operand's values."""
    numbers = [float(a) for a in node.args[1:] if isinstance(a, (int, float))]
    return _hull(read(0), *((n, n) for n in [0.0, *numbers]))


def _larger(node: Node, read: Read, pick: Callable[..., float] = max) -> Range:
    """Return the range of the maximum or minimum of two operands; of one operand, of some of its values."""
    return tuple(map(pick, read(0), read(1))) if _is_pair(node) else read(0)  # type: ignore[return-value]


_RULES: dict[str, Callable[[Node, Read], Range]] = {
    "add": _added,
    "sub": lambda node, read: _added(node, read, -1.0),
    "rsub": _reversed,
    "mul": lambda node, read: _product(read(0), read(1)),
    "div": _quotient,
    "reciprocal": lambda node, read: _inverse(read(0)),
    "neg": lambda node, read: (-read(0)[1], -read(0)[0]),
    "abs": _absolute,
    **dict.fromkeys(["pow", "square"], _power),
    "sum": _sum,
    **dict.fromkeys(["prod", "cumprod"], lambda node, read: (0.0, 1.0) if read(0)[0] >= 0 and read(0)[1] <= 1 else _ANY),
    **dict.fromkeys(["matmul", "bmm", "mm", "mv", "einsum"], _contracted),
    "exp": _rising(math.exp),
    "expm1": _rising(math.expm1),
    "log": _rising(math.log),
    "log1p": _rising(math.log1p),
    "sqrt": _rising(math.sqrt),
    "round": _rising(lambda x: float(round(x)) if math.isfinite(x) else x),
    "relu": _rising(lambda x: max(x, 0.0)),
    "relu6": _rising(lambda x: min(max(x, 0.0), 6.0)),
    "clamp": _bounded(1, 2),
    "hardtanh": lambda node, read: _bounded(1, 2)(node, read) if len(node.args) == 3 else (-1.0, 1.0),
    "clamp_min": _bounded(1, None),
    "clamp_max": _bounded(None, 1),
    **dict.fromkeys(["max", "maximum"], _larger),
    **dict.fromkeys(["min", "minimum"], lambda node, read: _larger(node, read, min)),
    "where": lambda node, read: _hull(read(1), read(2)),
    "masked_fill": lambda node, read: _hull(read(0), read(2)),
    "scatter": lambda node, read: _ANY if "reduce" in node.kwargs else _hull(read(0), read(3)),
    "index_put": lambda node, read: _ANY if len(node.args) > 3 and node.args[3] else _hull(read(0), read(2)),
    **dict.fromkeys(["select_scatter", "slice_scatter"], lambda node, read: _hull(read(0), read(1))),
    **dict.fromkeys(["constant_pad_nd", "pad", "nan_to_num"], _filled),
    "copy": lambda node, read: read(1),
    "full": lambda node, read: read(1),
    "full_like": lambda node, read: read(1),
    "new_full": lambda node, read: read(2),
    "scalar_tensor": lambda node, read: read(0),
}
