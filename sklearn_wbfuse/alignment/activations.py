r"""Activations as features of neurons, for costs of matching.

"correlation": the cost of coupling two neurons falls with the correlation of their activations after the nonlinearity, on the
same inputs. Between centred vectors of length 1 squared distances are :math:`2 (1 - \rho_{jq})`; a constant neuron is 0. This is
the measure of Li et al. ("Convergent Learning", ICLR 2016), of Stoica et al. ("ZipIt!", 2024) and of Ainsworth, Hayase and
Srinivasa ("Git Re-Basin", ICLR 2023) for convolutions. Gates of recurrent layers, whose states are fed back, are always compared
by distance: tanh networks fused better in this way.

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
from ..execution.parent_runner import n_positions_within, n_recorded_units
from ..execution.recording import Recording
from ..execution.sites import RegressionSite, read_by, regression_sites
from ..layers.operations import facts_of
from ..network.spec import NetworkSpec
from .features import Feature

__all__ = ["activation_features", "activations_of"]

_ROWS = 5000
"""Largest number of positions at which neurons are compared."""

_SHARE = 1 / 8
"""Share of the memory limit that the activations of one network may take, since matching makes further copies of them."""


def _rows_to_compare(recordings: Sequence[Recording]) -> int:
    """Return at how many positions networks can be compared if their features have to fit into memory."""
    return n_positions_within(_SHARE * recordings[0].memory.limit, max(map(n_recorded_units, recordings)), _ROWS)


@torch.no_grad()
def activations_of(runs: ParentRunner, measure: str, further: Sequence[Parent] = ()) -> list[tuple[list[Feature], list[Tensor]]]:
    """Return the activations of every parent, and of further networks of the target's widths, as features of neurons."""
    recordings = [runs.recording(i) for i in range(len(runs.parents))]
    n_rows = _rows_to_compare(recordings)
    recordings += map(runs.record_further, further)
    pairs = zip(recordings, [*runs.parents, *further], strict=True)
    return [activation_features(recording, parent.spec, measure, n_rows) for recording, parent in pairs]


def activation_features(
    recording: Recording, spec: NetworkSpec, measure: str, n_rows: int = _ROWS
) -> tuple[list[Feature], list[Tensor]]:
    """Return one feature, and its array of shape (neurons, rows), for each regression site of a network.

    Parameters
    ----------
    recording : Recording
        The activations of the network.
    spec : NetworkSpec
        The groups of the network.
    measure : {"correlation", "distance"}
    n_rows : int
        Largest number of positions.
    """
    sites = regression_sites(recording.nodes, recording.parameters)
    recording.record(*read_by(sites.values(), recording.position))
    n_rows_per_batch = -(-n_rows // recording.n_batches)
    features, arrays = [], []
    for node, site in sites.items():
        correlates = measure == "correlation" and not site.cells
        for (name, axis), batches in _rows(site, recording, after=correlates):
            rows = torch.cat([_subsample(rows, n_rows_per_batch) for rows in batches])
            rows = (_standardised(rows) if correlates else rows) / len(rows) ** 0.5
            for span in spec.tensors[name].spans[axis]:
                index = torch.as_tensor(span.index, device=rows.device)
                exponent = 0.0 if correlates else span.exponent
                features.append(Feature(str(node), (span.group,), ("out",), (exponent,), (span.odd,)))
                arrays.append(rows.T[index].flatten(1))
    return features, arrays


def _rows(site: RegressionSite, recording: Recording, *, after: bool) -> Iterator[tuple[tuple[str, int], Iterable[Tensor]]]:
    """Yield the tensor axis of each set of neurons of a site with their activations at the recorded positions of each batch.

    With `after` these are the activations after the nonlinearity that follows.
    """
    if site.cells:
        sequences = Sequences(site.node, recording)
        for level in levels(site.cells):
            for cell in level:
                halves = (cell.halves(recording.state, x, h) for x, h in sequences.forced(cell))
                yield (cell.w_ih, 0), [(x + h).flatten(0, 1) for x, h in halves]
            sequences.advance(level)
    else:
        layer, position = site.layers[0], recording.position[site.node]
        values = (recording.rows(position, layer.channel, batch) for batch in range(recording.n_batches))
        yield layer.labelled, (_through(v, site.node) if after else v for v in values)


def _subsample(rows: Tensor, n_rows: int) -> Tensor:
    """Return at most `n_rows` rows, evenly spaced."""
    return rows if len(rows) <= n_rows else rows[torch.linspace(0, len(rows) - 1, n_rows).long().to(rows.device)]


def _through(rows: Tensor, node: Node) -> Tensor:
    """Apply to the rows of a value the nonlinearity that reads it, if nothing else does."""
    users = list(node.users)
    if not users or any(not facts_of(u).is_nonlinearity or u.all_input_nodes != [node] for u in users):
        return rows
    first = users[0]
    if any((u.target, u.args, u.kwargs) != (first.target, first.args, first.kwargs) for u in users):
        return rows
    return first.target(rows, *first.args[1:], **first.kwargs)  # type: ignore[operator]


def _standardised(rows: Tensor) -> Tensor:
    """Scale columns to mean 0 and mean square 1; set columns that hardly vary to 0."""
    centred = rows - rows.mean(0)
    standard_deviation = centred.square().mean(0).sqrt()
    varies = standard_deviation > 1e-6 * rows.abs().amax(0)
    return torch.where(varies, centred / torch.where(varies, standard_deviation, 1.0), 0.0)
