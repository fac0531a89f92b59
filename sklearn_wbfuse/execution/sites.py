"""Regression sites, the values of a network at which one or several layers are corrected together."""

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
    """A value that one or several layers compute, alone or as a sum.

    Attributes
    ----------
    node : Node
        The value.
    layers : list of AffineLayer
        Layers whose outputs only contribute to this value.
    path : list of Node
        The operations from the layers to the value, in order, both included.
    cells : list of Cell
        The cells of a recurrent layer, instead of `layers`.
    """

    node: Node
    layers: list[AffineLayer]
    path: list[Node]
    cells: list[Cell] = field(default_factory=list)


def regression_sites(nodes: list[Node], parameters: Mapping[Node, str]) -> dict[Node, RegressionSite]:
    """Return the regression sites of a network by their value.

    A layer whose output, perhaps after a batch norm, is only used in a sum shares a site with all other layers of that sum, such
    as the branches of a residual network and the projections of its shortcuts. Weights that several operations share have no
    site.
    """
    uses = _uses(nodes, parameters)
    sites: dict[Node, RegressionSite] = {}
    assigned: set[Node] = set()
    for node in nodes:
        cells = cells_of(node, parameters)
        if cells and all(uses[name] == 1 for cell in cells for name in cell.names):
            sites[node] = RegressionSite(node, [], [node], cells)
        layer = affine_layer_of(node, parameters)
        if layer is None or node in assigned or uses[layer.weight] > 1 or (layer.bias and uses[layer.bias] > 1):
            continue
        chain = _follow(layer, parameters, uses)
        assigned.update(chain)
        sums = [] if isinstance(layer, NormLayer) and operation(node) == "batch_norm" else _sums(chain[-1])
        if sums and sums[-1] in sites and _channel(sites[sums[-1]].layers[0]) != _channel(layer):
            sums = []
        chain += sums
        if chain[-1] in sites:
            site = sites[chain[-1]]
            site.layers.append(layer)
            site.path += [n for n in chain if n not in site.path]
        else:
            sites[chain[-1]] = RegressionSite(chain[-1], [layer], chain)
    order = {node: k for k, node in enumerate(nodes)}
    for site in sites.values():
        site.path.sort(key=order.__getitem__)
    return sites


def batch_norms(nodes: list[Node], parameters: Mapping[Node, str]) -> dict[Node, RegressionSite]:
    """Return a site for every batch norm that does not share its running statistics."""
    sites, uses = {}, _uses(nodes, parameters)
    for node in nodes:
        names = _norm_names(node, parameters, uses) if operation(node) == "batch_norm" else {}
        if names:
            layer = NormLayer(node, names.get("weight", names["mean"]), names.get("bias"), norm_names=names)
            sites[node] = RegressionSite(node, [layer], [node])
    return sites


def _uses(nodes: list[Node], parameters: Mapping[Node, str]) -> Counter[str]:
    """Count how often operations read each tensor."""
    uses: Counter[str] = Counter()
    for node in nodes:
        map_arg((node.args, node.kwargs), lambda operand: uses.update([parameters[operand]] if operand in parameters else []))
    return uses


def _norm_names(node: Node, parameters: Mapping[Node, str], uses: Mapping[str, int]) -> dict[str, str]:
    """Return the tensors of a batch norm; none if it has no running statistics, or if a tensor is shared or computed."""
    arguments: dict[str, Any] = dict(zip(("weight", "bias", "mean", "var"), node.args[1:5], strict=True))
    if arguments["mean"] is None or node.args[5]:
        return {}
    operands = {key: operand for key, operand in arguments.items() if operand is not None}
    if any(operand not in parameters or uses[parameters[operand]] > 1 for operand in operands.values()):
        return {}
    return {key: parameters[operand] for key, operand in operands.items()}


def running_statistics(layer: AffineLayer, parameters: Mapping[Node, str]) -> Mapping[str, str]:
    """Return the tensors of the batch norm with running statistics that a layer is or ends with; none if there is none."""
    return layer.norm_names or (_norm_names(layer.node, parameters, Counter()) if operation(layer.node) == "batch_norm" else {})


def _channel(layer: AffineLayer) -> int:
    """Return the dimension of the output that holds neurons, counted from the front."""
    return int(layer.channel % layer.node.meta["val"].dim())


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _follow(layer: AffineLayer, parameters: Mapping[Node, str], uses: Mapping[str, int]) -> list[Node]:
    """Return the operations that only pass on a layer's output; a batch norm of its neurons becomes part of the layer."""
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


def _is_identity(node: Node, operand: Node) -> bool:
    """Return whether an operation returns a value unchanged."""
    return passes_on(node) and node.args[0] is operand and node.meta["val"].dtype == operand.meta["val"].dtype


def _is_sum(node: Any) -> bool:
    if operation(node) != "add" or node.kwargs.get("alpha", 1) != 1:
        return False
    terms = node.args[:2]
    shapes = [t.meta["val"].shape if isinstance(t, Node) and hasattr(t.meta.get("val"), "shape") else None for t in terms]
    return terms[0] is not terms[1] and shapes[0] == shapes[1] == node.meta["val"].shape


def _sums(node: Node) -> list[Node]:
    """Return the chain of sums that a value is added to, as long as nothing else reads it."""
    sums: list[Node] = []
    while (user := _only_user(sums[-1] if sums else node)) is not None and _is_sum(user):
        sums.append(user)
    return sums


def read_by(
    sites: Iterable[RegressionSite], position: Mapping[Node, int], reads: Callable[[RegressionSite], Iterable[Node]] | None = None
) -> tuple[dict[int, int], list[int]]:
    """Return the values to record of a network for some sites; see `Recording.record`.

    These are the values that `reads` returns for a site, by default its own value, with the dimension of their channels, and all
    inputs of recurrent cells.
    """
    rows, whole = {}, []
    for site in sites:
        if site.cells:
            whole += [position[n] for n in pytree.tree_leaves(site.node.args[:2]) if isinstance(n, Node)]
        else:
            nodes = [site.node] if reads is None else reads(site)
            rows.update({position[n]: site.layers[0].channel for n in nodes})
    return rows, whole
