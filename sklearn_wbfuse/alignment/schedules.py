r"""Schedules that couple one group after another in the order of computation.

`solve_layerwise` is Algorithm 1 of the paper: it uses incoming tensors only and updates couplings and target in turns.
`match_to_target` couples one model with a fixed target in the same order, and then sweeps over all tensors.
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
from .features import Feature
from .matching import fit
from .problem import Plans, Problem, Solution
from .sweeps import Sweeps
from .updates import GroupUpdate, sweep_updates

__all__ = ["match_all_to_target", "match_to_target", "solve_layerwise"]

log = logging.getLogger("sklearn_wbfuse")


def solve_layerwise(problem: Problem, *, readers: bool = False) -> Solution:
    """Run the paper's Algorithm 1: one group after another, the Wasserstein barycenter of its incoming tensors.

    If all sizes are equal, `readers` includes outgoing tensors whose other groups are already coupled (those of the last group
    of neurons, and of both ends of a skip connection), so that fewer sweeps follow. Recurrent groups are excluded: their
    starts are too far from the optimum for outgoing weights to help (the accuracy of an RNN pair fell from 92 to 82 %).
    """
    plans: list[Plans] = [{} for _ in problem.source_arrays]
    same_sizes = all(sizes == problem.sizes for sizes in problem.source_sizes)
    readers = readers and same_sizes and not problem.is_quadratic
    for update, indices in _in_order(problem, plans, readers):
        plans[:] = _solve_layer(problem, update, indices, plans)
    solution = problem.solution(plans, n_iter=1)
    log.info("layerwise: energy %.6g", solution.energy)
    return solution


def _in_order(problem: Problem, plans: Sequence[Plans], readers: bool = False) -> Iterator[tuple[GroupUpdate, list[int]]]:
    """Yield updates with the features that compute their groups from coupled groups, until all groups are coupled.

    Groups that no feature distinguishes keep their order; pinned groups receive their coupling. Blocks are coupled with the
    first of their members, together with all members that can be computed by then.
    """
    for model_plans, pinned in zip(plans, problem.pinned, strict=False):
        model_plans.update(pinned)
    blocks = set(problem.block_groups.values())
    waiting = [g for g in problem.sizes if not problem.is_pinned(g)]
    while waiting:
        update, indices = None, list[int]()
        for group in waiting:
            if group in blocks:
                continue
            update, indices = _update_of(problem, group, plans[0], readers)
            if indices:
                break
        if update is None or not indices:
            for i, model_plans in enumerate(plans):
                model_plans[waiting[0]] = problem.default_coupling(waiting[0], i, model_plans)
        else:
            yield update, indices
        waiting = [g for g in waiting if g not in plans[0]]


def _update_of(problem: Problem, group: str, coupled: Collection[str], readers: bool) -> tuple[GroupUpdate, list[int]]:
    """Return the update of a group and the indices of its features; none if the group cannot be coupled yet."""
    blocks = problem.block_groups.get(group)
    if blocks is None or blocks in coupled:
        return GroupUpdate((group,), blocks), _usable_features(problem, group, coupled, readers)
    usable = {g: _usable_features(problem, g, coupled, readers) for g in problem.members(blocks) if g not in coupled}
    members = tuple(g for g, indices in usable.items() if indices)
    if group not in members:
        return GroupUpdate((group,), blocks), []
    of_blocks = {p for p in problem.features_of([blocks]) if set(problem.features[p].groups) == {blocks}}
    return GroupUpdate(members, blocks, free=True), sorted({p for g in members for p in usable[g]} | of_blocks)


def _usable_features(problem: Problem, group: str, coupled: Collection[str], readers: bool) -> list[int]:
    """Return the features that compute a group from coupled groups, or from itself (recurrent weights).

    If there are any and `readers` is true, features in which coupled groups read the group are returned as well.
    """
    coupled = {group, *coupled}
    usable = [p for p in problem.features_of([group]) if coupled.issuperset(problem.features[p].groups)]
    roles = {
        p: [r for g, r in zip(problem.features[p].groups, problem.features[p].roles, strict=True) if g == group] for p in usable
    }
    computing = [p for p in usable if "out" in roles[p] and len(roles[p]) <= 2]
    if not any(len(roles[p]) == 1 for p in computing):
        return []
    return [p for p in usable if len(roles[p]) == 1 or p in computing] if readers else computing


def _solve_layer(problem: Problem, update: GroupUpdate, indices: Sequence[int], plans: Sequence[Plans]) -> list[Plans]:
    """Couple the groups of an update of all models, in turns with the target; the groups before them are coupled already."""
    features = [problem.features[p] for p in indices]
    sources = [[arrays[p] for p in indices] for arrays in problem.source_arrays]
    reference = plans[problem.reference]
    start = {**reference, **_start(problem, update, features, sources[problem.reference], reference)}
    first_target = [carried(f, a, start) for f, a in zip(features, sources[problem.reference], strict=True)]
    potentials: list[dict[tuple[int, str], Potentials]] = [{} for _ in plans]

    def updated(i: int, current: Plans, target: Sequence[Tensor]) -> Plans:
        return {**current, **update.solve(problem, i, indices, target, sources[i], current, potentials[i])}

    def first(i: int) -> Plans:
        if i == problem.reference and problem.reg == 0 and _is_not_narrower(problem, update, i):
            return {**plans[i], **{g: start[g] for g in update.all}}  # the first target is its own
        return updated(i, plans[i], first_target)

    # Perturbed starts draw from one random state, in the order of the models.
    jobs = 1 if problem.start == "perturbed" else problem.n_jobs
    if effective_n_jobs(jobs) == 1:  # Parallel takes as long as a small layer
        result = list(map(first, range(len(plans))))
    else:
        result = Parallel(n_jobs=jobs, require="sharedmem")(delayed(first)(i) for i in range(len(plans)))
    if problem.reg == 0 and all(model_plans[g].is_permutation for model_plans in result for g in update.all):
        if len(result) > 2:  # each is matched to the mean of the others: the mean of all would hold a model in its place
            sweeps = Sweeps(replace(problem, features=features, source_arrays=sources), result, [update])
            for _ in range(problem.max_iter):
                if sweeps.sweep() == 0:
                    break
            return sweeps.plans
        return result
    moved = [
        [carried(f, a, model_plans) for f, a in zip(features, arrays, strict=True)]
        for model_plans, arrays in zip(result, sources, strict=True)
    ]
    for _ in range(problem.max_iter):
        changed = False
        for i, old in enumerate(result):
            result[i] = updated(i, old, mean_target(moved, problem.mixture))
            if not all(g in old and result[i][g].same_as(old[g], problem.tol) for g in update.all):
                changed, moved[i] = True, [carried(f, a, result[i]) for f, a in zip(features, sources[i], strict=True)]
        if not changed:
            break
    return result


def _is_not_narrower(problem: Problem, update: GroupUpdate, model: int) -> bool:
    """Return whether the target is at least as wide as a model in the groups of an update."""
    return all(problem.sizes[g] >= problem.source_sizes[model][g] for g in update.all)


def _start(problem: Problem, update: GroupUpdate, features: Sequence[Feature], source: Sequence[Tensor], plans: Plans) -> Plans:
    """Return the reference model's first couplings: neurons repeated for a wider target, clustered for a narrower one."""
    start: Plans = {}
    sizes = problem.source_sizes[problem.reference]
    for group in update.all:
        start[group] = problem.default_coupling(group, problem.reference, {**plans, **start})
        if problem.sizes[group] < sizes[group] and group != update.blocks:
            linear = [(f, a) for f, a in zip(features, source, strict=True) if f.groups.count(group) == 1]
            start[group] = _clustered(problem, group, linear, {**plans, **start})
    return start


def _clustered(problem: Problem, group: str, linear: Sequence[tuple[Feature, Tensor]], plans: Plans) -> Coupling:
    """Couple a narrower target with the k-means clusters of the reference model's neurons, block by block."""
    n, m, blocks = problem.sizes, problem.source_sizes[problem.reference], problem.block_groups.get(group)
    n_blocks = m[blocks] if blocks else 1
    rows = []
    for feature, array in linear:
        axis = feature.groups.index(group)
        rows.append(carried(feature, array, plans, skip=[axis]).movedim(axis, 0).reshape(m[group], -1))
    neurons_of_block = torch.cat(rows, 1).cpu().numpy().reshape(n_blocks, m[group] // n_blocks, -1)
    size = n[group] // (n[blocks] if blocks else 1)
    from sklearn.cluster import KMeans  # imported here: it loads half of scikit-learn, and only narrower targets need it

    plan = np.zeros((n_blocks, size, n_blocks, neurons_of_block.shape[1]))
    for b, neurons in enumerate(neurons_of_block):
        centers = KMeans(size, n_init=1, random_state=problem.random_state).fit(neurons).cluster_centers_
        plan[b, :, b] = solve(cdist(centers, neurons, "sqeuclidean")).plan / n_blocks
    coupling = Plan(plan.reshape(n_blocks * size, -1))
    if blocks is None or plans[blocks].is_permutation:
        return coupling
    repeated = np.repeat(coupling.plan.reshape(n_blocks, size, -1), n[blocks] // n_blocks, 0)
    return Plan(repeated.reshape(n[group], -1) * n_blocks / n[blocks])


def match_all_to_target(problem: Problem, targets: Sequence[Tensor]) -> Solution:
    """Couple every model with a network of the target's widths."""
    problems = [
        replace(
            problem,
            source_arrays=[arrays],
            source_sizes=[sizes],
            mixture=Mixture([1.0]),
            pinned=problem.pinned[i : i + 1],
            n_jobs=1,
        )
        for i, (arrays, sizes) in enumerate(zip(problem.source_arrays, problem.source_sizes, strict=True))
    ]
    jobs = 1 if problem.start == "perturbed" else problem.n_jobs
    return problem.solution(Parallel(n_jobs=jobs, require="sharedmem")(delayed(match_to_target)(p, targets) for p in problems))


def match_to_target(problem: Problem, targets: Sequence[Tensor]) -> Plans:
    """Couple the only model of a problem with a fixed target: one group after another, then in sweeps."""
    plans: list[Plans] = [{}]
    (source,) = problem.source_arrays
    potentials: dict[tuple[int, str], Potentials] = {}

    def proposal(update: GroupUpdate, indices: Sequence[int], current: Plans) -> Plans:
        target_arrays, source_arrays = [targets[p] for p in indices], [source[p] for p in indices]
        return update.solve(problem, 0, indices, target_arrays, source_arrays, current, potentials)

    for update, indices in _in_order(problem, plans):
        plans[0].update(proposal(update, indices, plans[0]))
    (best,) = plans
    updates = sweep_updates(problem)
    for _ in range(problem.max_iter):
        changed = False
        for update in updates:
            indices = problem.features_of(update.all)
            triples = [(problem.features[p], targets[p], source[p]) for p in indices]
            couplings = proposal(update, indices, best)
            if all(coupling.same_as(best[g], problem.tol) for g, coupling in couplings.items()):
                continue
            value = fit(triples, best)
            if problem.reg > 0 or fit(triples, {**best, **couplings}) > value + 1e-9 * abs(value):
                best, changed = {**best, **couplings}, True
        if not changed or problem.reg > 0:
            break
    return {g: best[g] for g in problem.sizes}
