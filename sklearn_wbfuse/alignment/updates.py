"""The updates of which schedules consist: the groups that are coupled together, and the features to couple them by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..transport import Potentials
from .matching import couple, couple_blocks
from .problem import Plans, Problem

__all__ = ["GroupUpdate", "sweep_updates"]


@dataclass(frozen=True)
class GroupUpdate:
    """Groups whose couplings are solved for together.

    Attributes
    ----------
    groups : tuple of str
    blocks : str or None
        The group of the blocks of their neurons.
    free : bool
        Whether the coupling of the blocks is solved for as well.
    """

    groups: tuple[str, ...]
    blocks: str | None = None
    free: bool = False

    @property
    def all(self) -> tuple[str, ...]:
        """The groups whose couplings are solved for, blocks included."""
        return (self.blocks, *self.groups) if self.free and self.blocks is not None else self.groups

    def solve(
        self,
        problem: Problem,
        model: int,
        indices: Sequence[int],
        targets: Sequence[Tensor],
        source: Sequence[Tensor],
        plans: Plans,
        potentials: dict[tuple[int, str], Potentials],
    ) -> Plans:
        """Compute the best couplings of the groups of one model with a target, by the features at `indices`."""
        features = [problem.features[p] for p in indices]
        if self.blocks is None:
            (group,) = self.groups
            coupling = couple(
                group,
                features,
                targets,
                source,
                plans,
                problem.reg,
                start=problem.start,
                random_state=problem.random_state,
                potentials=potentials.setdefault((model, group), Potentials()),
            )
            return {group: coupling}
        shape = problem.sizes[self.blocks], problem.source_sizes[model][self.blocks]
        fixed = None if self.free else plans[self.blocks]
        triples = list(zip(features, targets, source, strict=True))
        return couple_blocks(self.blocks, self.groups, triples, plans, shape, problem.reg, fixed)


def sweep_updates(problem: Problem) -> list[GroupUpdate]:
    """Return the updates of a sweep: one for each group, and one for all groups within the same blocks."""
    updates = []
    for group in problem.sizes:
        if problem.is_pinned(group) or not problem.features_of([group]):
            continue
        blocks = problem.block_groups.get(group)
        members = (
            tuple(g for g in problem.members(blocks) if not problem.is_pinned(g) and problem.features_of([g])) if blocks else ()
        )
        if group in problem.block_groups.values():
            continue
        if blocks is None:
            updates.append(GroupUpdate((group,)))
        elif problem.is_pinned(blocks):
            updates.append(GroupUpdate((group,), blocks))
        elif group == members[0]:
            updates.append(GroupUpdate(members, blocks, free=True))
            if _share_tensors(problem, (blocks, *members)):
                updates += [GroupUpdate((g,), blocks) for g in members]
    return updates


def _share_tensors(problem: Problem, groups: Collection[str]) -> bool:
    """Return whether a tensor holds two of the groups, so that the energy is not linear in their couplings."""
    return any(len(set(feature.groups) & set(groups)) > 1 for feature in problem.features)
