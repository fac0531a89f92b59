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
    """A trained network with everything that roles need of it. None of its tensors is modified.

    Attributes
    ----------
    model : Module
        The network of the user.
    architecture : Architecture
        The same object for all parents of equal widths.
    state : dict of str to Tensor
        Its tensors in the dtype and on the device of computation.
    compared : dict of str to Tensor
        The tensors by which neurons are compared: those of `state`, in which masks may have a larger weight.
    weight : float
        Its weight in the mixture.
    correspondence : Correspondence
        Maps the groups, tensors and operations of the target to its own.
    copied : callable
        Makes the plain copy, or returns an existing one.
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
        """Its only copy, in eval mode and without parametrizations; made when something runs it."""
        return self.copied(self.model)

    @property
    def spec(self) -> NetworkSpec:
        """Its neuron groups and labelled tensors."""
        return self.architecture.spec
