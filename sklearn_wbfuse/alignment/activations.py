r"""Activations as features of neurons, for costs of matching.

"correlation": the cost of coupling two neurons falls with the correlation of what they put out, activations after the
nonlinearity, on the same inputs. Centred and brought to length 1, squared distances are :math:`2 (1 - \rho_{jq})`; a neuron that
does not move is 0. This is the measure of Li et al. ("Convergent Learning", ICLR 2016), of Stoica et al. ("ZipIt!", 2024) and
of Ainsworth, Hayase and Srinivasa ("Git Re-Basin", ICLR 2023) for convolutions.
Gates of recurrent layers, whose states are fed back, are compared by distance all the same: tanh networks fused better so.

"distance": the mean squared distance of activations before the nonlinearity,
:math:`\frac{1}{R} \sum_r (z_{jr} - z^i_{qr})^2`, as in Singh and Jaggi ("Model Fusion via Optimal Transport", NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from ..execution import Parent, ParentRunner
from ..execution.cells import Sequences, levels
from ..execution.parent_runner import rows_within, units_of
from ..execution.recording import Recording
from ..execution.sites import RegressionSite, read_by, regression_sites
from ..layers.operations import facts_of
from ..network.spec import NetworkSpec
from .features import Feature

__all__ = ["activation_features", "activations_of"]

_ROWS = 5000
"""Positions that neurons are compared at."""

_SHARE = 1 / 8
"""Of the memory that activations may take, what those of one network may, since matching carries and averages them."""


def _rows_to_compare(recordings: Sequence[Recording]) -> int:
    """How many positions networks can be compared at, so that their features are no larger than memory allows."""
    return rows_within(_SHARE * recordings[0].memory.limit, max(map(units_of, recordings)), _ROWS)


@torch.no_grad()
def activations_of(runs: ParentRunner, measure: str, further: Sequence[Parent] = ()) -> list[tuple[list[Feature], list[Tensor]]]:
    """Of every parent, and of further networks of the target's widths, activations as features of neurons."""
    recordings = [runs.recording(i) for i in range(len(runs.parents))]
    n_rows = _rows_to_compare(recordings)
    recordings += map(runs.record_further, further)
    pairs = zip(recordings, [*runs.parents, *further], strict=True)
    return [activation_features(recording, parent.spec, measure, n_rows) for recording, parent in pairs]


def activation_features(
    recording: Recording, spec: NetworkSpec, measure: str, n_rows: int = _ROWS
) -> tuple[list[Feature], list[Tensor]]:
    """One feature for each value that computes neurons, of arrays (neurons, rows).

    Parameters
    ----------
    recording : Recording
        Of a parent.
    graph : Graph
        Its own.
    measure : {"correlation", "distance"}
    n_rows : int
        Largest number of positions.
    """
    found = regression_sites(recording.nodes, recording.parameters)
    recording.record(*read_by(found.values(), recording.position))
    most = -(-n_rows // recording.n_batches)
    features, arrays = [], []
    for node, equation in found.items():
        correlates = measure == "correlation" and not equation.cells
        for (name, axis), batches in _rows(equation, recording, after=correlates):
            rows = torch.cat([_some(rows, most) for rows in batches])
            rows = (_standardised(rows) if correlates else rows) / len(rows) ** 0.5
            for span in spec.tensors[name].spans[axis]:
                index = torch.as_tensor(span.index, device=rows.device)
                exponent = 0.0 if correlates else span.exponent
                features.append(Feature(str(node), (span.group,), ("out",), (exponent,), (span.odd,)))
                arrays.append(rows.T[index].flatten(1))
    return features, arrays


def _rows(equation: RegressionSite, recording: Recording, *, after: bool) -> Iterator[tuple[tuple[str, int], Iterable[Tensor]]]:
    """The activations of an equation's neurons at the recorded positions of each batch."""
    if equation.cells:
        sequences = Sequences(equation.at, recording)
        for level in levels(equation.cells):
            for cell in level:
                halves = (cell.halves(recording.state, x, h) for x, h in sequences.forced(cell))
                yield (cell.w_ih, 0), [(x + h).flatten(0, 1) for x, h in halves]
            sequences.advance(level)
    else:
        layer, at = equation.layers[0], recording.position[equation.at]
        values = (recording.rows(at, layer.channel, batch) for batch in range(recording.n_batches))
        yield layer.labelled, (_through(v, equation.at) if after else v for v in values)


def _some(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spread."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long().to(rows.device)]


def _through(rows: Tensor, node: Node) -> Tensor:
    """Rows of a value after the nonlinearity, if all that reads the value is one and the same."""
    users = list(node.users)
    if not users or any(not facts_of(u).is_nonlinearity or u.all_input_nodes != [node] for u in users):
        return rows
    first = users[0]
    if any((u.target, u.args, u.kwargs) != (first.target, first.args, first.kwargs) for u in users):
        return rows
    return first.target(rows, *first.args[1:], **first.kwargs)  # type: ignore[operator]


def _standardised(rows: Tensor) -> Tensor:
    """Columns with mean 0 and mean square 1; those that hardly move are 0."""
    centred = rows - rows.mean(0)
    deviation = centred.square().mean(0).sqrt()
    alive = deviation > 1e-6 * rows.abs().amax(0)
    return torch.where(alive, centred / torch.where(alive, deviation, 1.0), 0.0)
