"""Parents carried to the target's neurons: the input of averagers, and the reference of corrections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..discovery import Architecture
from ..execution import Parent, ParentRunner, Recording
from ..execution.lockstep import Labelled
from ..execution.parents import Members
from ..network.couplings import along_axis
from ..network.mixture import Mixture
from .alignment import Alignment
from .carry import Carrier

__all__ = ["AlignedParent", "AlignedParents"]


class AlignedParent:
    """A parent whose tensors and activations can be carried to the target's neurons.

    Attributes
    ----------
    parent : Parent
    weight : float
    recording : Recording
        Activations on the inputs of the probe, in the parent's neurons. Only present in corrections.
    on_data : bool
        Whether these inputs are rows of data, which the parent's running statistics are assumed to describe.
    """

    recording: Recording
    on_data = False

    def __init__(self, parent: Parent, carrier: Carrier):
        self.parent, self.carrier, self.weight = parent, carrier, parent.weight
        self._maps: dict[Labelled, Mapping[str, Any]] = {}

    def recorded(self, recording: Recording, *, on_data: bool) -> AlignedParent:
        """Return a copy with the parent's activations on the inputs of a probe."""
        parent = AlignedParent(self.parent, self.carrier)
        parent.recording, parent.on_data = recording, on_data
        return parent

    @property
    def state(self) -> dict[str, Tensor]:
        """All tensors in the target's neurons, computed at each access."""
        return self.carrier.state(self.parent.state)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor of the target in the target's neurons."""
        return self.carrier.tensor(name, self.parent.state)

    def carried(self, rows: Tensor, labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """Carry activations (..., neurons) to the target's neurons; a `magnitude` does not change sign."""
        if labelled not in self._maps:
            self._maps[labelled] = _sparse(self.carrier.axis_map(*labelled).to(rows.device, rows.dtype))
        parts = self._maps[labelled]
        if magnitude:
            parts = {key: part if key == "index" else part.abs() for key, part in parts.items()}
        return along_axis(rows, -1, **parts)

    def position(self, target: int) -> int:
        """Return the position of the parent's operation that corresponds to one of the target's."""
        return self.parent.correspondence.position(target)


def _sparse(matrix: Tensor) -> dict[str, Tensor]:
    """Return the arguments of `along_axis`: indices and factors if every neuron has one source, nothing for the identity."""
    if not bool((matrix != 0).sum(1).eq(1).all()):
        return {"matrix": matrix}
    index = matrix.abs().argmax(1)
    factor = matrix.gather(1, index[:, None])[:, 0]
    stays = matrix.shape[0] == matrix.shape[1] and torch.equal(index, torch.arange(len(index), device=index.device))
    return ({} if stays else {"index": index}) | ({} if bool((factor == 1).all()) else {"factor": factor})


class AlignedParents(Members[AlignedParent]):
    """The parents of nonzero weight, their mixture and the target.

    Parameters
    ----------
    parents : sequence of AlignedParent
    positions : sequence of int
        The position of each among the parents of the fit.
    mixture : Mixture
    target : Architecture
    """

    def __init__(self, parents: Sequence[AlignedParent], positions: Sequence[int], mixture: Mixture, target: Architecture):
        super().__init__(parents)
        self.positions, self.mixture, self.target = positions, mixture, target

    @classmethod
    def of(cls, parents: Sequence[Parent], alignment: Alignment, target: Architecture) -> AlignedParents:
        """Align the parents of nonzero weight by their couplings."""
        positions = [i for i, parent in enumerate(parents) if parent.weight]
        aligned = []
        for i in positions:
            parent, plans, scales = parents[i], alignment.couplings[i], alignment.source_scales[i]
            carrier = Carrier(parent.spec, target.spec, plans, scales, alignment.target_scales, parent.correspondence)
            aligned.append(AlignedParent(parent, carrier))
        masses = {name: mass[positions] for name, mass in alignment.masses.items()}
        return cls(aligned, positions, Mixture([parents[i].weight for i in positions], masses), target)

    def recorded(self, runs: ParentRunner, max_rows: int) -> AlignedParents:
        """Return copies with the activations of each parent on the inputs of a probe, at up to `max_rows` positions."""
        pairs = zip(self, self.positions, strict=True)
        recorded = [p.recorded(runs.recording(i, max_rows), on_data=runs.has_rows_alone) for p, i in pairs]
        return AlignedParents(recorded, self.positions, self.mixture, self.target)

    def mean_rows(self, values: Sequence[Tensor], labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """Average the activations (..., neurons) of all parents in the target's neurons."""
        carried = [p.carried(v, labelled, magnitude=magnitude) for p, v in zip(self, values, strict=True)]
        return self.mixture.mean_along(carried, self.target.spec.tensors[labelled[0]].spans[labelled[1]], -1)
