"""A parent of a fusion, made once for all roles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..discovery import Architecture, plain_copy
from ..network.correspondence import SAME_NAMES, Correspondence
from ..network.spec import NetworkSpec

__all__ = ["Parent"]


@dataclass(eq=False)
class Parent:
    """A trained network as every role sees it; nothing of it is changed.

    Attributes
    ----------
    model : Module
        As it was given.
    architecture : Architecture
        The same object for all parents of equal widths.
    state : dict of str to Tensor
        Its tensors in the dtype and on the device of computation.
    compared : dict of str to Tensor
        The same as neurons are compared by: masks may count more than they are.
    weight : float
        Its share of the mixture.
    correspondence : Correspondence
        Which of its parts stand for which of the target's.
    copied : callable
        Makes its plain copy, or gives the one that there is.
    """

    model: nn.Module
    architecture: Architecture
    state: dict[str, Tensor]
    compared: dict[str, Tensor]
    weight: float = 1.0
    correspondence: Correspondence = SAME_NAMES
    copied: Callable[[nn.Module], nn.Module] = plain_copy

    @functools.cached_property
    def plain(self) -> nn.Module:
        """Its only copy, in eval mode and without parametrizations, from when something runs it."""
        return self.copied(self.model)

    @property
    def spec(self) -> NetworkSpec:
        """Its neuron groups and labelled tensors."""
        return self.architecture.spec
