"""The correspondence between the groups, tensors and operations of a parent and those of the target; by default equal names."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["SAME_NAMES", "Correspondence", "SameNames"]


class Correspondence(ABC):
    """Maps every neuron group, tensor and operation of the target to the parent's: abstract.

    Parents of one architecture correspond by name. A parent of another depth, or with other names, needs a correspondence of
    its own.
    """

    @abstractmethod
    def group(self, target: str) -> str:
        """Return the parent's group that corresponds to a group of the target."""

    @abstractmethod
    def tensor(self, target: str) -> str:
        """Return the parent's tensor that corresponds to a tensor of the target."""

    @abstractmethod
    def position(self, target: int) -> int:
        """Return the position of the parent's operation that corresponds to the target's operation at a position."""


class SameNames(Correspondence):
    """The correspondence of equal names and positions."""

    def group(self, target: str) -> str:
        """See `Correspondence`."""
        return target

    def tensor(self, target: str) -> str:
        """See `Correspondence`."""
        return target

    def position(self, target: int) -> int:
        """See `Correspondence`."""
        return target


SAME_NAMES = SameNames()
