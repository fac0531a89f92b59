"""Networks as data, and how they are carried to a target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..couplings import Coupling
from ..groups import Graph

__all__ = ["Alignment", "Network", "blocks_within", "pinned_groups"]


@dataclass(eq=False)
class Network:
    """One parent as data: its tensors in the dtype and on the device of computation, and as what neurons are compared by."""

    graph: Graph
    state: dict[str, Tensor]
    compared: dict[str, Tensor]


@dataclass(eq=False)
class Alignment:
    """How networks are carried to the target: one coupling per group, and scales per unit, for each.

    `source_scales` put a network into the gauge in which it was matched, `target_scales` lead from there to the target's.
    """

    couplings: list[dict[str, Coupling]]
    source_scales: list[dict[str, np.ndarray]]
    target_scales: dict[str, np.ndarray]
    energy: float = float("nan")
    n_iter: int = 0
    history: list[Any] = field(default_factory=list)


def pinned_groups(networks: list[Network], target: Graph) -> tuple[dict[str, Coupling], set[str]]:
    """Groups with a tensor that is bitwise equal in all parents (a frozen embedding): their neurons correspond already.

    The second result are those of them whose scales agree as well, since the tensor scales with them.
    """
    pinned: dict[str, Coupling] = {}
    scaled_alike: set[str] = set()
    if len(networks) < 2:
        return pinned, scaled_alike
    first, within = networks[0], blocks_within(target)
    for name, labels in first.graph.tensors.items():
        tensor = first.compared[name]
        if any(n.compared[name].shape != tensor.shape or not torch.equal(n.compared[name], tensor) for n in networks[1:]):
            continue
        whole = labels.unfold(tensor)
        for axis, spans in enumerate(labels.spans):
            for span in spans:
                blocks = within.get(span.group)
                if blocks and any(n.graph.sizes[blocks] != target.sizes[blocks] for n in networks):
                    continue
                rows = whole.movedim(axis, 0)[torch.as_tensor(span.index.ravel(), device=tensor.device)].reshape(
                    len(span.index), -1
                )
                if target.sizes[span.group] == len(rows) and len(torch.unique(rows, dim=0)) == len(rows):
                    pinned[span.group] = Coupling.identity(len(rows))
                    if blocks:  # they stay with their neurons
                        pinned[blocks] = Coupling.identity(target.sizes[blocks])
                    if span.exponent:
                        scaled_alike.add(span.group)
    return pinned, scaled_alike


def blocks_within(graph: Graph) -> dict[str, str]:
    """The group of blocks of each group that lies in some."""
    return {name: group.within for name, group in graph.groups.items() if group.within is not None}
