"""Which parts of a parent stand for which parts of the target: by the same name, unless something else is said."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["SAME_NAMES", "Correspondence", "SameNames"]


class Correspondence(ABC):
    """For every neuron group and tensor of the target, the parent's: abstract.

    Parents of one architecture correspond by name. One of another depth or with other names says here what stands for what.
    """

    @abstractmethod
    def group(self, target: str) -> str:
        """The parent's group that stands for a group of the target."""

    @abstractmethod
    def tensor(self, target: str) -> str:
        """The parent's tensor that stands for a tensor of the target."""

    @abstractmethod
    def position(self, target: int) -> int:
        """The operation of the parent's trace that stands for one of the target's, by their positions."""


class SameNames(Correspondence):
    """What has the same name corresponds."""

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
