"""How a network reads its inputs: as images, signals, sequences or tokens, and where the values of these stand."""

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
    """What the first layer that reads an input takes it for.

    Attributes
    ----------
    kind : {"images", "signals", "sequences"}
    index : Tensor
        For all that the layer reads of one batch, of shape (n, channels, height, width), (n, channels, length) or (n, length,
        features), the position in the flattened input, counted from 1; 0 for what is padded.
    """

    kind: str
    index: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the layer reads of one batch."""
        return tuple(self.index.shape)

    def placed(self, content: Tensor, around: Tensor, every: int = 1) -> Tensor:
        """An input of which the layer reads `content` in every so many samples; all other values are those of `around`."""
        flat, index = around.reshape(-1).clone(), self.index[::every].reshape(-1)
        content, read = content[::every], index > 0
        flat[index[read] - 1] = content.reshape(-1)[read].to(flat)
        return flat.view(around.shape)


def read_as(kind: str, runner: Runner) -> dict[int, Reading]:
    """How each floating input is read, where it is images, signals or sequences.

    "auto" looks at the first layer that reads it, a convolution of two or one dimensions or a recurrent layer; it may be moved,
    cast and scaled on the way. Other layers, such as linear ones, tell nothing. A kind that is named goes for all floating
    inputs, as they are read or else as they stand: (n, channels, height, width), (n, channels, length), (n, length, features).

    Raises
    ------
    FusionError
        If a kind is named for which no input has the dimensions.
    """
    found = {}
    for leaf, node in enumerate(runner.inputs):
        value = runner.values[node][0]
        if isinstance(value, Tensor) and value.is_floating_point() and kind != "tokens":
            reading = _read_first(node, runner)
            if kind != "auto" and (reading is None or reading.kind != kind):
                index, dims = torch.arange(1, value.numel() + 1).view(value.shape), 4 if kind == "images" else 3
                reading = Reading(kind, index) if value.dim() == dims else None
            if reading is not None:
                found[leaf] = reading
    if kind in ("images", "signals", "sequences") and not found:
        shapes = [tuple(runner.values[node][0].shape) for node in runner.inputs if isinstance(runner.values[node][0], Tensor)]
        needed = {"images": "(n, channels, height, width)", "signals": "(n, channels, length)"}.get(kind, "(n, length, features)")
        raise FusionError(
            f"probe={kind!r} needs a floating input of shape {needed}. Got inputs of shapes {shapes}; use probe='auto' or "
            "'noise'."
        )
    if kind == "tokens" and not any(vocabularies(node, runner) for node in runner.inputs):
        raise FusionError("probe='tokens' needs an input of whole numbers that an embedding reads; use probe='auto' or 'noise'.")
    return found


def _read_first(source: Node, runner: Runner) -> Reading | None:
    """How the first layer reads an input that tells what it is; what is not only moved, cast or scaled is not followed."""
    value = runner.values[source][0]
    start = torch.arange(1, value.numel() + 1, dtype=torch.float64).view(value.shape)  # paddings take no whole numbers
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
    """Whether an operation changes values where they stand, as what works point by point does: they stay images or signals."""
    return facts.kind == "normalises" and facts.weight is not None


def _is_followed(facts: Facts) -> bool:
    """Whether positions can be moved as an operation moves values; what it writes are those of other tensors."""
    return facts.moves and facts.kind != "writes"


def _moved(node: Node, positions: dict[Node, Any], runner: Runner) -> Any:
    """Where the values stand after an operation that moves them; 0 for those of other tensors."""

    def given(other: Node) -> Any:
        if other in positions:
            return positions[other]
        example = other.meta["val"]
        if example.is_floating_point():
            return torch.zeros(example.shape, dtype=torch.float64)
        return runner.values[other][0].cpu() if other in runner.values else torch.zeros(example.shape, dtype=example.dtype)

    arguments: Any = list(map_arg(node.args, given))
    if operation(node) == "constant_pad_nd":
        arguments[2:] = [0]
    elif operation(node) == "pad":
        arguments[3:] = []
    options: Any = {name: value for name, value in map_arg(node.kwargs, given).items() if name != "value"}
    return node.target(*arguments, **options)  # type: ignore[operator]


def vocabularies(node: Node, runner: Runner) -> list[int]:
    """How many rows the embeddings have that an input goes into, through views and casts."""
    found = []
    for user in node.users:
        facts = facts_of(user)
        if facts.kind == "embeds" and user.args[0] in runner.parameters and user.args[1] is node:
            found.append(len(runner.state[runner.parameters[user.args[0]]]))  # type: ignore[index]
        elif facts.kind == "identity" or _is_followed(facts):
            found += vocabularies(user, runner)
    return found
