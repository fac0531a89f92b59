"""A barycenter problem as arrays, its solution, and couplings that keep or shuffle the order of neurons."""

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
"""The couplings of one model by neuron group."""


@dataclass(eq=False)
class Problem:
    r"""The models to fuse, as arrays.

    Attributes
    ----------
    features : list of Feature
    source_arrays : list of list of Tensor
        :math:`T^i_p`, one list per model.
    sizes : dict of str to int
        Sizes n_g of the target, in the order of computation.
    source_sizes : list of dict
        Sizes n_g^i.
    mixture : Mixture
        :math:`\lambda_i`, sum 1.
    reg : float
    pinned : list of dict of str to Coupling
        The couplings of each model that are known in advance, for the same groups of all models; empty if there are none.
    block_groups : dict of str to str
        The group of blocks of each group of neurons in blocks, see `Group.block_group`; blocks come first in `sizes`.
    reference : int
        The model whose neuron order the target starts from.
    start : {"linear", "propagated", "uniform", "perturbed"}
        The start of the coupling of a recurrent group; see `couple`.
    n_jobs : int or None
        Number of models that are matched in parallel.
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
        """Carry all arrays of a model to the target's neurons."""
        return [carried(f, a, plans) for f, a in zip(self.features, self.source_arrays[model], strict=True)]

    def energy(self, plans: Sequence[Plans], moved: Sequence[Sequence[Tensor]]) -> float:
        """Compute the energy at the best target; see `alignment.energy.energy`."""
        if len(plans) == 2 and all(c.is_permutation for model_plans in plans for c in model_plans.values()):
            return self.mixture.weights[0] * self.mixture.weights[1] * difference(self.features, *moved)
        return energy(self.features, mean_target(moved, self.mixture), self.source_arrays, moved, self.mixture)

    def solution(self, plans: list[Plans], n_iter: int = 0) -> Solution:
        """Return the solution that consists of these couplings and their energy at the best target."""
        plans = [{g: model_plans[g] for g in self.sizes} for model_plans in plans]
        moved = [self.carry(i, p) for i, p in enumerate(plans)]
        value = self.energy(plans, moved)
        return Solution(plans, value, n_iter, [value])

    def resizing(self, model: int) -> int:
        """Return the sum of the differences between the sizes of a model's groups and the target's."""
        return sum(abs(self.source_sizes[model][g] - n) for g, n in self.sizes.items())

    def is_pinned(self, group: str) -> bool:
        """Return whether the couplings of a group are known in advance."""
        return bool(self.pinned) and group in self.pinned[0]

    @property
    def is_quadratic(self) -> bool:
        """Whether a group is on more than one axis of a tensor with a weight in the energy."""
        return any(f.alpha and f.groups.count(g) > 1 for f in self.features for g in f.groups)

    def features_of(self, groups: Collection[str]) -> list[int]:
        """Return the indices of the features of any of the groups."""
        return [p for p, f in enumerate(self.features) if any(g in f.groups for g in groups)]

    def members(self, blocks: str) -> list[str]:
        """Return the groups of the neurons within the blocks of a group."""
        return [g for g, b in self.block_groups.items() if b == blocks]

    def default_coupling(self, group: str, model: int, plans: Plans) -> Coupling:
        """Return the coupling that keeps the order of neurons, within the coupling of their blocks if `plans` has one."""
        m, n = self.source_sizes[model], self.sizes
        blocks = self.block_groups.get(group)
        if blocks is None:
            if group in self.block_groups.values():
                check_multiple((n[group], m[group]), group)
            return order_preserving_coupling(m[group], n[group])
        if blocks not in plans:
            plans[blocks] = self.default_coupling(blocks, model, plans)
        return kron_coupling(plans[blocks], order_preserving_coupling(m[group] // m[blocks], n[group] // n[blocks]))


@dataclass(eq=False)
class Solution:
    """The couplings of every model, their energy, and the energies after each sweep."""

    plans: list[Plans]
    energy: float
    n_iter: int
    history: list[float]


def order_preserving_coupling(source: int, target: int) -> Coupling:
    """Return the coupling that keeps the order; it repeats neurons for a wider target and merges them for a narrower one."""
    if source == target:
        return Coupling.identity(source)
    rows, columns = np.arange(target + 1) / target, np.arange(source + 1) / source
    low = np.maximum(rows[:-1, None], columns[None, :-1])
    high = np.minimum(rows[1:, None], columns[None, 1:])
    plan = np.clip(high - low, 0, None)
    plan[plan < 1e-12] = 0
    return Plan(plan / plan.sum())


def kron_coupling(blocks: Coupling, inner: Coupling) -> Coupling:
    """Return the coupling of neurons in blocks: `inner` within every pair of coupled blocks."""
    if isinstance(blocks, Permutation) and isinstance(inner, Permutation):
        return Permutation((blocks.index[:, None] * len(inner.index) + inner.index).ravel())
    return Plan(np.kron(blocks.plan, inner.plan))


def random_start(problem: Problem) -> Solution:
    """Return random couplings: permutations if sizes agree, otherwise the order-preserving plan of shuffled neurons."""
    plans: list[Plans] = []
    for model, sizes in enumerate(problem.source_sizes):
        model_plans: Plans = {}
        for group in problem.sizes:
            if problem.is_pinned(group):
                model_plans[group] = problem.pinned[model][group]
            elif group in problem.block_groups:
                model_plans[group] = _shuffled_within(problem, group, model, model_plans)
            else:
                shuffled = Permutation(problem.random_state.permutation(sizes[group]))
                model_plans[group] = problem.default_coupling(group, model, model_plans).compose(shuffled)
        plans.append(model_plans)
    return problem.solution(plans)


def _shuffled_within(problem: Problem, group: str, model: int, plans: Plans) -> Coupling:
    """Return the default coupling with the neurons of each block shuffled."""
    coupling, sizes = problem.default_coupling(group, model, plans), problem.source_sizes[model]
    count = sizes[problem.block_groups[group]]
    d = sizes[group] // count
    order = np.concatenate([b * d + problem.random_state.permutation(d) for b in range(count)])
    return coupling.compose(Permutation(order))
