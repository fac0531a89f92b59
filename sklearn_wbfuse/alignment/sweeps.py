r"""Sweeps over incoming and outgoing tensors, each model against the weighted mean of the others, until nothing changes.

At reg=0 and equal widths a step needs the products of one group with its neighbours alone: the arrays of a model are kept in
the target's neurons, so that a coupling is looked for relative to the current one, nothing but the axis that moves is
gathered, and the energy falls by :math:`2 \lambda_i \alpha_p \langle \sum_{j \ne i} \lambda_j A^j_p, \Delta A^i_p \rangle`, a
difference of products.
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
"""Products of several models are updated, not computed anew, when at most this share of a group's neurons has changed."""


def solve_joint(problem: Problem, start: Solution) -> Solution:
    """Sweep over groups and models until no coupling changes or the energy stops falling.

    A step is taken only if the energy falls: for permutations it always does, for plans between unequal widths it need not.
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
    """One entropic step from exact couplings: each model is coupled with the mean of the others as these are.

    The reference keeps its couplings, so that the target's neurons are its own and no pair of models is blurred twice. Sweeps
    of entropic steps, each against what the others have blurred, take six times as long and lead to no better networks.
    """
    state, found = Sweeps(problem, exact.plans, sweep_updates(problem)), list[Plans]()
    stays = problem.reference if problem.mixture.weights[problem.reference] > 0 else int(np.argmax(problem.mixture.weights))
    for i, own in enumerate(exact.plans):
        soft: Plans = {}
        for update in () if i == stays else state.updates:
            at = problem.features_of(update.all)
            family = [g for g in (update.blocks, *update.groups) if g in soft]  # neurons stay in blocks that have moved
            before = {**own, **{g: soft[g] for g in family}}
            soft |= update.solve(problem, i, at, state.others(i, at), [problem.source_arrays[i][p] for p in at], before, {})
        found.append({**own, **soft})
    result = problem.solution(found)
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
        """At the best target."""
        return self.problem.energy(self.plans, self.moved)

    def others(self, i: int, at: Sequence[int]) -> list[Tensor]:
        """Mean of some arrays of the other models; of the model itself if it has all the weight."""
        return [self.problem.mixture.mean_of_others(i, [own[p] for own in self.moved]) for p in at]

    def sweep(self) -> float | None:
        """One step for every group and model that may find something new; how much the energy fell, None if not known."""
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
        """The models whose coupling of a group is looked for: of two that are permuted, one may stay where it is."""
        problem, count = self.problem, len(self.plans)
        if count > 2 or not all(own[g].is_permutation for own in self.plans for g in update.all):
            return range(count)
        stays = problem.reference if problem.mixture.weights[problem.reference] > 0 else 1 - problem.reference
        return [1 - stays] if count == 2 else [0]

    def _step(self, update: GroupUpdate, i: int) -> float | None:
        """Match the groups of a step of one model to the mean of the others.

        Returns how much the energy fell, 0 if no coupling changed, None if it is not known.
        """
        permuted = all(self.plans[i][g].is_permutation for g in update.all)
        if permuted and self.problem.mixture.has_all(i):
            return 0.0
        if permuted and update.blocks is None and self.products.linear(update.groups[0]):
            return self._exchange(update.groups[0], i)
        return None if self._replace(update, i) else 0.0

    def _exchange(self, group: str, i: int) -> float | None:
        """Permute the neurons of a group that stands once in every tensor, relative to where they are."""
        even, odd = self.products.of(i, group)
        found = assigned(even, odd, self.prices.setdefault((i, group), Prices()))
        gain, size = 0.0, 0.0
        for matrix, signs in ((even, None), (odd, found.signs)):
            if matrix is not None:
                here = matrix.diagonal().double().cpu().numpy()
                there = matrix[torch.arange(len(here)), torch.as_tensor(found.index)].double().cpu().numpy()
                gain += float(((there if signs is None else signs * there) - here).sum())
                size += float(np.abs(here).sum())
        if gain <= 1e-9 * size:
            return 0.0
        self.plans[i] = {**self.plans[i], group: found.compose(self.plans[i][group])}
        moved = found.index != np.arange(len(found.index))
        units = torch.as_tensor(np.flatnonzero(moved if found.signs is None else moved | (found.signs < 0)))
        few = len(self.plans) == 2 or len(units) <= _FEW * len(moved)
        for matrix, changes_sign in ((even, False), (odd, True)):
            if matrix is not None:
                _exchanged(matrix, 1, found, units, changes_sign)
        changes: dict[int, Tensor] = {}
        for p in self.problem.features_of([group]):
            if self.moved[i][p] is self.problem.source_arrays[i][p]:
                self.moved[i][p] = self.moved[i][p].clone()
            feature = self.problem.features[p]
            for axis, name in enumerate(feature.groups):
                if name == group and few:
                    changes[p] = _exchanged(self.moved[i][p], axis, found, units, feature.odd[axis])
                elif name == group:
                    self.moved[i][p] = found.apply(self.moved[i][p], axis, feature.roles[axis], feature.odd[axis])
        self.products.changed(i, group, units if few else None, changes)
        return 2 * self.problem.mixture.weights[i] * self.products.weight(i) * gain or None  # nothing for a model of weight 0

    def _replace(self, update: GroupUpdate, i: int) -> bool:
        """Look for couplings of any kind, and take them if the energy falls."""
        problem, weight = self.problem, self.problem.mixture.weights[i]
        at = problem.features_of(update.all)
        features, targets = [problem.features[p] for p in at], self.others(i, at)
        source = [problem.source_arrays[i][p] for p in at]
        found = update.solve(problem, i, at, targets, source, self.plans[i], {})
        if all(c.same_as(self.plans[i][g], problem.tol) for g, c in found.items()):
            return False
        trial = {**self.plans[i], **found}
        arrays = [carried(f, a, trial) for f, a in zip(features, source, strict=True)]
        old = [self.moved[i][p] for p in at]
        if _gain(features, targets, old, arrays, weight, problem.mixture.has_all(i)) <= 0:
            return False
        self.plans[i] = trial
        for p, a in zip(at, arrays, strict=True):
            self.moved[i][p] = a
        for group in found:
            self.products.changed(i, group)
        return True


def _exchanged(array: Tensor, axis: int, by: Permutation, units: Tensor, odd: bool) -> Tensor:
    """Permute a few units of one axis in place; returns by how much they changed."""
    units = units.to(array.device)
    old = array.index_select(axis, units)
    new = array.index_select(axis, torch.as_tensor(by.index, device=array.device)[units])
    if odd and by.signs is not None:
        new = new * along(torch.as_tensor(by.signs, dtype=array.dtype, device=array.device)[units], axis, array.dim())
    array.index_copy_(axis, units, new)
    return new.sub_(old)


class _Pending:
    """Which steps of a sweep may find something new: those in whose tensors something else has moved since the last time."""

    def __init__(self, problem: Problem, updates: Sequence[GroupUpdate]):
        self.models = range(len(problem.source_arrays))
        self.has_all = problem.mixture.has_all
        self.near: list[set[int]] = []
        self.settled = []
        for update in updates:
            at = problem.features_of(update.all)
            touched = {g for p in at for g in problem.features[p].groups}
            self.near.append({k for k, other in enumerate(updates) if touched & set(other.all)})
            most = max((problem.features[p].groups.count(g) for p in at for g in update.all), default=0)
            plain = update.blocks is None or not update.free
            self.settled.append(plain and (most < 2 or (most == 2 and update.blocks is None)))
        self.updates = {(i, k) for i in self.models for k in range(len(updates))}

    def take(self, model: int, update: int) -> bool:
        """Whether a step is due; it counts as done."""
        due = (model, update) in self.updates
        self.updates.discard((model, update))
        return due

    def changed(self, model: int, update: int) -> None:
        """A coupling has changed: every other step that sees it is due, and the same one where its problem depends on it."""
        self.updates |= {(i, k) for i in self.models for k in self.near[update]}
        if self.settled[update] and not self.has_all(model):
            self.updates.discard((model, update))


def _gain(
    features: Sequence[Feature],
    others: Sequence[Tensor],
    old: Sequence[Tensor],
    new: Sequence[Tensor],
    weight: float,
    alone: bool,
) -> float:
    r"""How much the energy at its best target falls: :math:`E = const - \|\sum_j \lambda_j A^j\|^2`, to a relative 1e-9."""
    gain, scale = 0.0, 0.0
    weight = max(weight, 1e-3)  # a model of weight 0 is matched all the same
    for feature, t, a, b in zip(features, others, old, new, strict=True):
        rest = torch.zeros_like(t) if alone else (1 - weight) * t
        before = (rest + weight * a).pow(2).sum(dtype=torch.float64)
        after = (rest + weight * b).pow(2).sum(dtype=torch.float64)
        gain += feature.alpha * float(after - before)
        scale += feature.alpha * float(before)
    return gain - 1e-9 * scale
