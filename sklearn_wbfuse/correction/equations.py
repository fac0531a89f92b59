"""Which layers of a network are corrected together, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from .affine import Norm, Writer, operation, writer_of
from .recurrent import Cell, cells_of

__all__ = ["Equation", "batch_norms", "equations"]

_IDENTITIES = {"dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy", "feature_dropout"}


@dataclass(eq=False)
class Equation:
    """A value of the network that one or several layers write, alone or into a sum.

    Attributes
    ----------
    at : Node
        The value.
    writers : list of Writer
        Layers whose outputs go nowhere else.
    between : list of Node
        The operations from the writers to the value, in order, both included.
    cells : list of Cell
        Instead of writers: those of a recurrent layer.
    """

    at: Node
    writers: list[Writer]
    between: list[Node]
    cells: list[Cell] = field(default_factory=list)


def equations(nodes: list[Node], parameters: Mapping[Node, str]) -> dict[Node, Equation]:
    """The equations of a network by their value.

    A layer whose output goes through nothing but a batch norm into a sum is regressed with all others that write into the sum:
    the branches of a residual network, projections of its shortcuts. Weights that several operations share are left out.
    """
    uses = Counter(parameters[n] for n in nodes if n in parameters for _ in n.users)
    found: dict[Node, Equation] = {}
    taken: set[Node] = set()
    for node in nodes:
        cells = cells_of(node, parameters)
        if cells and all(uses[name] == 1 for cell in cells for name in (cell.w_ih, cell.w_hh)):
            found[node] = Equation(node, [], [node], cells)
        writer = writer_of(node, parameters)
        if writer is None or node in taken or uses[writer.weight] > 1 or (writer.bias and uses[writer.bias] > 1):
            continue
        chain = [node]
        end = _follow(writer, node, parameters, chain)
        taken.update(chain)
        top = end if isinstance(writer, Norm) and operation(node) == "batch_norm" else _sum(end, chain)
        if top in found:
            found[top].writers.append(writer)
            found[top].between += [n for n in chain if n not in found[top].between]
        else:
            found[top] = Equation(top, [writer], chain)
    order = {node: k for k, node in enumerate(nodes)}
    for equation in found.values():
        equation.between.sort(key=order.__getitem__)
    return found


def batch_norms(nodes: list[Node], parameters: Mapping[Node, str]) -> dict[Node, Equation]:
    """Every batch norm with running statistics of its own, alone."""
    found = {}
    for node in nodes:
        names = _norm_names(node, parameters) if operation(node) == "batch_norm" else {}
        if names:
            writer = Norm(node, names.get("weight", names["mean"]), names.get("bias"), norm_names=names)
            found[node] = Equation(node, [writer], [node])
    return found


def _norm_names(node: Node, parameters: Mapping[Node, str]) -> dict[str, str]:
    """The tensors of a batch norm that it has, or none if it has no running statistics or one of them is computed."""
    given = dict(zip(("weight", "bias", "mean", "var"), node.args[1:5], strict=True))
    if given["mean"] is None or any(g is not None and g not in parameters for g in given.values()):
        return {}
    return {key: parameters[g] for key, g in given.items() if g is not None}  # type: ignore[index]


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _follow(writer: Writer, node: Node, parameters: Mapping[Node, str], chain: list[Node]) -> Node:
    """The end of what only the writer's output goes through; a batch norm on the way becomes a part of the writer."""
    while (user := _only_user(node)) is not None:
        kind = operation(user)
        if kind == "batch_norm" and writer.norm is None and not isinstance(writer, Norm) and user.args[0] is node:
            names = _norm_names(user, parameters)
            if not names:
                return node
            writer.norm, writer.norm_names = user, names
        elif kind not in _IDENTITIES:
            return node
        node = user
        chain.append(node)
    return node


def _is_sum(node: Any) -> bool:
    if operation(node) != "add" or node.kwargs.get("alpha", 1) != 1:
        return False
    terms = node.args[:2]
    shapes = [t.meta["val"].shape if isinstance(t, Node) and hasattr(t.meta.get("val"), "shape") else None for t in terms]
    return terms[0] is not terms[1] and shapes[0] == shapes[1] == node.meta["val"].shape


def _sum(node: Node, chain: list[Node]) -> Node:
    """The sum that a value goes into and nothing else, or the value."""
    while (user := _only_user(node)) is not None and _is_sum(user):
        node = user
        chain.append(node)
    return node
