"""The kinds of a network's inputs, images, signals, sequences or tokens, by the layers that read them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from ..exceptions import FusionError
from ..layers.operations import Facts, facts_of, operation
from .cells import cells_of
from .runner import Runner

__all__ = ["Reading", "read_as", "vocabularies"]


@dataclass(eq=False)
class Reading:
    """The kind of an input, by the first layer that reads it.

    Attributes
    ----------
    kind : {"images", "signals", "sequences"}
    index : Tensor
        For each value of one batch that the layer reads, of shape (n, channels, height, width), (n, channels, length) or
        (n, length, features), the position in the flattened input, counted from 1; 0 for padding.
    """

    kind: str
    index: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which the layer reads one batch."""
        return tuple(self.index.shape)

    def placed(self, content: Tensor, background: Tensor, every: int = 1) -> Tensor:
        """Return an input with `content` where the layer reads every `every`-th sample, and `background` elsewhere."""
        flat, index = background.reshape(-1).clone(), self.index[::every].reshape(-1)
        content, is_read = content[::every], index > 0
        flat[index[is_read] - 1] = content.reshape(-1)[is_read].to(flat)
        return flat.view(background.shape)


def read_as(kind: str, runner: Runner) -> dict[int, Reading]:
    """Return how each floating-point input is read, if it is images, signals or sequences.

    "auto" follows the input to the first layer that reads it, a convolution of two or one dimensions or a recurrent layer; the
    input may be rearranged, cast and scaled on the way. Other layers, such as linear ones, determine nothing. Any other kind
    applies to all floating-point inputs, in the layout in which they are read or else as they are: (n, channels, height, width),
    (n, channels, length), (n, length, features).

    Raises
    ------
    FusionError
        If no input has the dimensions of the kind.
    """
    readings = {}
    for leaf, node in enumerate(runner.inputs):
        value = runner.values[node][0]
        if isinstance(value, Tensor) and value.is_floating_point() and kind != "tokens":
            reading = _read_first(node, runner)
            if kind != "auto" and (reading is None or reading.kind != kind):
                index, dims = torch.arange(1, value.numel() + 1).view(value.shape), 4 if kind == "images" else 3
                reading = Reading(kind, index) if value.dim() == dims else None
            if reading is not None:
                readings[leaf] = reading
    if kind in ("images", "signals", "sequences") and not readings:
        shapes = [tuple(runner.values[node][0].shape) for node in runner.inputs if isinstance(runner.values[node][0], Tensor)]
        needed = {"images": "(n, channels, height, width)", "signals": "(n, channels, length)"}.get(kind, "(n, length, features)")
        raise FusionError(
            f"probe={kind!r} needs a floating-point input of shape {needed}. Got inputs of shapes {shapes}; use probe='auto' or "
            "'noise'."
        )
    if kind == "tokens" and not any(vocabularies(node, runner) for node in runner.inputs):
        raise FusionError("probe='tokens' needs an input that an embedding reads. Got none; use probe='auto' or 'noise'.")
    return readings


def _read_first(source: Node, runner: Runner) -> Reading | None:
    """Return how the first layer reads an input that is only rearranged, cast or scaled before; None if it determines nothing."""
    value = runner.values[source][0]
    start = torch.arange(1, value.numel() + 1, dtype=torch.float64).view(value.shape)  # padding needs floats
    positions: dict[Node, Any] = {source: start}
    for node in runner.nodes:
        before = next((a for a in node.all_input_nodes if a in positions), None)
        if before is None or node.op != "call_function":
            continue
        facts, index = facts_of(node), positions[before]
        if node.args[0] is before and facts.space in (1, 2) and not facts.transposed:
            whole = index if index.dim() == facts.space + 2 else index[None]
            return Reading("images" if facts.space == 2 else "signals", whole.long())
        if cells_of(node, runner.parameters) and node.args[0] is before:
            whole = index if index.dim() == 3 else index[:, None]
            whole = whole if node.args[-1] and index.dim() == 3 else whole.transpose(0, 1)
            return Reading("sequences", whole.long())
        if node.target is operator.getitem:
            positions[node] = index[node.args[1]]
        elif facts.kind == "identity" or _is_norm(facts) or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            shape = node.meta["val"].shape
            if index.dim() <= len(shape):
                positions[node] = index.expand(shape)
        elif _is_followed(facts):
            positions[node] = _moved(node, positions, runner)
    return None


def _is_norm(facts: Facts) -> bool:
    """Return whether an operation normalises values without rearranging them, so that images stay images."""
    return facts.kind == "normalises" and facts.weight is not None


def _is_followed(facts: Facts) -> bool:
    """Return whether an operation only rearranges values, so that it can be applied to their positions."""
    return facts.moves and facts.kind != "writes"


def _moved(node: Node, positions: dict[Node, Any], runner: Runner) -> Any:
    """Return the positions of the values after an operation that rearranges them; 0 for values of other tensors."""

    def positions_or_value(operand: Node) -> Any:
        if operand in positions:
            return positions[operand]
        example = operand.meta["val"]
        if example.is_floating_point():
            return torch.zeros(example.shape, dtype=torch.float64)
        return runner.values[operand][0].cpu() if operand in runner.values else torch.zeros(example.shape, dtype=example.dtype)

    arguments: Any = list(map_arg(node.args, positions_or_value))
    if operation(node) == "constant_pad_nd":
        arguments[2:] = [0]
    elif operation(node) == "pad":
        arguments[3:] = []
    options: Any = {name: value for name, value in map_arg(node.kwargs, positions_or_value).items() if name != "value"}
    return node.target(*arguments, **options)  # type: ignore[operator]


def vocabularies(node: Node, runner: Runner) -> list[int]:
    """Return the numbers of rows of the embeddings that read an input, perhaps through views and casts."""
    sizes = []
    for user in node.users:
        facts = facts_of(user)
        if facts.kind == "embeds" and user.args[0] in runner.parameters and user.args[1] is node:
            sizes.append(len(runner.state[runner.parameters[user.args[0]]]))  # type: ignore[index]
        elif facts.kind == "identity" or _is_followed(facts):
            sizes += vocabularies(user, runner)
    return sizes
