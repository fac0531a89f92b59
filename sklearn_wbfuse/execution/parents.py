"""The parents of one fusion, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from torch import nn

from ..network.mixture import Mixture
from .parent import Parent
from .parent_runner import ParentRunner

__all__ = ["Members", "Parents"]


Member = TypeVar("Member")


class Members(Sequence[Member]):
    """A sequence of parents of some kind, the base of sequences with further attributes."""

    def __init__(self, members: Sequence[Member]):
        self._members = tuple(members)

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, position: int) -> Member: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Member]: ...
    def __getitem__(self, position: int | slice) -> Member | Sequence[Member]:
        return self._members[position]


class Parents(Members[Parent]):
    """The parents of one fusion, and what the roles share.

    Parameters
    ----------
    parents : sequence of Parent
    runs : ParentRunner, optional
        The parents on the inputs of the probe, if anything is computed from activations.
    further : callable, optional
        Makes a `Parent` of a further network of the user.
    cached : callable, optional
        ``cached(key, compute)`` returns the result of `compute` for a key and these networks, in all fits that share their rows.
    """

    def __init__(
        self,
        parents: Sequence[Parent],
        *,
        runs: ParentRunner | None = None,
        further: Callable[[nn.Module], Parent] | None = None,
        cached: Callable[[Any, Callable[[], Any]], Any] | None = None,
    ):
        super().__init__(parents)
        self.runs, self._further, self._cached = runs, further, cached

    @property
    def mixture(self) -> Mixture:
        """The weights of the parents."""
        return Mixture([p.weight for p in self])

    def with_runs(self, runs: ParentRunner | None) -> Parents:
        """Return the same parents on other inputs, or on none."""
        return Parents(self, runs=runs, further=self._further, cached=self._cached)

    def further(self, model: nn.Module) -> Parent:
        """Make a `Parent` of a further network, such as the user's `init`."""
        if self._further is None:
            raise ValueError("A further network needs Parents(..., further=callable). Got None.")
        return self._further(model)

    def remember(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return the result of `compute` for these networks, computed once per key for all fits that share their rows."""
        return compute() if self._cached is None else self._cached(key, compute)
