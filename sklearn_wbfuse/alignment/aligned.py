"""Parents in the target's neurons: what averagers average and corrections compare with."""

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
    """A parent, and how its tensors and activations are carried to the target's neurons.

    Attributes
    ----------
    parent : Parent
    weight : float
    recording : Recording
        What it computes of the inputs of the probe, in its own neurons. Only corrections have it.
    on_data : bool
        Whether these inputs are rows of data, which its running statistics are taken to describe.
    """

    recording: Recording
    on_data = False

    def __init__(self, parent: Parent, carrier: Carrier):
        self.parent, self.carrier, self.weight = parent, carrier, parent.weight
        self._maps: dict[Labelled, Mapping[str, Any]] = {}

    def recorded(self, recording: Recording, *, on_data: bool) -> AlignedParent:
        """The same, with what it computes of the inputs of a probe."""
        twin = AlignedParent(self.parent, self.carrier)
        twin.recording, twin.on_data = recording, on_data
        return twin

    @property
    def state(self) -> dict[str, Tensor]:
        """All tensors in the target's neurons, computed anew each time."""
        return self.carrier.state(self.parent.state)

    def tensor(self, name: str) -> Tensor:
        """One of them."""
        return self.carrier.tensor(name, self.parent.state)

    def carried(self, rows: Tensor, labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """Activations (..., neurons) in the target's neurons; of a `magnitude` signs do not matter."""
        if labelled not in self._maps:
            self._maps[labelled] = _sparse(self.carrier.axis_map(*labelled).to(rows.device, rows.dtype))
        parts = self._maps[labelled]
        if magnitude:
            parts = {key: part if key == "index" else part.abs() for key, part in parts.items()}
        return along_axis(rows, -1, **parts)

    def position(self, target: int) -> int:
        """The operation that stands for one of the target's."""
        return self.parent.correspondence.position(target)


def _sparse(matrix: Tensor) -> dict[str, Tensor]:
    """The arguments of `along_axis`: indices and factors where every neuron comes from one, if anything changes at all."""
    if not bool((matrix != 0).sum(1).eq(1).all()):
        return {"matrix": matrix}
    index = matrix.abs().argmax(1)
    factor = matrix.gather(1, index[:, None])[:, 0]
    stays = matrix.shape[0] == matrix.shape[1] and torch.equal(index, torch.arange(len(index), device=index.device))
    return ({} if stays else {"index": index}) | ({} if bool((factor == 1).all()) else {"factor": factor})


class AlignedParents(Members[AlignedParent]):
    """The parents that have a weight, their mixture and the target.

    Parameters
    ----------
    parents : sequence of AlignedParent
    positions : sequence of int
        Of each among the parents of the fit.
    mixture : Mixture
    target : Architecture
    """

    def __init__(self, parents: Sequence[AlignedParent], positions: Sequence[int], mixture: Mixture, target: Architecture):
        super().__init__(parents)
        self.positions, self.mixture, self.target = positions, mixture, target

    @classmethod
    def of(cls, parents: Sequence[Parent], alignment: Alignment, target: Architecture) -> AlignedParents:
        """Parents by their couplings."""
        counted = [i for i, p in enumerate(parents) if p.weight]
        aligned = []
        for i in counted:
            own, plans, scales = parents[i], alignment.couplings[i], alignment.source_scales[i]
            carrier = Carrier(own.spec, target.spec, plans, scales, alignment.target_scales, own.correspondence)
            aligned.append(AlignedParent(own, carrier))
        masses = {name: mass[counted] for name, mass in alignment.masses.items()}
        return cls(aligned, counted, Mixture([parents[i].weight for i in counted], masses), target)

    def recorded(self, runs: ParentRunner, max_rows: int) -> AlignedParents:
        """The same, with what each computes of the inputs of a probe at so many positions."""
        pairs = zip(self, self.positions, strict=True)
        recorded = [p.recorded(runs.recording(i, max_rows), on_data=runs.has_rows_alone) for p, i in pairs]
        return AlignedParents(recorded, self.positions, self.mixture, self.target)

    def mean_rows(self, values: Sequence[Tensor], labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """The mean of activations (..., neurons), each in its parent's neurons, in the target's."""
        carried = [p.carried(v, labelled, magnitude=magnitude) for p, v in zip(self, values, strict=True)]
        return self.mixture.mean_along(carried, self.target.spec.tensors[labelled[0]].spans[labelled[1]], -1)
