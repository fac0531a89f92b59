"""Which layers of a network are corrected together, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..layers.operations import operation, passes_on
from .affine import AffineLayer, NormLayer, affine_layer_of
from .cells import Cell, cells_of

__all__ = ["RegressionSite", "batch_norms", "read_by", "regression_sites", "running_statistics"]


@dataclass(eq=False)
class RegressionSite:
    """A value of the network that one or several layers write, alone or into a sum.

    Attributes
    ----------
    at : Node
        The value.
    writers : list of AffineLayer
        Layers whose outputs go nowhere else.
    between : list of Node
        The operations from the writers to the value, in order, both included.
    cells : list of Cell
        Instead of writers: those of a recurrent layer.
    """

    at: Node
    layers: list[AffineLayer]
    between: list[Node]
    cells: list[Cell] = field(default_factory=list)


def regression_sites(nodes: list[Node], parameters: Mapping[Node, str]) -> dict[Node, RegressionSite]:
    """The equations of a network by their value.

    A layer whose output goes through nothing but a batch norm into a sum is regressed with all others that write into the sum:
    the branches of a residual network, projections of its shortcuts. Weights that several operations share are left out.
    """
    uses = _uses(nodes, parameters)
    found: dict[Node, RegressionSite] = {}
    taken: set[Node] = set()
    for node in nodes:
        cells = cells_of(node, parameters)
        if cells and all(uses[name] == 1 for cell in cells for name in cell.names):
            found[node] = RegressionSite(node, [], [node], cells)
        layer = affine_layer_of(node, parameters)
        if layer is None or node in taken or uses[layer.weight] > 1 or (layer.bias and uses[layer.bias] > 1):
            continue
        chain = _follow(layer, parameters, uses)
        taken.update(chain)
        sums = [] if isinstance(layer, NormLayer) and operation(node) == "batch_norm" else _sums(chain[-1])
        if sums and sums[-1] in found and _channel(found[sums[-1]].layers[0]) != _channel(layer):
            sums = []
        chain += sums
        if chain[-1] in found:
            site = found[chain[-1]]
            site.layers.append(layer)
            site.between += [n for n in chain if n not in site.between]
        else:
            found[chain[-1]] = RegressionSite(chain[-1], [layer], chain)
    order = {node: k for k, node in enumerate(nodes)}
    for site in found.values():
        site.between.sort(key=order.__getitem__)
    return found


def batch_norms(nodes: list[Node], parameters: Mapping[Node, str]) -> dict[Node, RegressionSite]:
    """Every batch norm with running statistics of its own, alone."""
    found, uses = {}, _uses(nodes, parameters)
    for node in nodes:
        names = _norm_names(node, parameters, uses) if operation(node) == "batch_norm" else {}
        if names:
            layer = NormLayer(node, names.get("weight", names["mean"]), names.get("bias"), norm_names=names)
            found[node] = RegressionSite(node, [layer], [node])
    return found


def _uses(nodes: list[Node], parameters: Mapping[Node, str]) -> Counter[str]:
    """How often operations read each tensor."""
    uses: Counter[str] = Counter()
    for node in nodes:
        map_arg((node.args, node.kwargs), lambda n: uses.update([parameters[n]] if n in parameters else []))
    return uses


def _norm_names(node: Node, parameters: Mapping[Node, str], uses: Mapping[str, int]) -> dict[str, str]:
    """The tensors that a batch norm has; none if it uses no running statistics, or if a tensor is shared or computed."""
    given = dict(zip(("weight", "bias", "mean", "var"), node.args[1:5], strict=True))
    if given["mean"] is None or node.args[5]:
        return {}
    if any(g is not None and (g not in parameters or uses[parameters[g]] > 1) for g in given.values()):  # type: ignore[index]
        return {}
    return {key: parameters[g] for key, g in given.items() if g is not None}  # type: ignore[index]


def running_statistics(layer: AffineLayer, parameters: Mapping[Node, str]) -> Mapping[str, str]:
    """The tensors of the batch norm that a writer is or ends with, where it has running statistics; else none."""
    return layer.norm_names or (_norm_names(layer.node, parameters, Counter()) if operation(layer.node) == "batch_norm" else {})


def _channel(layer: AffineLayer) -> int:
    """The dimension of the output that holds neurons, from the front."""
    return int(layer.channel % layer.node.meta["val"].dim())


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _follow(layer: AffineLayer, parameters: Mapping[Node, str], uses: Mapping[str, int]) -> list[Node]:
    """What only the writer's output goes through; a batch norm of its neurons on the way becomes a part of the writer."""
    chain = [layer.node]
    while (user := _only_user(chain[-1])) is not None:
        names: dict[str, str] = {}
        if operation(user) == "batch_norm" and layer.norm is None and not isinstance(layer, NormLayer) and _channel(layer) == 1:
            names = _norm_names(user, parameters, uses)
        if names:
            layer.norm, layer.norm_names = user, names
        elif not _is_identity(user, chain[-1]):
            break
        chain.append(user)
    return chain


def _is_identity(node: Node, of: Node) -> bool:
    """Whether an operation hands a value on as it is."""
    return passes_on(node) and node.args[0] is of and node.meta["val"].dtype == of.meta["val"].dtype


def _is_sum(node: Any) -> bool:
    if operation(node) != "add" or node.kwargs.get("alpha", 1) != 1:
        return False
    terms = node.args[:2]
    shapes = [t.meta["val"].shape if isinstance(t, Node) and hasattr(t.meta.get("val"), "shape") else None for t in terms]
    return terms[0] is not terms[1] and shapes[0] == shapes[1] == node.meta["val"].shape


def _sums(node: Node) -> list[Node]:
    """The sums that a value goes into one after the other, and nothing else."""
    found: list[Node] = []
    while (user := _only_user(found[-1] if found else node)) is not None and _is_sum(user):
        found.append(user)
    return found


def read_by(
    found: Iterable[RegressionSite], position: Mapping[Node, int], reads: Callable[[RegressionSite], Iterable[Node]] | None = None
) -> tuple[dict[int, int], list[int]]:
    """The values that equations want of a network, the layers' at some positions, with the dimension of channels, those that
    recurrent cells read in whole; by default the values that the equations are about.
    """
    rows, whole = {}, []
    for site in found:
        if site.cells:
            whole += [position[n] for n in pytree.tree_leaves(site.at.args[:2]) if isinstance(n, Node)]
        else:
            nodes = [site.at] if reads is None else reads(site)
            rows.update({position[n]: site.layers[0].channel for n in nodes})
    return rows, whole
