"""The aligner by Wasserstein barycenters: its parameters, starts, schedules, and the gauge in which parents are compared."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor, nn

from ..data import Objective
from ..exceptions import FusionError, WidthError
from ..execution import Parent, ParentRunner, Parents
from ..network.mixture import Mixture
from ..network.spec import NetworkSpec
from .activations import activations_of
from .aligner import Aligner
from .alignment import Alignment, block_groups_of, pinned_groups
from .carry import check_blocks, mean_scales
from .features import Feature, extract_features, with_activations
from .gauge import apply_scales, balance_scales
from .problem import Problem, Solution, random_start
from .schedules import match_all_to_target, match_to_target, solve_layerwise
from .sweeps import entropic_step, solve_joint
from .widths import target_sizes

__all__ = ["WassersteinAligner"]

_UNINFORMATIVE = ("noise", "tokens")
"""Procedural inputs whose activations are no better guide than weights."""

_WITHOUT_EFFECT = ("reg", "n_jobs")
"""Parameters on which the couplings before the entropic step do not depend."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WassersteinAligner(Aligner):
    """Computes couplings that minimise one energy over all labelled tensors; for the parameters see `WassersteinFusion`."""

    target_widths: Any = None
    reg: float = 0.0
    alpha_h: float = 1.0
    schedule: str = "joint"
    cost: str | float = "weight"
    measure: str = "correlation"
    symmetry: str = "auto"
    merge: str = "auto"
    init: Any = "auto"
    n_init: int = 1
    max_iter: int = 100
    tol: float = 1e-6
    random_state: Any = None
    n_jobs: int | None = None

    @property
    def compares_activations(self) -> bool:  # type: ignore[override]
        """See `Aligner`."""
        return self.cost != "auto" and self._activation_share(None) > 0

    def sizes(self, specs: Sequence[NetworkSpec]) -> dict[str, int]:
        """See `Aligner`."""
        sizes = target_sizes(self.target_widths, specs)
        wider = [n for n, size in sizes.items() if size > max(g.sizes[n] for g in specs)]
        if wider and len(specs) > 1 and self.merge == "auto":
            raise NotImplementedError(
                f"merge='auto' for several models into a target wider than every parent (groups {wider}) "
                "is not built yet; use merge='all'."
            )
        return sizes

    def align(self, parents: Parents, target: NetworkSpec, objective: Objective | None = None) -> Alignment:
        """See `Aligner`; the results of further starts are `Alignment.others`."""
        for parent in parents:
            check_blocks(parent.spec, target)
        pinned, scaled_alike = pinned_groups(parents, target, self.symmetry == "auto")
        start_networks = [self._start_network(parents, target)] if isinstance(self.init, nn.Module) else []
        features_and_scales = self._balanced(
            [*parents, *start_networks], target.sizes, scaled_alike, None if start_networks else parents
        )
        features, arrays, scales = features_and_scales
        share, mark = self._activation_share(parents.runs), None
        if parents.runs is not None and share:
            mark = parents.runs.mark()
            activations = activations_of(parents.runs, self.measure, start_networks)
            activation_features, activation_arrays = self._in_gauge(activations[0][0], [v for _, v in activations], scales)
            features, arrays = with_activations(features, arrays, activation_features, activation_arrays, share)
        count, mixture = len(parents), parents.mixture
        arrays, scales, start = arrays[:count], scales[:count], arrays[count:]
        problem = Problem(
            features,
            arrays,
            target.sizes,
            [p.spec.sizes for p in parents],
            mixture,
            self.reg if self.schedule == "layerwise" else 0.0,  # sweeps are exact
            pinned,
            block_groups_of(target),
            max_iter=self.max_iter,
            tol=self.tol,
            n_jobs=self.n_jobs if self.n_init == 1 else 1,
        )
        closest = sorted(range(count), key=lambda i: (problem.resizing(i), -mixture.weights[i], i))
        rng = check_random_state(self.random_state)
        seeds = rng.randint(np.iinfo(np.int32).max, size=self.n_init)

        def solve_all() -> list[Solution]:
            if self.n_init == 1:  # Parallel would take as long as the fusion of small networks
                return [self._solve(problem, 0, int(seeds[0]), closest, start)]
            jobs = [delayed(self._solve)(problem, k, int(seed), closest, start) for k, seed in enumerate(seeds)]
            return Parallel(n_jobs=self.n_jobs, require="sharedmem")(jobs)

        repeats = self._is_repeatable(share, [p.spec.sizes for p in parents], target.sizes)
        options = self._exact_options(parents)
        solutions = parents.remember((options, share, mark), solve_all) if repeats else solve_all()
        order = sorted(range(len(solutions)), key=lambda k: solutions[k].energy)
        retained = order if parents.runs is not None else order[:1]
        if self.schedule == "joint" and self.reg > 0:
            entropic = replace(problem, reg=self.reg, reference=closest[0])
            solutions = [entropic_step(entropic, s) if k in retained else s for k, s in enumerate(solutions)]
        history = [list(s.history) for s in solutions]
        best, *others = [_alignment(solutions[k], scales, mixture, history) for k in retained]
        return replace(best, others=others)

    def match(self, parent: Parent, fused: Parent) -> Alignment:
        """See `Aligner`."""
        (_, pinned), scaled_alike = pinned_groups([fused, parent], fused.spec, self.symmetry == "auto")
        features, (arrays, targets), scales = self._balanced([parent, fused], fused.spec.sizes, scaled_alike)
        problem = Problem(
            features,
            [arrays],
            fused.spec.sizes,
            [parent.spec.sizes],
            Mixture([1.0]),
            self.reg,
            [pinned],
            block_groups_of(fused.spec),
            max_iter=self.max_iter,
            tol=self.tol,
        )
        return Alignment([match_to_target(problem, targets)], [scales[0]], scales[1])

    def _is_repeatable(self, share: float, sizes: list[dict[str, int]], target: dict[str, int]) -> bool:
        """Return whether fits of the same models and inputs compute the same couplings before the entropic step."""
        if self.schedule != "joint" or isinstance(self.init, nn.Module):
            return False
        is_narrower = any(source[g] > n for source in sizes for g, n in target.items())
        draws = share or self.n_init > 1 or self.init == "random" or is_narrower
        return isinstance(self.random_state, Integral) or (self.random_state is None and not draws)

    def _exact_options(self, parents: Parents) -> dict[str, Any]:
        """Return all options, besides the parents' tensors, on which the couplings before the entropic step depend."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _WITHOUT_EFFECT}
        return {**options, "weights": parents.mixture.weights, "device": _device(parents)}

    def _activation_share(self, runs: ParentRunner | None) -> float:
        """Return the share of activations in the features, given the inputs of a probe."""
        if self.cost == "auto":
            return 0.5 if runs is not None and runs.source not in _UNINFORMATIVE else 0.0
        return {"weight": 0.0, "activation": 1.0}[self.cost] if isinstance(self.cost, str) else float(self.cost)

    def _solve(self, problem: Problem, k: int, seed: int, closest: list[int], start_arrays: list[list[Tensor]]) -> Solution:
        """Solve from start k: `init` first, then the other parents' orders, then random couplings.

        If a group is on two axes of a tensor, its coupling starts from the linear costs, then from these propagated through the
        recurrent weights, then from the uniform plan, then from perturbed ones, with the parents' orders in turns.
        """
        problem = replace(problem, random_state=np.random.RandomState(seed))
        init: Any = self.init if k == 0 else (closest[k] if k < len(closest) and self.init == "auto" else "random")
        if problem.is_quadratic and self.init == "auto":
            init = closest[k % len(closest)]
            problem = replace(problem, start=("linear", "propagated", "uniform")[k] if k < 3 else "perturbed")
        if isinstance(init, nn.Module):
            start = match_all_to_target(problem, start_arrays[0])
        elif init == "random":
            start = random_start(problem)
        else:
            if init != "auto" and init >= len(problem.source_arrays):
                raise FusionError(f"init must be the position of a model, less than {len(problem.source_arrays)}. Got {init}.")
            problem = replace(problem, reference=closest[0] if init == "auto" else init)
            start = solve_layerwise(problem, readers=self.schedule == "joint")
        return solve_joint(problem, start) if self.schedule == "joint" else start

    def _start_network(self, parents: Parents, target: NetworkSpec) -> Parent:
        """Return the network `init`, which must have the target's widths."""
        network = parents.further(self.init)
        if network.spec.sizes != target.sizes:
            raise WidthError(f"The network init must have the target's widths, {target.sizes}. Got {network.spec.sizes}.")
        return network

    def _balanced(
        self, networks: Sequence[Parent], sizes: dict[str, int], keep: Collection[str], shared: Parents | None = None
    ) -> tuple[list[Feature], list[list[Tensor]], list[dict[str, np.ndarray]]]:
        """Return the features of every network in the gauge of balanced scales, and these scales; `shared` caches the scales."""
        extracted = [extract_features(n.spec, n.compared, self.alpha_h) for n in networks]

        def balanced() -> list[dict[str, np.ndarray]]:
            scales = [balance_scales(features, arrays, sizes, keep) for features, arrays in extracted]
            return [{name: values.cpu().numpy() for name, values in network.items()} for network in scales]

        if self.symmetry != "auto":
            scales: list[dict[str, np.ndarray]] = [{} for _ in networks]
        elif shared is None:
            scales = balanced()
        else:
            scales = shared.remember(("scales", sizes, sorted(keep), _device(shared)), balanced)
        return *self._in_gauge(extracted[0][0], [arrays for _, arrays in extracted], scales), scales

    def _in_gauge(
        self, features: list[Feature], arrays: list[list[Tensor]], scales: list[dict[str, np.ndarray]]
    ) -> tuple[list[Feature], list[list[Tensor]]]:
        """Multiply units by their scales, and drop the signs of features unless `symmetry` is "auto"."""
        factors = [
            {name: torch.as_tensor(values, device=network[0].device) for name, values in network_scales.items() if network}
            for network, network_scales in zip(arrays, scales, strict=True)
        ]
        arrays = [apply_scales(features, network, c) for network, c in zip(arrays, factors, strict=True)]
        if self.symmetry != "auto":
            features = [replace(f, odd=(False,) * len(f.odd)) for f in features]
        return features, arrays


def _alignment(solution: Solution, scales: list[dict[str, np.ndarray]], mixture: Mixture, history: list[Any]) -> Alignment:
    gauge = mean_scales(scales, solution.plans, mixture)
    return Alignment(solution.plans, scales, gauge, solution.energy, solution.n_iter, history)


def _device(parents: Parents) -> str:
    return next((str(t.device) for t in parents[0].state.values()), "")
