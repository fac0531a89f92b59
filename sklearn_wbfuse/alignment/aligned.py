"""Parents in the target's neurons: what averagers average and corrections compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..couplings import along_axis
from ..execution import Parent, Probing, Recording
from ..graph import Architecture
from ..mixture import Mixture
from .alignment import Alignment
from .carry import Carrier

__all__ = ["AlignedParent", "AlignedParents"]

Labelled = tuple[str, int]
"""An axis of a tensor, for the neurons that stand on it."""


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

    def __init__(self, parent: Parent, carrier: Carrier, recording: Recording | None = None, *, on_data: bool = False):
        self.parent, self.carrier, self.weight, self.on_data = parent, carrier, parent.weight, on_data
        self._maps: dict[Labelled, Mapping[str, Any]] = {}
        if recording is not None:
            self.recording = recording

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


class AlignedParents(Sequence[AlignedParent]):
    """The parents that have a weight, their mixture and the target.

    Attributes
    ----------
    mixture : Mixture
    target : Architecture
    """

    def __init__(self, parents: Sequence[AlignedParent], mixture: Mixture, target: Architecture):
        self._parents, self.mixture, self.target = list(parents), mixture, target

    @classmethod
    def of(
        cls,
        parents: Sequence[Parent],
        alignment: Alignment,
        target: Architecture,
        runs: Probing | None = None,
        max_rows: int | None = None,
    ) -> AlignedParents:
        """Parents by their couplings; recorded at so many positions if they are run."""
        counted = [i for i, p in enumerate(parents) if p.weight]
        aligned = []
        for i in counted:
            own, plans, scales = parents[i], alignment.couplings[i], alignment.source_scales[i]
            carrier = Carrier(own.graph, target.graph, plans, scales, alignment.target_scales, own.correspondence)
            recording = None if runs is None or max_rows is None else runs.recording(i, max_rows)
            aligned.append(AlignedParent(own, carrier, recording, on_data=runs is not None and runs.has_rows_alone))
        masses = {name: mass[counted] for name, mass in alignment.masses.items()}
        return cls(aligned, Mixture([parents[i].weight for i in counted], masses), target)

    def mean_rows(self, values: Sequence[Tensor], labelled: Labelled, *, magnitude: bool = False) -> Tensor:
        """The mean of activations (..., neurons), each in its parent's neurons, in the target's."""
        carried = [p.carried(v, labelled, magnitude=magnitude) for p, v in zip(self, values, strict=True)]
        return self.mixture.mean_along(carried, self.target.graph.tensors[labelled[0]].spans[labelled[1]], -1)

    def __len__(self) -> int:
        return len(self._parents)

    @overload
    def __getitem__(self, position: int) -> AlignedParent: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[AlignedParent]: ...
    def __getitem__(self, position: int | slice) -> AlignedParent | Sequence[AlignedParent]:
        return self._parents[position]

    def __iter__(self) -> Iterator[AlignedParent]:
        return iter(self._parents)
