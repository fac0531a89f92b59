r"""The paper's schedule, and couplings with a network that is given: group after group in the order of computation.

`layerwise` is Algorithm 1 of the paper: incoming tensors only, couplings and target in turns. `match` looks for couplings with a
fixed target in the same order, and then sweeps over all tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from joblib import effective_n_jobs
from scipy.spatial.distance import cdist
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor

from ..network.couplings import Coupling, Plan
from ..network.mixture import Mixture
from ..transport import Potentials, solve
from .energy import carried, mean_target
from .matching import fit
from .problem import Plans, Problem, Solution
from .sweeps import Sweeps
from .updates import GroupUpdate, sweep_updates

__all__ = ["match_all_to_target", "match_to_target", "solve_layerwise"]

log = logging.getLogger("sklearn_wbfuse")


def solve_layerwise(problem: Problem, *, readers: bool = False) -> Solution:
    """The paper's Algorithm 1: Wasserstein barycenters, group after group, of incoming tensors.

    With `readers`, outgoing tensors count as well where all their other groups are coupled already (those of the last group of
    neurons, of both ends of a skip), if neurons are permuted: sweeps that start there are fewer. Recurrent groups stand twice
    in a tensor, and their starts are not so near to the optimum that outgoing weights help: an RNN pair fell from 92 to 82 %.
    """
    plans: list[Plans] = [{} for _ in problem.source_arrays]
    same_sizes = all(own == problem.sizes for own in problem.source_sizes)
    readers = readers and same_sizes and not problem.is_quadratic
    for update, at in _in_order(problem, plans, readers):
        plans[:] = _layer(problem, update, at, plans)
    found = problem.solution(plans, n_iter=1)
    log.info("layerwise: energy %.6g", found.energy)
    return found


def _in_order(problem: Problem, plans: Sequence[Plans], readers: bool = False) -> Iterator[tuple[GroupUpdate, list[int]]]:
    """The next step whose features compute their groups from groups that are coupled, until all are.

    Groups that nothing can tell apart keep their order, pinned ones get their coupling. Blocks are coupled with the first of
    their members, and with all members that are computed by then.
    """
    for own, known in zip(plans, problem.pinned, strict=False):
        own.update(known)
    blocks = set(problem.block_groups.values())
    waiting = [g for g in problem.sizes if not problem.is_pinned(g)]
    while waiting:
        update, at = None, list[int]()
        for group in waiting:
            if group in blocks:
                continue
            update, at = _ready(problem, group, plans[0], readers)
            if at:
                break
        if update is None or not at:
            for i, own in enumerate(plans):
                own[waiting[0]] = problem.default_coupling(waiting[0], i, own)
        else:
            yield update, at
        waiting = [g for g in waiting if g not in plans[0]]


def _ready(problem: Problem, group: str, known: Collection[str], readers: bool) -> tuple[GroupUpdate, list[int]]:
    """The step of a group, and the features that it is taken from."""
    blocks = problem.block_groups.get(group)
    if blocks is None or blocks in known:
        return GroupUpdate((group,), blocks), _usable(problem, group, known, readers)
    usable = {g: _usable(problem, g, known, readers) for g in problem.members(blocks) if g not in known}
    members = tuple(g for g, at in usable.items() if at)
    if group not in members:
        return GroupUpdate((group,), blocks), []
    at = {p for g in members for p in usable[g]} | {
        p for p in problem.features_of([blocks]) if set(problem.features[p].groups) == {blocks}
    }
    return GroupUpdate(members, blocks, free=True), sorted(at)


def _usable(problem: Problem, group: str, known: Collection[str], readers: bool) -> list[int]:
    """Features that compute the group from groups that are matched already, or from itself (recurrent weights).

    With `readers`, where there are any, also those in which matched groups read it.
    """
    known = {group, *known}
    found = [p for p in problem.features_of([group]) if known.issuperset(problem.features[p].groups)]
    roles = {
        p: [r for g, r in zip(problem.features[p].groups, problem.features[p].roles, strict=True) if g == group] for p in found
    }
    computing = [p for p in found if "out" in roles[p] and len(roles[p]) <= 2]
    if not any(len(roles[p]) == 1 for p in computing):
        return []
    return [p for p in found if len(roles[p]) == 1 or p in computing] if readers else computing


def _layer(problem: Problem, update: GroupUpdate, at: Sequence[int], plans: Sequence[Plans]) -> list[Plans]:
    """Couplings of all models with those of a step's groups, in turns with the target, their inputs already matched."""
    features = [problem.features[p] for p in at]
    sources = [[own[p] for p in at] for own in problem.source_arrays]
    reference = plans[problem.reference]
    kept = {**reference, **_start(problem, update, features, sources[problem.reference], reference)}
    current = [carried(f, a, kept) for f, a in zip(features, sources[problem.reference], strict=True)]
    potentials: list[dict[tuple[int, str], Potentials]] = [{} for _ in plans]

    def updated(i: int, own: Plans, target: Sequence[Tensor]) -> Plans:
        return {**own, **update.solve(problem, i, at, target, sources[i], own, potentials[i])}

    def first(i: int) -> Plans:
        if i == problem.reference and problem.reg == 0 and _repeats(problem, update, i):
            return {**plans[i], **{g: kept[g] for g in update.all}}  # its own target
        return updated(i, plans[i], current)

    # Perturbed starts draw from one random state, in the order of the models.
    jobs = 1 if problem.start == "perturbed" else problem.n_jobs
    if effective_n_jobs(jobs) == 1:  # Parallel takes as long as a small layer
        found = list(map(first, range(len(plans))))
    else:
        found = Parallel(n_jobs=jobs, require="sharedmem")(delayed(first)(i) for i in range(len(plans)))
    if problem.reg == 0 and all(own[g].is_permutation for own in found for g in update.all):
        if len(found) > 2:  # each to the mean of the others: that of all would hold a model where it is
            sweeps = Sweeps(replace(problem, features=features, source_arrays=sources), found, [update])
            for _ in range(problem.max_iter):
                if sweeps.sweep() == 0:
                    break
            return sweeps.plans
        return found
    arrays = [[carried(f, a, own) for f, a in zip(features, s, strict=True)] for own, s in zip(found, sources, strict=True)]
    for _ in range(problem.max_iter):
        changed = False
        for i, old in enumerate(found):
            found[i] = updated(i, old, mean_target(arrays, problem.mixture))
            if not all(g in old and found[i][g].same_as(old[g], problem.tol) for g in update.all):
                changed, arrays[i] = True, [carried(f, a, found[i]) for f, a in zip(features, sources[i], strict=True)]
        if not changed:
            break
    return found


def _repeats(problem: Problem, update: GroupUpdate, model: int) -> bool:
    return all(problem.sizes[g] >= problem.source_sizes[model][g] for g in update.all)


def _start(problem: Problem, update: GroupUpdate, features: Sequence, source: Sequence[Tensor], plans: Plans) -> Plans:
    """First couplings of the reference model: neurons are repeated where the target is wider, clustered where narrower."""
    kept: Plans = {}
    for group in update.all:
        kept[group] = problem.default_coupling(group, problem.reference, {**plans, **kept})
        own, n = problem.source_sizes[problem.reference], problem.sizes
        if n[group] < own[group] and group != update.blocks:
            parts = [(f, a) for f, a in zip(features, source, strict=True) if f.groups.count(group) == 1]
            kept[group] = _clustered(problem, group, parts, {**plans, **kept})
    return kept


def _clustered(problem: Problem, group: str, parts: Sequence, plans: Plans) -> Coupling:
    """Clusters of the reference model's neurons, of each of its blocks."""
    n, own, blocks = problem.sizes, problem.source_sizes[problem.reference], problem.block_groups.get(group)
    count = own[blocks] if blocks else 1
    rows = []
    for feature, array in parts:
        axis = feature.groups.index(group)
        rows.append(carried(feature, array, plans, skip=[axis]).movedim(axis, 0).reshape(own[group], -1))
    cells = torch.cat(rows, 1).cpu().numpy().reshape(count, own[group] // count, -1)
    size = n[group] // (n[blocks] if blocks else 1)
    from sklearn.cluster import KMeans  # local: it brings half of scikit-learn, for targets wider than all parents

    plan = np.zeros((count, size, count, cells.shape[1]))
    for b, cell in enumerate(cells):
        centers = KMeans(size, n_init=1, random_state=problem.random_state).fit(cell).cluster_centers_
        plan[b, :, b] = solve(cdist(centers, cell, "sqeuclidean")).plan / count
    within = Plan(plan.reshape(count * size, -1))
    if blocks is None or plans[blocks].is_permutation:
        return within
    return Plan(np.repeat(within.plan.reshape(count, size, -1), n[blocks] // count, 0).reshape(n[group], -1) * count / n[blocks])


def match_all_to_target(problem: Problem, targets: Sequence[Tensor]) -> Solution:
    """Couplings of every model with a given network of the target's widths."""
    alone = [
        replace(
            problem, source_arrays=[own], source_sizes=[sizes], mixture=Mixture([1.0]), pinned=problem.pinned[i : i + 1], n_jobs=1
        )
        for i, (own, sizes) in enumerate(zip(problem.source_arrays, problem.source_sizes, strict=True))
    ]
    jobs = 1 if problem.start == "perturbed" else problem.n_jobs
    return problem.solution(Parallel(n_jobs=jobs, require="sharedmem")(delayed(match_to_target)(p, targets) for p in alone))


def match_to_target(problem: Problem, targets: Sequence[Tensor]) -> Plans:
    """Couplings of one model (the problem's only one) with a fixed target: group after group, then sweeps."""
    plans: list[Plans] = [{}]
    (source,) = problem.source_arrays

    potentials: dict[tuple[int, str], Potentials] = {}

    def proposal(update: GroupUpdate, at: Sequence[int], own: Plans) -> Plans:
        return update.solve(problem, 0, at, [targets[p] for p in at], [source[p] for p in at], own, potentials)

    for update, at in _in_order(problem, plans):
        plans[0].update(proposal(update, at, plans[0]))
    (own,) = plans
    updates = sweep_updates(problem)
    for _ in range(problem.max_iter):
        changed = False
        for update in updates:
            at = problem.features_of(update.all)
            parts = [(problem.features[p], targets[p], source[p]) for p in at]
            found = proposal(update, at, own)
            if all(c.same_as(own[g], problem.tol) for g, c in found.items()):
                continue
            before = fit(parts, own)
            if problem.reg > 0 or fit(parts, {**own, **found}) > before + 1e-9 * abs(before):
                own, changed = {**own, **found}, True
        if not changed or problem.reg > 0:
            break
    return {g: own[g] for g in problem.sizes}
