"""What a network computes on many inputs, kept at some positions: it runs batch by batch, once for all that look at it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .affine import rows_at
from .memory import Held, Memory
from .runner import Runner

__all__ = ["Positions", "Recording"]

_Key = tuple[int, int | None]
"""A value by its position in the network, and the dimension of channels where it is wanted at some positions alone."""


class Positions:
    """Which positions of values are looked at, the same of every network and of all values that have equally many.

    Parameters
    ----------
    cap : int
        Largest number over all batches; positions are drawn at random where there are more.
    seed : int
    """

    def __init__(self, cap: int, seed: int):
        self.cap, self.seed = cap, seed
        self.drawn: dict[tuple[int, int], list[Tensor]] = {}

    def of(self, value: Tensor, channel: int, n_batches: int) -> list[Tensor]:
        """For each batch, positions among samples and space or time; of the value of one batch the shape counts alone."""
        n = value.numel() // value.shape[channel]
        key = n, n_batches
        if key not in self.drawn:
            chosen = [torch.arange(n)] * n_batches
            if n * n_batches > self.cap:
                generator, each = torch.Generator().manual_seed(self.seed + n), -(-self.cap // n_batches)
                chosen = [torch.randperm(n, generator=generator)[:each].sort().values for _ in range(n_batches)]
            self.drawn[key] = chosen
        return self.drawn[key]


class Recording:
    """What a parent computes, at the positions that are looked at, or in whole.

    Parameters
    ----------
    steps : callable
        ``steps(batch)`` is the network at its start on one batch.
    n_batches : int
    positions : Positions
    memory : Memory

    Attributes
    ----------
    nodes : list of Node
    state : dict of str to Tensor
    outputs : sequence
        What the network returns for each batch, flat; empty before it has run.
    n_runs : int
        How many times it has run over all batches.
    """

    def __init__(self, runner: Callable[[int], Runner], n_batches: int, positions: Positions, memory: Memory):
        self.runner, self.n_batches, self.positions, self.memory = runner, n_batches, positions, memory
        first = runner(0)
        self.nodes, self.state, self.parameters, self.position = first.nodes, first.state, first.parameters, first.position
        self.device = next((t.device for t in pytree.tree_leaves(list(first.values.values())) if isinstance(t, Tensor)), None)
        self.kept: dict[_Key, Held] = {}
        self.outputs: Sequence[Any] = []
        self.n_runs = 0

    def chosen(self, at: int, channel: int, batch: int) -> Tensor:
        """The positions of a value that are recorded of a batch."""
        return self.positions.of(self.nodes[at].meta["val"], channel, self.n_batches)[batch].to(self.device)

    def record(self, rows: Mapping[int, int], whole: Collection[int] = ()) -> None:
        """Run the network, unless everything is there already.

        Parameters
        ----------
        rows : mapping of int to int
            From values that are wanted at some positions to their dimension of channels.
        whole : collection of int
            Values that are wanted in whole, by their position in the network.
        """
        keys = [self._key(at, channel) for at, channel in rows.items()] + [(at, None) for at in whole]
        wanted: dict[int, list[_Key]] = {}
        for key in keys:
            if key not in self.kept and self.nodes[key[0]] not in self.parameters:
                wanted.setdefault(key[0], []).append(key)
        if not wanted and self.outputs:
            return
        self.n_runs += 1
        outputs = Held(self.memory)
        found = {key: Held(self.memory) for keys in wanted.values() for key in keys}
        for batch in range(self.n_batches):
            runner = self.runner(batch)
            for k, node in enumerate(runner.nodes):
                runner.run(node)
                for key in wanted.get(k, ()):
                    value = runner.values[node][0]
                    found[key].append(value if key[1] is None else rows_at(value, key[1], self.chosen(k, key[1], batch)))
                runner.forget(k)
            outputs.append(runner.outputs(0))
        self.outputs = outputs
        self.kept.update(found)

    def read(self, node: Any, batch: int) -> Any:
        """A value that was recorded in whole, or a parameter."""
        name = self.parameters.get(node)
        return self.kept[self.position[node], None][batch] if name is None else self.state[name]

    def rows(self, at: int, channel: int, batch: int) -> Tensor:
        """A value at its positions, shape (positions, channels)."""
        return self.kept[self._key(at, channel)][batch]

    def _key(self, at: int, channel: int) -> _Key:
        return at, channel % self.nodes[at].meta["val"].dim()
