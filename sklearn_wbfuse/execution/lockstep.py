"""A fused network and its parents run in lockstep: the inputs of every fused layer, and the outputs that it should have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node

from ..layers.operations import operation
from .affine import AffineLayer, rows_at
from .recording import Recording
from .runner import Runner
from .sites import RegressionSite, read_by

__all__ = ["RecordedParent", "RecordedParents", "SiteSamples", "run_in_lockstep"]

_FEW = 10
"""First dimensions with fewer entries over all batches do not count samples (unbatched networks, steps before the batch)."""

Labelled = tuple[str, int]
"""A tensor and an axis of it, for the neurons on this axis."""


class RecordedParent(Protocol):
    """A parent that runs in lockstep with the fused network."""

    recording: Recording

    def position(self, target: int) -> int:
        """Return the position of the operation that corresponds to one of the fused network's."""


class RecordedParents(Protocol):
    """The parents that run in lockstep with the fused network."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __getitem__(self, position: int, /) -> Any: ...

    def mean_rows(self, values: Sequence[Tensor], labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """Average activations, each in its parent's neurons, in the target's neurons."""


class SiteSamples:
    """The samples of one site, batch by batch: the inputs of its layers, and their regression targets.

    Parameters
    ----------
    site : RegressionSite
    fused : Runner
    parents : AlignedParents

    Attributes
    ----------
    positions : list of Tensor
        The positions of each batch among samples and space or time, at which the parents are recorded.
    sample : list of Tensor
        The sample of each position, counted over all batches; if the first dimension of the value is small, each position is a
        sample.
    """

    def __init__(self, site: RegressionSite, fused: Runner, parents: RecordedParents):
        self.site, self.fused, self.parents = site, fused, parents
        self.channel = site.layers[0].channel
        self.others = [n for n in _terms(site) if n not in site.path]
        value = site.node.meta["val"]
        n, size = value.numel() // value.shape[self.channel], len(value)
        positions = parents[0].recording.positions.of(value, self.channel, fused.n_batches)
        device = next(iter(fused.state.values())).device
        self.positions = [c.to(device) for c in positions]
        self.sample = [c * size // n + batch * size for batch, c in enumerate(self.positions)]
        if size * fused.n_batches < _FEW:
            self.sample = list(torch.arange(sum(map(len, positions)), device=device).split([len(c) for c in positions]))

    def of(self, node: Node, batch: int, subset: Any = ...) -> Tensor:
        """Return a value of the fused network at the positions, or a subset of them, of shape (positions, channels)."""
        return rows_at(self.fused.read(node, batch), self.channel, self.positions[batch][subset])

    def of_parent(self, parent: RecordedParent, node: Node, batch: int, subset: Any = ...) -> Tensor:
        """Return the value of a parent that corresponds to a node of the fused network, as in `of`."""
        return parent.recording.rows(parent.position(self.fused.position[node]), self.channel, batch)[subset]

    @property
    def rectified(self) -> bool:
        """Whether only ReLUs read the value."""
        users = self.site.node.users
        return bool(users) and all(operation(u) == "relu" for u in users)

    def target(self, batch: int, subset: Any = ...) -> tuple[Tensor, Tensor | float]:
        """Return what the layers should compute, and the other terms of the sum, each of shape (positions, channels).

        Together they are the weighted mean of the parents' aligned values.
        """
        labelled, rest = self.site.layers[0].labelled, 0.0
        total = self.parents.mean_rows([self.of_parent(p, self.site.node, batch, subset) for p in self.parents], labelled)
        for node in self.others:
            rest = rest + self.of(node, batch, subset)  # type: ignore[assignment]
        return total - rest, rest

    def inputs(self, layer: AffineLayer, batch: int, subset: Any = ...) -> Tensor:
        """Return the inputs of a layer, of shape (groups, positions, inputs)."""
        return layer.rows(layer.read(self.fused, batch), self.positions[batch][subset])


def _terms(site: RegressionSite) -> list[Node]:
    """Return the terms of the sum at a site, or its value if it is no sum."""
    terms, inside = [], [site.node]
    while inside:
        node = inside.pop()
        if node in site.path and operation(node) == "add":
            inside += [a for a in node.args[:2] if isinstance(a, Node)]
        else:
            terms.append(node)
    return terms


def run_in_lockstep(
    fused: Runner,
    parents: RecordedParents,
    sites: Mapping[Node, RegressionSite],
    correct: Callable[[RegressionSite], None],
    *,
    reads: Callable[[RegressionSite], Iterable[Node]] | None = None,
    runs_fused: bool = True,
    runs_parents: bool = True,
) -> None:
    """Record the parents, then run the fused network operation by operation.

    `correct` may change the fused network's tensors before it computes the operations of a site. `reads` returns the values of
    a site that it needs of the parents; see `read_by`.
    """
    for parent in parents if runs_parents else ():
        positions = {node: parent.position(position) for node, position in fused.position.items()}
        parent.recording.record(*read_by(sites.values(), positions, reads))
    if not runs_fused:
        for node in sorted(sites, key=fused.position.__getitem__):
            correct(sites[node])
        return
    waiting = {node for site in sites.values() for node in site.path}
    for site in sites.values():
        position = fused.position[site.node]
        fused.keep((operand for node in site.path for operand in node.all_input_nodes), position)
        fused.keep((layer.end for layer in site.layers), position)
    for position, node in enumerate(fused.nodes):
        if node in sites:
            correct(sites[node])
            for path_node in sites[node].path:
                fused.run(path_node)
        elif node not in waiting:
            fused.run(node)
        fused.forget(position)
