"""The steps of schedules: which groups are coupled together, and from which features."""

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
    """Groups whose couplings are looked for together.

    Attributes
    ----------
    groups : tuple of str
    blocks : str or None
        The group of blocks that they lie in.
    free : bool
        Whether the blocks move as well.
    """

    groups: tuple[str, ...]
    blocks: str | None = None
    free: bool = False

    @property
    def all(self) -> tuple[str, ...]:
        """The groups that may move, blocks included."""
        return (self.blocks, *self.groups) if self.free and self.blocks is not None else self.groups

    def solve(
        self,
        problem: Problem,
        model: int,
        at: Sequence[int],
        targets: Sequence[Tensor],
        source: Sequence[Tensor],
        plans: Plans,
        potentials: dict[tuple[int, str], Potentials],
    ) -> Plans:
        """The best couplings of these groups of one model with a target, from the features of some positions."""
        features = [problem.features[p] for p in at]
        if self.blocks is None:
            (group,) = self.groups
            found = couple(
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
            return {group: found}
        shape = problem.sizes[self.blocks], problem.source_sizes[model][self.blocks]
        fixed = None if self.free else plans[self.blocks]
        parts = list(zip(features, targets, source, strict=True))
        return couple_blocks(self.blocks, self.groups, parts, plans, shape, problem.reg, fixed)


def sweep_updates(problem: Problem) -> list[GroupUpdate]:
    """The steps of a sweep: group after group, and the groups of one family of blocks together."""
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
            if _tangled(problem, (blocks, *members)):
                updates += [GroupUpdate((g,), blocks) for g in members]
    return updates


def _tangled(problem: Problem, family: Collection[str]) -> bool:
    """Whether a tensor holds two groups of a family, so that the energy is not linear in their couplings."""
    return any(len(set(f.groups) & set(family)) > 1 for f in problem.features)
