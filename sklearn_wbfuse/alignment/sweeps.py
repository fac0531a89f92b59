r"""Sweeps over incoming and outgoing tensors that match each model to the weighted mean of the others until nothing changes.

At reg=0 and equal widths an update only needs the products of one group with its neighbours. The arrays of each model are held
in the target's neurons, and a coupling is solved for relative to the current one: only the axis of the group is permuted, and
the energy falls by :math:`2 \lambda_i \alpha_p \langle \sum_{j \ne i} \lambda_j A^j_p, \Delta A^i_p \rangle`, a difference of
products.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from ..network.couplings import Permutation, along
from ..transport import Prices
from .energy import carried
from .features import Feature
from .matching import assigned
from .problem import Plans, Problem, Solution
from .product_cache import ProductCache
from .updates import GroupUpdate, sweep_updates

__all__ = ["Sweeps", "entropic_step", "solve_joint"]

log = logging.getLogger("sklearn_wbfuse")

_FEW = 0.25
"""Share of changed neurons of a group up to which the products of several models are updated instead of computed again."""


def solve_joint(problem: Problem, start: Solution) -> Solution:
    """Sweep over groups and models until no coupling changes or the energy stops falling.

    An update is made only if it lowers the energy. For permutations it always does; for plans between unequal widths it need
    not.
    """
    state = Sweeps(problem, start.plans, sweep_updates(problem))
    history = [start.energy]
    sweep = 0
    for sweep in range(1, problem.max_iter + 1):
        fall = state.sweep()
        value = history[-1] if fall == 0 else history[-1] - fall if fall is not None else state.energy()
        log.info("joint sweep %d: energy %.6g", sweep, value)
        history.append(value)
        if fall == 0 or (history[-2] - value <= problem.tol * abs(history[-2]) and sweep > 1):
            break
    history[-1] = min(state.energy(), history[-2])  # free of the rounding of the falls
    return Solution(state.plans, history[-1], sweep, history)


def entropic_step(problem: Problem, exact: Solution) -> Solution:
    """Make one entropic step from exact couplings: couple each model with the mean of the others as the sweeps left them.

    The reference keeps its couplings, so that the target's neurons are its own and no pair of models is blurred twice.
    Entropic sweeps, which match each model to the blurred mean of the others, take six times as long and give no better
    networks.
    """
    state, plans = Sweeps(problem, exact.plans, sweep_updates(problem)), list[Plans]()
    fixed = problem.reference if problem.mixture.weights[problem.reference] > 0 else int(np.argmax(problem.mixture.weights))
    for i, exact_plans in enumerate(exact.plans):
        entropic_plans: Plans = {}
        for update in () if i == fixed else state.updates:
            indices = problem.features_of(update.all)
            source = [problem.source_arrays[i][p] for p in indices]
            # Neurons stay within blocks that are coupled already; all else is as the sweeps left it.
            same_blocks = {g: entropic_plans[g] for g in (update.blocks, *update.groups) if g in entropic_plans}
            current = {**exact_plans, **same_blocks}
            entropic_plans |= update.solve(problem, i, indices, state.others(i, indices), source, current, {})
        plans.append({**exact_plans, **entropic_plans})
    result = problem.solution(plans)
    log.info("entropic step: energy %.6g", result.energy)
    return Solution(result.plans, result.energy, exact.n_iter, [*exact.history, result.energy])


class Sweeps:
    """Couplings of all models, and their arrays in the target's neurons."""

    def __init__(self, problem: Problem, start: Sequence[Plans], updates: Sequence[GroupUpdate]):
        self.problem = problem
        self.plans = [dict(p) for p in start]
        self.moved = [problem.carry(i, p) for i, p in enumerate(self.plans)]
        self.updates = updates
        self.pending = _Pending(problem, self.updates)
        self.products = ProductCache(problem, self.moved)
        self.prices: dict[tuple[int, str], Prices] = {}

    def energy(self) -> float:
        """Compute the energy at the best target."""
        return self.problem.energy(self.plans, self.moved)

    def others(self, i: int, indices: Sequence[int]) -> list[Tensor]:
        """Return the mean of some arrays of the other models, or the model's own if it has all the weight."""
        return [self.problem.mixture.mean_of_others(i, [arrays[p] for arrays in self.moved]) for p in indices]

    def sweep(self) -> float | None:
        """Make all updates that are due; return by how much the energy fell, None if that is not known."""
        fall: float | None = 0.0
        for k, update in enumerate(self.updates):
            for i in self._moving(update):
                if self.pending.take(i, k):
                    gain = self._step(update, i)
                    if gain != 0:
                        self.pending.changed(i, k)
                        fall = None if fall is None or gain is None else fall + gain
        return fall

    def _moving(self, update: GroupUpdate) -> Collection[int]:
        """Return the models whose couplings an update solves for: of two permuted models, one can stay as it is."""
        problem, count = self.problem, len(self.plans)
        if count > 2 or not all(plans[g].is_permutation for plans in self.plans for g in update.all):
            return range(count)
        fixed = problem.reference if problem.mixture.weights[problem.reference] > 0 else 1 - problem.reference
        return [1 - fixed] if count == 2 else [0]

    def _step(self, update: GroupUpdate, i: int) -> float | None:
        """Match the groups of an update of one model to the mean of the others.

        Return by how much the energy fell: 0 if no coupling changed, None if it is not known.
        """
        permuted = all(self.plans[i][g].is_permutation for g in update.all)
        if permuted and self.problem.mixture.has_all(i):
            return 0.0
        if permuted and update.blocks is None and self.products.is_linear(update.groups[0]):
            return self._exchange(update.groups[0], i)
        return None if self._replace(update, i) else 0.0

    def _exchange(self, group: str, i: int) -> float | None:
        """Permute the neurons of a group that is on at most one axis of every tensor, relative to their present order."""
        even, odd = self.products.of(i, group)
        exchange = assigned(even, odd, self.prices.setdefault((i, group), Prices()))
        gain, size = 0.0, 0.0
        for matrix, signs in ((even, None), (odd, exchange.signs)):
            if matrix is not None:
                current = matrix.diagonal().double().cpu().numpy()
                exchanged = matrix[torch.arange(len(current)), torch.as_tensor(exchange.index)].double().cpu().numpy()
                gain += float(((exchanged if signs is None else signs * exchanged) - current).sum())
                size += float(np.abs(current).sum())
        if gain <= 1e-9 * size:
            return 0.0
        self.plans[i] = {**self.plans[i], group: exchange.compose(self.plans[i][group])}
        has_moved = exchange.index != np.arange(len(exchange.index))
        units = torch.as_tensor(np.flatnonzero(has_moved if exchange.signs is None else has_moved | (exchange.signs < 0)))
        only_few = len(self.plans) == 2 or len(units) <= _FEW * len(has_moved)
        for matrix, changes_sign in ((even, False), (odd, True)):
            if matrix is not None:
                _exchanged(matrix, 1, exchange, units, changes_sign)
        changes: dict[int, Tensor] = {}
        for p in self.problem.features_of([group]):
            if self.moved[i][p] is self.problem.source_arrays[i][p]:
                self.moved[i][p] = self.moved[i][p].clone()
            feature = self.problem.features[p]
            for axis, name in enumerate(feature.groups):
                if name == group and only_few:
                    changes[p] = _exchanged(self.moved[i][p], axis, exchange, units, feature.odd[axis])
                elif name == group:
                    self.moved[i][p] = exchange.apply(self.moved[i][p], axis, feature.roles[axis], feature.odd[axis])
        self.products.invalidate(i, group, units if only_few else None, changes)
        return 2 * self.problem.mixture.weights[i] * self.products.weight(i) * gain or None  # 0 for a model of weight 0

    def _replace(self, update: GroupUpdate, i: int) -> bool:
        """Solve for couplings of any kind, and accept them if the energy falls."""
        problem, weight = self.problem, self.problem.mixture.weights[i]
        indices = problem.features_of(update.all)
        features, targets = [problem.features[p] for p in indices], self.others(i, indices)
        source = [problem.source_arrays[i][p] for p in indices]
        couplings = update.solve(problem, i, indices, targets, source, self.plans[i], {})
        if all(c.same_as(self.plans[i][g], problem.tol) for g, c in couplings.items()):
            return False
        trial = {**self.plans[i], **couplings}
        arrays = [carried(f, array, trial) for f, array in zip(features, source, strict=True)]
        old = [self.moved[i][p] for p in indices]
        if _gain(features, targets, old, arrays, weight, problem.mixture.has_all(i)) <= 0:
            return False
        self.plans[i] = trial
        for p, array in zip(indices, arrays, strict=True):
            self.moved[i][p] = array
        for group in couplings:
            self.products.invalidate(i, group)
        return True


def _exchanged(array: Tensor, axis: int, permutation: Permutation, units: Tensor, odd: bool) -> Tensor:
    """Permute a few units of one axis in place, and return their change."""
    units = units.to(array.device)
    old = array.index_select(axis, units)
    new = array.index_select(axis, torch.as_tensor(permutation.index, device=array.device)[units])
    if odd and permutation.signs is not None:
        new = new * along(torch.as_tensor(permutation.signs, dtype=array.dtype, device=array.device)[units], axis, array.dim())
    array.index_copy_(axis, units, new)
    return new.sub_(old)


class _Pending:
    """The updates of a sweep that are due: those in whose tensors another group or model has changed since the last time."""

    def __init__(self, problem: Problem, updates: Sequence[GroupUpdate]):
        self.models = range(len(problem.source_arrays))
        self.has_all = problem.mixture.has_all
        self.adjacent: list[set[int]] = []
        self.settles: list[bool] = []  # an update that changes nothing when it is made again
        for update in updates:
            indices = problem.features_of(update.all)
            groups = {g for p in indices for g in problem.features[p].groups}
            self.adjacent.append({k for k, other in enumerate(updates) if groups & set(other.all)})
            largest_count = max((problem.features[p].groups.count(g) for p in indices for g in update.all), default=0)
            is_plain = update.blocks is None or not update.free
            self.settles.append(is_plain and (largest_count < 2 or (largest_count == 2 and update.blocks is None)))
        self.due = {(i, k) for i in self.models for k in range(len(updates))}

    def take(self, model: int, update: int) -> bool:
        """Return whether an update is due, and mark it as done."""
        is_due = (model, update) in self.due
        self.due.discard((model, update))
        return is_due

    def changed(self, model: int, update: int) -> None:
        """Mark the updates that depend on a changed coupling as due, and the same one if its problem depends on its result."""
        self.due |= {(i, k) for i in self.models for k in self.adjacent[update]}
        if self.settles[update] and not self.has_all(model):
            self.due.discard((model, update))


def _gain(
    features: Sequence[Feature],
    others: Sequence[Tensor],
    old: Sequence[Tensor],
    new: Sequence[Tensor],
    weight: float,
    has_all: bool,
) -> float:
    r"""Return the fall of :math:`E = const - \|\sum_j \lambda_j A^j\|^2`, the energy at its best target, less 1e-9 of it."""
    gain, scale = 0.0, 0.0
    weight = max(weight, 1e-3)  # models of weight 0 are matched as well
    for feature, t, a, b in zip(features, others, old, new, strict=True):
        rest = torch.zeros_like(t) if has_all else (1 - weight) * t
        before = (rest + weight * a).pow(2).sum(dtype=torch.float64)
        after = (rest + weight * b).pow(2).sum(dtype=torch.float64)
        gain += feature.alpha * float(after - before)
        scale += feature.alpha * float(before)
    return gain - 1e-9 * scale
