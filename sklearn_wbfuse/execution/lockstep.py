"""A fused network and its parents run side by side: at every layer, what the fused one reads and what it should compute."""

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

__all__ = ["Beside", "Companions", "SiteSamples", "run_in_lockstep"]

_FEW = 10
"""A first dimension of fewer entries over all batches holds no samples (an unbatched network, steps before the batch)."""

Labelled = tuple[str, int]
"""An axis of a tensor, for the neurons that stand on it."""


class Beside(Protocol):
    """What is asked of a parent that runs beside the fused network."""

    recording: Recording

    def position(self, target: int) -> int:
        """The operation that stands for one of the fused network's."""


class Companions(Protocol):
    """What is asked of the parents together."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __getitem__(self, position: int, /) -> Any: ...

    def mean_rows(self, values: Sequence[Tensor], labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """The mean of activations, each in its parent's neurons, in the target's."""


class SiteSamples:
    """The rows of one equation, batch by batch: what its writers read, and what they leave to be explained.

    Parameters
    ----------
    equation : Equation
    fused : Steps
    parents : AlignedParents

    Attributes
    ----------
    chosen : list of Tensor
        For each batch the positions taken, among samples and space or time: those that the parents are recorded at.
    sample : list of Tensor
        The sample that each belongs to, counted over all batches; where the first dimension of the value holds but a few, each
        row is one.
    """

    def __init__(self, site: RegressionSite, fused: Runner, parents: Companions):
        self.site, self.fused, self.parents = site, fused, parents
        self.channel = site.layers[0].channel
        self.others = [n for n in _terms(site) if n not in site.between]
        value = site.at.meta["val"]
        n, size = value.numel() // value.shape[self.channel], len(value)
        chosen = parents[0].recording.positions.of(value, self.channel, fused.n_batches)
        device = next(iter(fused.state.values())).device
        self.chosen = [c.to(device) for c in chosen]
        self.sample = [c * size // n + batch * size for batch, c in enumerate(self.chosen)]
        if size * fused.n_batches < _FEW:
            self.sample = list(torch.arange(sum(map(len, chosen)), device=device).split([len(c) for c in chosen]))

    def of(self, node: Node, batch: int, taken: Any = ...) -> Tensor:
        """The fused network's value at the positions taken, shape (positions, channels)."""
        return rows_at(self.fused.read(node, batch), self.channel, self.chosen[batch][taken])

    def of_parent(self, parent: Beside, node: Node, batch: int, taken: Any = ...) -> Tensor:
        """A parent's; `node` is the fused network's."""
        return parent.recording.rows(parent.position(self.fused.position[node]), self.channel, batch)[taken]

    @property
    def rectified(self) -> bool:
        """Whether nothing but ReLUs reads the value."""
        users = self.site.at.users
        return bool(users) and all(operation(u) == "relu" for u in users)

    def target(self, batch: int, taken: Any = ...) -> tuple[Tensor, Tensor | float]:
        """What the writers should compute, and what comes into the sum from elsewhere, shape (positions, channels).

        Together they are the weighted mean of the parents' aligned values; `taken` are some of the positions.
        """
        labelled, rest = self.site.layers[0].labelled, 0.0
        total = self.parents.mean_rows([self.of_parent(p, self.site.at, batch, taken) for p in self.parents], labelled)
        for node in self.others:
            rest = rest + self.of(node, batch, taken)  # type: ignore[assignment]
        return total - rest, rest

    def inputs(self, layer: AffineLayer, batch: int, taken: Any = ...) -> Tensor:
        """What a writer reads, shape (groups, positions, inputs)."""
        return layer.rows(layer.read(self.fused, batch), self.chosen[batch][taken])


def _terms(site: RegressionSite) -> list[Node]:
    """The terms of the sum that an equation is about, or its value."""
    found, inside = [], [site.at]
    while inside:
        node = inside.pop()
        if node in site.between and operation(node) == "add":
            inside += [a for a in node.args[:2] if isinstance(a, Node)]
        else:
            found.append(node)
    return found


def run_in_lockstep(
    fused: Runner,
    parents: Companions,
    found: Mapping[Node, RegressionSite],
    correct: Callable[[RegressionSite], None],
    *,
    reads: Callable[[RegressionSite], Iterable[Node]] | None = None,
    runs_fused: bool = True,
    runs_parents: bool = True,
) -> None:
    """Record the parents, then run the fused network operation by operation.

    `correct` may change the fused network's tensors before it computes the operations of a site. `reads` are the values of a
    site that it wants of the parents; see `read_by`.
    """
    for parent in parents if runs_parents else ():
        position = {node: parent.position(k) for node, k in fused.position.items()}
        parent.recording.record(*read_by(found.values(), position, reads))
    if not runs_fused:
        for node in sorted(found, key=fused.position.__getitem__):
            correct(found[node])
        return
    waiting = {node for e in found.values() for node in e.between}
    for site in found.values():
        at = fused.position[site.at]
        fused.keep((r for n in site.between for r in n.all_input_nodes), at)
        fused.keep((w.end for w in site.layers), at)
    for k, node in enumerate(fused.nodes):
        if node in found:
            correct(found[node])
            for n in found[node].between:
                fused.run(n)
        elif node not in waiting:
            fused.run(node)
        fused.forget(k)
