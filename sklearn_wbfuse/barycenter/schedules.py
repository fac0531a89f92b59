r"""Schedules: in which order couplings and target are updated.

`layerwise` is Algorithm 1 of the paper: group after group in the order of computation, incoming tensors only, couplings and
target in turns. `joint` starts there and sweeps over incoming and outgoing tensors, each model against the weighted mean
of the others, until nothing changes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch import Tensor

from ..couplings import Coupling
from ..transport import solve
from .energy import carried, energy, mean_target
from .matching import couple
from .view import Feature

__all__ = ["Problem", "Solution", "joint", "layerwise", "match", "match_all", "random_start"]

log = logging.getLogger("sklearn_wbfuse")

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
    weights : list of float
        :math:`\lambda_i`, sum 1.
    reg : float
    pinned : dict of str to Coupling
        Groups whose coupling is known beforehand.
    reference : int
        The model whose neuron order the target starts from.
    start : {"linear", "propagated", "uniform", "perturbed"}
        Where the coupling of a recurrent group starts; see `couple`.
    """

    described: list[Feature]
    models: list[list[Tensor]]
    sizes: dict[str, int]
    source_sizes: list[dict[str, int]]
    weights: list[float]
    reg: float = 0.0
    pinned: Plans = field(default_factory=dict)
    reference: int = 0
    start: str = "linear"
    random_state: np.random.RandomState = field(default_factory=lambda: np.random.RandomState(0))
    max_iter: int = 100
    tol: float = 1e-6

    def carry(self, model: int, plans: Mapping[str, Coupling]) -> list[Tensor]:
        """All arrays of a model in the target's neurons."""
        return [carried(f, a, plans) for f, a in zip(self.described, self.models[model], strict=True)]

    def energy(self, targets: Sequence[Tensor], moved: Sequence[Sequence[Tensor]]) -> float:
        """The full energy; see `barycenter.energy.energy`."""
        return energy(self.described, targets, self.models, moved, self.weights)

    def solution(self, plans: list[Plans], n_iter: int = 0) -> Solution:
        """Couplings with their energy at the best target."""
        moved = [self.carry(i, p) for i, p in enumerate(plans)]
        value = self.energy(mean_target(moved, self.weights), moved)
        return Solution(plans, value, n_iter, [value])

    @property
    def is_quadratic(self) -> bool:
        """Whether a group stands twice in a tensor that counts."""
        return any(f.alpha and f.groups.count(g) > 1 for f in self.described for g in f.groups)

    def alone(self, model: int) -> bool:
        """Whether a model has all the weight, so that there are no others to be matched to."""
        return 1 - self.weights[model] < 1e-12

    def touching(self, group: str) -> list[int]:
        """Features in which a group stands."""
        return [p for p, f in enumerate(self.described) if group in f.groups]


@dataclass(eq=False)
class Solution:
    """Couplings of every model, the energy, and how it was reached."""

    plans: list[Plans]
    energy: float
    n_iter: int
    history: list[float]


def layerwise(problem: Problem) -> Solution:
    """The paper's Algorithm 1: Wasserstein barycenters, group after group, of incoming tensors."""
    plans: list[Plans] = [{} for _ in problem.models]
    for group in problem.sizes:
        _layer(problem, group, plans)
    found = problem.solution(plans, n_iter=1)
    log.info("layerwise: energy %.6g", found.energy)
    return found


def _layer(problem: Problem, group: str, plans: list[Plans]) -> None:
    """Couplings and target of one group, in turns, its inputs already matched."""
    if group in problem.pinned:
        for own in plans:
            own[group] = problem.pinned[group]
        return
    usable = _usable(problem, group, plans[0])
    if not usable:
        for i, own in enumerate(plans):
            own[group] = _spread(problem.source_sizes[i][group], problem.sizes[group])
        return
    described = [problem.described[p] for p in usable]
    sources = [[problem.models[i][p] for p in usable] for i in range(len(plans))]
    current = _start(problem, group, described, sources[problem.reference], plans[problem.reference])

    def moved(i: int) -> list[Tensor]:
        return [carried(f, a, plans[i]) for f, a in zip(described, sources[i], strict=True)]

    def update(i: int, target: Sequence[Tensor]) -> bool:
        old = plans[i].get(group)
        plans[i][group] = couple(
            group,
            described,
            target,
            sources[i],
            plans[i],
            problem.reg,
            start=problem.start,
            random_state=problem.random_state,
        )
        return old is None or not old.same_as(plans[i][group], problem.tol)

    for i in range(len(plans)):
        if i == problem.reference and problem.reg == 0 and problem.sizes[group] >= problem.source_sizes[i][group]:
            plans[i][group] = _spread(problem.source_sizes[i][group], problem.sizes[group])  # its own target
        else:
            update(i, current)
    exact = problem.reg == 0 and all(own[group].is_permutation for own in plans)
    if exact and len(plans) == 2:
        return
    arrays = [moved(i) for i in range(len(plans))]
    for _ in range(problem.max_iter):
        changed = False
        for i, weight in enumerate(problem.weights):
            # The mean of all holds a model where it is; for permutations the mean of the others is a descent step as well.
            if exact and problem.alone(i):
                continue
            mean = mean_target(arrays, problem.weights)
            if exact:
                mean = [(t - weight * a) / (1 - weight) for t, a in zip(mean, arrays[i], strict=True)]
            if update(i, mean):
                changed, arrays[i] = True, moved(i)
        if not changed:
            break


def _usable(problem: Problem, group: str, known: Collection[str]) -> list[int]:
    """Features that compute the group from groups that are matched already, or from itself (recurrent weights)."""
    found = []
    for p, feature in enumerate(problem.described):
        roles = [r for g, r in zip(feature.groups, feature.roles, strict=True) if g == group]
        if "out" in roles and len(roles) <= 2 and all(g in known or g == group for g in feature.groups):
            found.append(p)
    alone = [p for p in found if problem.described[p].groups.count(group) == 1]
    return found if alone else []


def _start(problem: Problem, group: str, described: Sequence[Feature], source: Sequence[Tensor], plans: Plans) -> list[Tensor]:
    """First target of a group: the reference model's neurons, repeated where the target is wider, clustered where narrower."""
    n, own = problem.sizes[group], problem.source_sizes[problem.reference][group]
    if n >= own:
        start = {**plans, group: _spread(own, n)}
        return [carried(f, a, start) for f, a in zip(described, source, strict=True)]
    once = [(f, a, f.groups.index(group)) for f, a in zip(described, source, strict=True) if f.groups.count(group) == 1]
    moved = [carried(f, a, plans, skip=[axis]) for f, a, axis in once]
    rows = torch.cat([a.movedim(axis, 0).reshape(own, -1) for a, (_, _, axis) in zip(moved, once, strict=True)], 1).cpu().numpy()
    centers = KMeans(n, n_init=1, random_state=problem.random_state).fit(rows).cluster_centers_
    start = {**plans, group: solve(cdist(centers, rows, "sqeuclidean"))}
    return [carried(f, a, start) for f, a in zip(described, source, strict=True)]


def _spread(source: int, target: int) -> Coupling:
    """The coupling that keeps the order: repeats sources where the target is wider, merges neighbours where narrower."""
    if source == target:
        return Coupling.identity(source)
    rows, columns = np.arange(target + 1) / target, np.arange(source + 1) / source
    low = np.maximum(rows[:-1, None], columns[None, :-1])
    high = np.minimum(rows[1:, None], columns[None, 1:])
    plan = np.clip(high - low, 0, None)
    plan[plan < 1e-12] = 0
    return Coupling(plan / plan.sum())


def random_start(problem: Problem) -> Solution:
    """Random couplings: permutations where sizes agree, the order-keeping plan of shuffled neurons otherwise."""
    plans: list[Plans] = []
    for sizes in problem.source_sizes:
        own: Plans = {}
        for group, n in problem.sizes.items():
            shuffled = problem.random_state.permutation(sizes[group])
            if group in problem.pinned:
                own[group] = problem.pinned[group]
            elif sizes[group] == n:
                own[group] = Coupling(index=shuffled)
            else:
                own[group] = Coupling(_spread(sizes[group], n).plan[:, shuffled])
        plans.append(own)
    return problem.solution(plans)


def joint(problem: Problem, start: Solution) -> Solution:
    """Sweep over groups and models until no coupling changes or the energy stops falling.

    At reg=0 a step is taken only if the energy falls (for permutations it always does; for plans between unequal widths it
    need not). Entropic sweeps take every step; they stop as well when the energy stops falling, and the sweep with the lowest
    energy is kept, which is often the start: the costs of a sweep are larger than those of one layer's incoming tensors, and
    `reg` is relative to the largest.
    """
    plans = [dict(p) for p in start.plans]
    moved = [problem.carry(i, p) for i, p in enumerate(plans)]
    history, best = [start.energy], [dict(p) for p in plans]
    pending = _Pending(problem)
    sweep = 0
    for sweep in range(1, problem.max_iter + 1):
        changed = False
        for group in problem.sizes:
            for i in _moving(problem, group, plans):
                if pending.take(i, group) and _sweep_step(problem, group, i, plans, moved):
                    pending.changed(i, group)
                    changed = True
        value = problem.energy(mean_target(moved, problem.weights), moved)
        log.info("joint sweep %d: energy %.6g", sweep, value)
        if value <= min(history):
            best = [dict(p) for p in plans]
        history.append(value)
        if not changed or (history[-2] - value <= problem.tol * abs(history[-2]) and sweep > 1):
            break
    return Solution(best, min(history), sweep, history)


def _moving(problem: Problem, group: str, plans: list[Plans]) -> Collection[int]:
    """The models whose coupling of a group is looked for: of two that are permuted, one may stay where it is."""
    if group in problem.pinned:
        return ()
    if len(plans) > 2 or problem.reg > 0 or not all(own[group].is_permutation for own in plans):
        return range(len(plans))
    stays = problem.reference if problem.weights[problem.reference] > 0 else 1 - problem.reference
    return [1 - stays] if len(plans) == 2 else [0]


class _Pending:
    """Which steps of a sweep may find something new: those in whose tensors something else has moved since the last time."""

    def __init__(self, problem: Problem):
        self.near = {g: {h for p in problem.touching(g) for h in problem.described[p].groups} for g in problem.sizes}
        self.models = range(len(problem.models))
        self.alone = problem.alone
        most = {g: max((problem.described[p].groups.count(g) for p in problem.touching(g)), default=0) for g in problem.sizes}
        self.settled = {g: most[g] < 2 or (most[g] == 2 and problem.reg == 0) for g in problem.sizes}
        self.steps = {(i, g) for i in self.models for g in problem.sizes}

    def take(self, model: int, group: str) -> bool:
        """Whether a step is due; it counts as done."""
        due = (model, group) in self.steps
        self.steps.discard((model, group))
        return due

    def changed(self, model: int, group: str) -> None:
        """A coupling has changed: every other step that sees it is due, and the same one where its problem depends on it."""
        self.steps |= {(i, g) for i in self.models for g in self.near[group]}
        if self.settled[group] and not self.alone(model):
            self.steps.discard((model, group))


def _sweep_step(problem: Problem, group: str, i: int, plans: list[Plans], moved: list[list[Tensor]]) -> bool:
    """Match one group of one model to the mean of the others; returns whether its coupling changed."""
    weights = np.array(problem.weights)
    others, alone = 1 - weights[i], problem.alone(i)
    if alone and plans[i][group].is_permutation:
        return False
    touched = problem.touching(group)
    described = [problem.described[p] for p in touched]
    targets = []
    for p in touched:
        mean = sum(w * m[p] for w, m in zip(weights, moved, strict=True))
        targets.append(mean if alone else (mean - weights[i] * moved[i][p]) / others)
    source = [problem.models[i][p] for p in touched]
    proposal = couple(group, described, targets, source, plans[i], problem.reg)
    if proposal.same_as(plans[i][group], problem.tol):
        return False
    trial = {**plans[i], group: proposal}
    arrays = [carried(f, a, trial) for f, a in zip(described, source, strict=True)]
    if problem.reg == 0 and _gain(described, touched, targets, moved[i], arrays, weights[i], alone) <= 0:
        return False
    plans[i] = trial
    for p, a in zip(touched, arrays, strict=True):
        moved[i][p] = a
    return True


def _gain(
    described: Sequence[Feature],
    touched: Sequence[int],
    others: Sequence[Tensor],
    old: Sequence[Tensor],
    new: Sequence[Tensor],
    weight: float,
    alone: bool,
) -> float:
    r"""How much the energy at its best target falls: :math:`E = const - \|\sum_j \lambda_j A^j\|^2`, to a relative 1e-9."""
    gain, scale = 0.0, 0.0
    weight = max(weight, 1e-3)  # a model of weight 0 is matched all the same
    for feature, p, t, b in zip(described, touched, others, new, strict=True):
        a = old[p]
        rest = torch.zeros_like(t) if alone else (1 - weight) * t
        before = (rest + weight * a).pow(2).sum(dtype=torch.float64)
        after = (rest + weight * b).pow(2).sum(dtype=torch.float64)
        gain += feature.alpha * float(after - before)
        scale += feature.alpha * float(before)
    return gain - 1e-9 * scale


def match_all(problem: Problem, targets: Sequence[Tensor]) -> Solution:
    """Couplings of every model with a given network of the target's widths."""
    plans = [
        match(replace(problem, models=[own], source_sizes=[sizes], weights=[1.0]), targets)
        for own, sizes in zip(problem.models, problem.source_sizes, strict=True)
    ]
    return problem.solution(plans)


def match(problem: Problem, targets: Sequence[Tensor]) -> Plans:
    """Couplings of one model (the problem's only one) with a fixed target: group after group, then sweeps."""
    own: Plans = {}

    def proposal(group: str, at: Sequence[int]) -> Coupling:
        described, t, s = [problem.described[p] for p in at], [targets[p] for p in at], [problem.models[0][p] for p in at]
        return couple(group, described, t, s, own, problem.reg)

    def fit(at: Sequence[int], plans: Plans) -> float:
        moved = [(problem.described[p], targets[p], carried(problem.described[p], problem.models[0][p], plans)) for p in at]
        return sum(f.alpha * float((t * a).sum(dtype=torch.float64)) for f, t, a in moved)

    for group, n in problem.sizes.items():
        usable = _usable(problem, group, own)
        if group in problem.pinned:
            own[group] = problem.pinned[group]
        elif usable:
            own[group] = proposal(group, usable)
        else:
            own[group] = _spread(problem.source_sizes[0][group], n)
    for _ in range(problem.max_iter):
        changed = False
        for group in (g for g in problem.sizes if g not in problem.pinned):
            at = problem.touching(group)
            found = proposal(group, at)
            if found.same_as(own[group], problem.tol):
                continue
            before = fit(at, own)
            if problem.reg > 0 or fit(at, {**own, group: found}) > before + 1e-9 * abs(before):
                own[group], changed = found, True
        if not changed or problem.reg > 0:
            break
    return own
