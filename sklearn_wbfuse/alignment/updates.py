"""The steps of schedules: which groups are coupled together, and from which features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..transport import Potentials
from .matching import couple, couple_blocks
from .problem import Plans, Problem

__all__ = ["Step", "sweep_steps"]


@dataclass(frozen=True)
class Step:
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
        described = [problem.described[p] for p in at]
        if self.blocks is None:
            (group,) = self.groups
            found = couple(
                group,
                described,
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
        parts = list(zip(described, targets, source, strict=True))
        return couple_blocks(self.blocks, self.groups, parts, plans, shape, problem.reg, fixed)


def sweep_steps(problem: Problem) -> list[Step]:
    """The steps of a sweep: group after group, and the groups of one family of blocks together."""
    steps = []
    for group in problem.sizes:
        if problem.is_pinned(group) or not problem.touching([group]):
            continue
        blocks = problem.within.get(group)
        members = (
            tuple(g for g in problem.members(blocks) if not problem.is_pinned(g) and problem.touching([g])) if blocks else ()
        )
        if group in problem.within.values():
            continue
        if blocks is None:
            steps.append(Step((group,)))
        elif problem.is_pinned(blocks):
            steps.append(Step((group,), blocks))
        elif group == members[0]:
            steps.append(Step(members, blocks, free=True))
            if _tangled(problem, (blocks, *members)):
                steps += [Step((g,), blocks) for g in members]
    return steps


def _tangled(problem: Problem, family: Collection[str]) -> bool:
    """Whether a tensor holds two groups of a family, so that the energy is not linear in their couplings."""
    return any(len(set(f.groups) & set(family)) > 1 for f in problem.described)
