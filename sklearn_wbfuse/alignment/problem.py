"""What is to be fused, as arrays; couplings that keep or shuffle the order; and what is found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..network.couplings import Coupling, Permutation, Plan
from ..network.mixture import Mixture
from ..transport import check_multiple
from .energy import carried, difference, energy, mean_target
from .features import Feature

__all__ = ["Plans", "Problem", "Solution", "order_preserving_coupling", "random_start"]

Plans = dict[str, Coupling]


@dataclass(eq=False)
class Problem:
    r"""Models to be fused, as arrays.

    Attributes
    ----------
    described : list of Feature
    models : list of list of Tensor
        :math:`T^i_p`, one list per model.
    sizes : dict of str to int
        Sizes n_g of the target, in the order of computation.
    source_sizes : list of dict
        Sizes n_g^i.
    mixture : Mixture
        :math:`\lambda_i`, sum 1.
    reg : float
    pinned : list of dict of str to Coupling
        Of each model, couplings that are known beforehand, of the same groups; an empty list if there are none.
    within : dict of str to str
        The group of blocks that a group's neurons lie in, see `Group.within`; blocks come first in `sizes`.
    reference : int
        The model whose neuron order the target starts from.
    start : {"linear", "propagated", "uniform", "perturbed"}
        Where the coupling of a recurrent group starts; see `couple`.
    n_jobs : int or None
        Models of a layer that are matched side by side.
    """

    features: list[Feature]
    source_arrays: list[list[Tensor]]
    sizes: dict[str, int]
    source_sizes: list[dict[str, int]]
    mixture: Mixture
    reg: float = 0.0
    pinned: list[Plans] = field(default_factory=list)
    block_groups: dict[str, str] = field(default_factory=dict)
    reference: int = 0
    start: str = "linear"
    random_state: np.random.RandomState = field(default_factory=lambda: np.random.RandomState(0))
    max_iter: int = 100
    tol: float = 1e-6
    n_jobs: int | None = None

    def carry(self, model: int, plans: Mapping[str, Coupling]) -> list[Tensor]:
        """All arrays of a model in the target's neurons."""
        return [carried(f, a, plans) for f, a in zip(self.features, self.source_arrays[model], strict=True)]

    def energy(self, plans: Sequence[Plans], moved: Sequence[Sequence[Tensor]]) -> float:
        """The full energy at the best target; see `alignment.energy.energy`."""
        if len(plans) == 2 and all(c.is_permutation for own in plans for c in own.values()):
            return self.mixture.weights[0] * self.mixture.weights[1] * difference(self.features, *moved)
        return energy(self.features, mean_target(moved, self.mixture), self.source_arrays, moved, self.mixture)

    def solution(self, plans: list[Plans], n_iter: int = 0) -> Solution:
        """Couplings with their energy at the best target."""
        plans = [{g: own[g] for g in self.sizes} for own in plans]
        moved = [self.carry(i, p) for i, p in enumerate(plans)]
        value = self.energy(plans, moved)
        return Solution(plans, value, n_iter, [value])

    def resizing(self, model: int) -> int:
        """How far the sizes of a model's groups are from the target's, in all."""
        return sum(abs(self.source_sizes[model][g] - n) for g, n in self.sizes.items())

    def is_pinned(self, group: str) -> bool:
        """Whether the couplings of a group are known."""
        return bool(self.pinned) and group in self.pinned[0]

    @property
    def is_quadratic(self) -> bool:
        """Whether a group stands twice in a tensor that counts."""
        return any(f.alpha and f.groups.count(g) > 1 for f in self.features for g in f.groups)

    def features_of(self, groups: Collection[str]) -> list[int]:
        """Features in which one of some groups stands."""
        return [p for p, f in enumerate(self.features) if any(g in f.groups for g in groups)]

    def members(self, blocks: str) -> list[str]:
        """The groups that lie in the same blocks."""
        return [g for g, b in self.block_groups.items() if b == blocks]

    def default_coupling(self, group: str, model: int, plans: Plans) -> Coupling:
        """The coupling of a group that keeps the order of neurons, and of blocks unless these are coupled already."""
        own, n = self.source_sizes[model], self.sizes
        blocks = self.block_groups.get(group)
        if blocks is None:
            if group in self.block_groups.values():
                check_multiple((n[group], own[group]), group)
            return order_preserving_coupling(own[group], n[group])
        if blocks not in plans:
            plans[blocks] = self.default_coupling(blocks, model, plans)
        return kron_coupling(plans[blocks], order_preserving_coupling(own[group] // own[blocks], n[group] // n[blocks]))


@dataclass(eq=False)
class Solution:
    """Couplings of every model, the energy, and how it was reached."""

    plans: list[Plans]
    energy: float
    n_iter: int
    history: list[float]


def order_preserving_coupling(source: int, target: int) -> Coupling:
    """The coupling that keeps the order: repeats sources where the target is wider, merges neighbours where narrower."""
    if source == target:
        return Coupling.identity(source)
    rows, columns = np.arange(target + 1) / target, np.arange(source + 1) / source
    low = np.maximum(rows[:-1, None], columns[None, :-1])
    high = np.minimum(rows[1:, None], columns[None, 1:])
    plan = np.clip(high - low, 0, None)
    plan[plan < 1e-12] = 0
    return Plan(plan / plan.sum())


def kron_coupling(blocks: Coupling, inner: Coupling) -> Coupling:
    """The same coupling of neurons within every pair of blocks that are coupled."""
    if isinstance(blocks, Permutation) and isinstance(inner, Permutation):
        return Permutation((blocks.index[:, None] * len(inner.index) + inner.index).ravel())
    return Plan(np.kron(blocks.plan, inner.plan))


def random_start(problem: Problem) -> Solution:
    """Random couplings: permutations where sizes agree, the order-keeping plan of shuffled neurons otherwise."""
    plans: list[Plans] = []
    for model, sizes in enumerate(problem.source_sizes):
        own: Plans = {}
        for group in problem.sizes:
            if problem.is_pinned(group):
                own[group] = problem.pinned[model][group]
            elif group in problem.block_groups:
                own[group] = _shuffled_within(problem, group, model, own)
            else:
                shuffled = Permutation(problem.random_state.permutation(sizes[group]))
                own[group] = problem.default_coupling(group, model, own).compose(shuffled)
        plans.append(own)
    return problem.solution(plans)


def _shuffled_within(problem: Problem, group: str, model: int, plans: Plans) -> Coupling:
    """Neurons shuffled within their blocks, which are coupled already."""
    kept, sizes = problem.default_coupling(group, model, plans), problem.source_sizes[model]
    count = sizes[problem.block_groups[group]]
    d = sizes[group] // count
    order = np.concatenate([b * d + problem.random_state.permutation(d) for b in range(count)])
    return kept.compose(Permutation(order))
