"""Tables of neuron groups that are written by hand: the units of a network, followed through its layers in plain numpy.

A table never looks at what the library finds. `Table.permuted` moves its units on the parameters alone, so that a table can be
checked by itself: the network must compute the same.
"""

import copy
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(eq=False)
class Units:
    """Units that may be permuted among each other.

    `places[tensor, axis]` holds the positions of unit u in row u; `blocks` is the number of blocks that the units lie in one
    after the other, and that only move as a whole, or None; units with the same `block_group` share their blocks.
    """

    size: int
    places: dict
    blocks: int | None = None
    block_group: int | None = None

    def keys(self):
        """Each unit as the set of all its (tensor, axis, position)."""
        return [frozenset((*axis, p) for axis, index in self.places.items() for p in index[u].tolist()) for u in range(self.size)]


class Table:
    """Which unit stands at which position of which axis. A unit is a number; sets of units are arrays of them.

    Each network of this package has a method `units` beside its `forward`, which takes the units of its input (None: channels
    in place) and returns those of its output.
    """

    def __init__(self, network, *inputs):
        self.network = network
        self.names = {id(t): n for n, t in [*network.named_parameters(), *network.named_buffers()]}  # ties: the first name
        self.count, self.sets, self.places, self.diagonal = 0, [], {}, {}
        network.units(self, *inputs)

    def new(self, size, within=None):
        """Units that nothing has computed yet, or blocks of units; `block_group` is an array of blocks."""
        self.sets.append((np.arange(self.count, self.count + size), within))
        self.count += size
        return self.sets[-1][0]

    def stand(self, tensor, axis, units):
        """Position p of this axis belongs to ``units[p]``; a tensor that is None, or units that are, stand nowhere."""
        if tensor is None or units is None:
            return
        axis_key = self.names[id(tensor)], axis
        assert len(units) == tensor.shape[axis] * (self.diagonal.get(axis_key[0], 1) if axis == 1 else 1), axis_key
        assert np.array_equal(self.places.setdefault(axis_key, units), units), axis_key

    def writes(self, layer, units):
        """A linear layer, convolution or depthwise convolution computes units."""
        self.stand(layer.weight, 1 if isinstance(layer, nn.ConvTranspose2d) else 0, units)
        self.stand(layer.bias, 0, units)
        return units

    def reads(self, layer, units):
        """A linear layer or convolution reads units; one in groups reads those of the whole, block-diagonal tensor."""
        if getattr(layer, "groups", 1) > 1:
            self.diagonal[self.names[id(layer.weight)]] = layer.groups
        self.stand(layer.weight, 0 if isinstance(layer, nn.ConvTranspose2d) else 1, units)

    def norm(self, norm, units):
        """A norm of any kind over units."""
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.stand(getattr(norm, name, None), 0, units)
        return units

    def layer(self, layer, units, norm=None, *, to=None, within=None):
        """A layer that reads units and computes new ones, or those in `to`, perhaps followed by a norm."""
        self.reads(layer, units)
        if to is None:
            weight = layer.weight
            to = self.new(weight.shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0], within)
        self.writes(layer, to)
        return to if norm is None else self.norm(norm, to)

    def groups(self):
        """The table, as a list of `Units`: those of one set that stand on the same axes equally often."""
        where = defaultdict(list)
        for place, units in self.places.items():
            for p, u in enumerate(units.tolist()):
                where[u].append((place, p))
        table = []
        for units, within in self.sets:
            alike = defaultdict(list)
            for u in units.tolist():
                alike[tuple(place for place, _ in where[u])].append(u)
            for standing, members in alike.items():
                positions = {place: np.array([[p for a, p in where[u] if a == place] for u in members]) for place in standing}
                if positions:
                    blocks = (None, None) if within is None else (len(within), int(within[0]))
                    table.append(Units(len(members), positions, *blocks))
        return table

    def permuted(self, rng):
        """A copy of the network with its units permuted, units in blocks within their block."""
        twin = copy.deepcopy(self.network)
        tensors = dict([*twin.named_parameters(), *twin.named_buffers()])
        whole = {name: block_diagonal(tensors[name].data, self.diagonal.get(name, 1)) for name, _ in self.places}
        blocks = {}
        for group in self.groups():
            order = np.arange(group.size).reshape(group.blocks or 1, -1)
            if group.block_group is not None:
                order = order[blocks.setdefault(group.block_group, rng.permutation(group.blocks))]
            order = rng.permuted(order, axis=1).ravel()
            for (name, axis), index in group.places.items():
                source = np.arange(whole[name].shape[axis])
                source[index] = index[order]
                whole[name] = whole[name].index_select(axis, torch.as_tensor(source))
        for name, tensor in whole.items():
            tensors[name].data = diagonal_blocks(tensor, self.diagonal.get(name, 1))
        return twin


def block_diagonal(weight, n):
    """The weight (out, in, ...) of the convolution that computes what one with `n` groups and weight (out, in / n, ...) does."""
    parts = weight.chunk(n)
    zeros = torch.zeros_like(parts[0])
    rows = [[*[zeros] * b, part, *[zeros] * (n - 1 - b)] for b, part in enumerate(parts)]
    return weight if n == 1 else torch.cat([torch.cat(row, 1) for row in rows])


def diagonal_blocks(whole, n):
    """The inverse of `block_diagonal`."""
    return whole if n == 1 else torch.cat([rows.chunk(n, 1)[b] for b, rows in enumerate(whole.chunk(n))])
