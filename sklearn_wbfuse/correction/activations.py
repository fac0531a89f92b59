r"""Activations as features of neurons, for costs of matching.

The cost of coupling two neurons is the mean squared distance of their activations before the nonlinearity, on the same inputs:
:math:`\frac{1}{R} \sum_r (z_{jr} - z^i_{qr})^2`. This is the activation cost of Singh and Jaggi ("Model Fusion via Optimal
Transport", NeurIPS 2020) and, for permutations, activation matching of Ainsworth, Hayase and Srinivasa ("Git Re-Basin", ICLR
2023), which maximises the inner products of activations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..barycenter import Feature
from ..graph import Steps
from ..groups import Graph
from .affine import channels_last
from .equations import Equation, equations
from .recurrent import Sequences, levels

__all__ = ["activation_features"]

_ROWS = 5000


def activation_features(steps: Steps, graph: Graph, seed: int) -> tuple[list[Feature], list[Tensor]]:
    """One feature for each value that computes neurons, of arrays (neurons, rows).

    Parameters
    ----------
    steps : Steps
        A parent at its start; it is consumed.
    graph : Graph
        Of the parent.
    seed : int
        Draws positions, the same for every parent.
    """
    generator = torch.Generator().manual_seed(seed)
    found = equations(steps.nodes, steps.parameters)
    described, arrays = [], []
    for k, node in enumerate(steps.nodes):
        steps.run(node)
        if node in found:
            for (name, axis), batches in _rows(found[node], steps, generator):
                rows = torch.cat(batches)
                for span in graph.tensors[name].spans[axis]:
                    index = torch.as_tensor(span.index, device=rows.device)
                    described.append(Feature(str(node), (span.group,), ("out",), (span.exponent,), (span.odd,)))
                    arrays.append(rows.T[index].flatten(1) / len(rows) ** 0.5)
        steps.forget(k)
    return described, arrays


def _rows(equation: Equation, steps: Steps, generator: torch.Generator) -> Iterator[tuple[tuple[str, int], list[Tensor]]]:
    """The activations of an equation's neurons at some positions of each batch."""
    if equation.cells:
        sequences = Sequences(equation.at, steps)
        for level in levels(equation.cells):
            for cell in level:
                batches = [sum(cell.halves(steps.state, x, h)).flatten(0, 1) for x, h in sequences.forced(cell)]  # type: ignore
                yield (cell.w_ih, 0), [_drawn(b, len(batches), generator) for b in batches]
            sequences.advance(level)
    else:
        writer = equation.writers[0]
        values = [channels_last(v, writer.channel) for v in steps.values[equation.at]]
        yield writer.labelled, [_drawn(v, len(values), generator) for v in values]


def _drawn(rows: Tensor, n_batches: int, generator: torch.Generator) -> Tensor:
    most = -(-_ROWS // n_batches)
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:most].to(rows.device)]
