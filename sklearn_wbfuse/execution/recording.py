"""The activations of a network on many inputs at some positions; it runs batch by batch, once for everything that reads them."""

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
"""The position of a value in the network, and the dimension of its channels if it is only recorded at some positions."""


class Positions:
    """The recorded positions of values, the same for all networks and for all values of the same number of positions.

    Parameters
    ----------
    cap : int
        Largest number over all batches; of more positions a random selection is recorded.
    seed : int
    """

    def __init__(self, cap: int, seed: int):
        self.cap, self.seed = cap, seed
        self.drawn: dict[tuple[int, int], list[Tensor]] = {}

    def of(self, value: Tensor, channel: int, n_batches: int) -> list[Tensor]:
        """Return the positions among samples and space or time for each batch; only the shape of `value` matters."""
        n = value.numel() // value.shape[channel]
        key = n, n_batches
        if key not in self.drawn:
            chosen = [torch.arange(n)] * n_batches
            if n * n_batches > self.cap:
                generator, n_per_batch = torch.Generator().manual_seed(self.seed + n), -(-self.cap // n_batches)
                chosen = [torch.randperm(n, generator=generator)[:n_per_batch].sort().values for _ in range(n_batches)]
            self.drawn[key] = chosen
        return self.drawn[key]


class Recording:
    """The activations of a network, at some positions or entire.

    Parameters
    ----------
    runner : callable
        ``runner(batch)`` returns a `Runner` of the network on one batch.
    n_batches : int
    positions : Positions
    memory : Memory

    Attributes
    ----------
    nodes : list of Node
    state : dict of str to Tensor
    outputs : sequence
        The flat outputs of the network for each batch; empty before it has run.
    n_runs : int
        The number of runs over all batches.
    """

    def __init__(self, runner: Callable[[int], Runner], n_batches: int, positions: Positions, memory: Memory):
        self.runner, self.n_batches, self.positions, self.memory = runner, n_batches, positions, memory
        first = runner(0)
        self.nodes, self.state, self.parameters, self.position = first.nodes, first.state, first.parameters, first.position
        self.device = next((t.device for t in pytree.tree_leaves(list(first.values.values())) if isinstance(t, Tensor)), None)
        self.values: dict[_Key, Held] = {}
        self.outputs: Sequence[Any] = []
        self.n_runs = 0

    def chosen(self, position: int, channel: int, batch: int) -> Tensor:
        """Return the positions at which a value is recorded on a batch."""
        return self.positions.of(self.nodes[position].meta["val"], channel, self.n_batches)[batch].to(self.device)

    def record(self, rows: Mapping[int, int], whole: Collection[int] = ()) -> None:
        """Run the network, unless all values are recorded already.

        Parameters
        ----------
        rows : mapping of int to int
            Values to record at some positions, and the dimension of their channels.
        whole : collection of int
            Values to record entirely, by their position in the network.
        """
        keys = [self._key(position, channel) for position, channel in rows.items()] + [(position, None) for position in whole]
        missing: dict[int, list[_Key]] = {}
        for key in keys:
            if key not in self.values and self.nodes[key[0]] not in self.parameters:
                missing.setdefault(key[0], []).append(key)
        if not missing and self.outputs:
            return
        self.n_runs += 1
        outputs = Held(self.memory)
        recorded = {key: Held(self.memory) for keys in missing.values() for key in keys}
        for batch in range(self.n_batches):
            runner = self.runner(batch)
            for k, node in enumerate(runner.nodes):
                runner.run(node)
                for key in missing.get(k, ()):
                    value = runner.values[node][0]
                    recorded[key].append(value if key[1] is None else rows_at(value, key[1], self.chosen(k, key[1], batch)))
                runner.forget(k)
            outputs.append(runner.outputs(0))
        self.outputs = outputs
        self.values.update(recorded)

    def read(self, node: Any, batch: int) -> Any:
        """Return a value that was recorded entirely, or a parameter."""
        name = self.parameters.get(node)
        return self.values[self.position[node], None][batch] if name is None else self.state[name]

    def rows(self, position: int, channel: int, batch: int) -> Tensor:
        """Return a value at its recorded positions, of shape (positions, channels)."""
        return self.values[self._key(position, channel)][batch]

    def _key(self, position: int, channel: int) -> _Key:
        return position, channel % self.nodes[position].meta["val"].dim()
