"""Networks as data, and how they are carried to a target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..couplings import Coupling
from ..groups import Graph

__all__ = ["Alignment", "Network"]


@dataclass(eq=False)
class Network:
    """One parent as data: its tensors in the dtype and on the device of computation."""

    graph: Graph
    state: dict[str, Tensor]


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
