"""What follows an alignment: the parents' mean, its corrections, and the choice among several starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ..alignment import AlignedParents, Alignment
from ..base import did_you_mean, short_text
from ..correction import CORRECTIONS, Correction
from ..data import FusionInput, Objective
from ..discovery import Architecture, write_back
from ..exceptions import FusionError, FusionWarning
from ..execution import PROBES, ParentRunner, Parents, Probe
from ..execution.parent_runner import select_samples
from ..execution.sizing import sized_probe
from .judging import agreement_on, why
from .progress import log
from .roles import Roles

__all__ = ["Fused", "align", "corrections_of", "fuse", "probe_of", "run_on_probe"]


def probe_of(given: Any) -> Probe:
    """The probe that a parameter names or is.

    Raises
    ------
    TypeError
        If it is none.
    """
    probe = Probe(given) if isinstance(given, str) else given
    if not isinstance(probe, Probe):
        raise TypeError(f"probe must be 'auto', 'noise', 'data', one of {list(PROBES)}, or a Probe. Got {short_text(probe)}.")
    probe._validate_params()
    return probe


def corrections_of(given: Any) -> list[Correction]:
    """The corrections that a parameter names or is, in order.

    Raises
    ------
    TypeError, ValueError
        If it names or is none.
    """
    found = []
    for correction in given if isinstance(given, (tuple, list)) else [given]:
        if correction is None:
            continue
        if isinstance(correction, str):
            name = "regression" if correction == "auto" and not isinstance(given, (tuple, list)) else correction
            if name not in CORRECTIONS:
                hint = did_you_mean(correction, ["auto", *CORRECTIONS])
                raise ValueError(f"correction={correction!r} is unknown; there are 'auto' and {list(CORRECTIONS)}.{hint}")
            correction = CORRECTIONS[name]()
        if not isinstance(correction, Correction):
            raise TypeError(
                f"correction must be None, 'auto', one of {list(CORRECTIONS)}, a correction such as Regression(ridge=0.1), "
                f"or a tuple of these. Got {short_text(correction)}."
            )
        correction._validate_params()
        found.append(correction)
    return found


def run_on_probe(
    parents: Parents,
    data: FusionInput | None,
    probe: Probe,
    corrections: Sequence[Correction],
    rng: np.random.RandomState,
    *,
    is_lenient: bool,
    is_needed: bool,
) -> ParentRunner | None:
    """The parents on the inputs of the probe; None, with a warning, where "auto" has none and nothing else needs them."""
    mixes = any(c.uses_mixtures for c in corrections)
    try:
        own = sized_probe(probe, [p.architecture for p in parents], capped=is_lenient)
        return ParentRunner(parents, data, own, rng, mixes=mixes)
    except Exception as error:  # whatever networks do on inputs that they do not know
        if is_needed or not is_lenient:
            raise
        _warn_without(error)
        return None


def align(
    roles: Roles, parents: Parents, target: Architecture, objective: Objective | None, *, is_lenient: bool
) -> tuple[Alignment, Parents]:
    """The alignment, and the parents as it saw them: not run, with a warning, where "auto" finds that they fail on the probe."""
    try:
        return _aligned(roles, parents, target, objective), parents
    except Exception as error:
        if parents.runs is None or not is_lenient or roles.aligner.compares_activations:
            raise
        alone = parents.with_runs(None)
        found = _aligned(roles, alone, target, objective)
        _warn_without(error)
        return found, alone


def _aligned(roles: Roles, parents: Parents, target: Architecture, objective: Objective | None) -> Alignment:
    found = roles.aligner.align(parents, target.spec, objective)
    if not isinstance(found, Alignment):
        raise TypeError(f"{type(roles.aligner).__name__}.align must return an Alignment. Got {type(found).__name__}.")
    return found


@dataclass(eq=False)
class Fused:
    """What becomes of one start.

    Attributes
    ----------
    alignment : Alignment
    parents : AlignedParents
    state : dict of str to Tensor
        The fused network's tensors.
    outputs : list
        What it returns for held-out samples of the probe, where that is known.
    """

    alignment: Alignment
    parents: AlignedParents
    state: dict[str, Tensor]
    outputs: list[Any]


def fuse(
    roles: Roles,
    parents: Parents,
    found: Alignment,
    target: Architecture,
    corrections: Sequence[Correction],
    objective: Objective | None,
    kind: str | None,
    *,
    is_lenient: bool,
) -> Fused:
    """Average and correct the parents, by each start of an alignment; the start whose network agrees best with them is kept."""
    runs = parents.runs
    starts, failure = [], None
    for start in [found, *found.others] if corrections else [found]:
        aligned = AlignedParents.of(parents, start, target)
        fused = Fused(start, aligned, _whole(roles.averager.average(aligned, objective), aligned, roles.averager), [])
        for correction in corrections:
            assert runs is not None
            try:
                fused = _corrected(fused, correction, runs)
            except Exception as error:
                if not is_lenient:
                    raise
                failure = error
        starts.append(fused)
    if failure is not None:
        _warn_without(failure)
    if len(starts) == 1 or runs is None:
        return starts[0]
    shares = []
    for fused in starts:
        model = write_back(parents[0].plain, fused.state, sized=target.plain)
        agreement, _ = agreement_on(runs, model, target.spec, runs.held_out(), kind, fused.outputs)
        shares.append(float("-inf") if agreement is None else agreement.mean)
    best = max(range(len(starts)), key=shares.__getitem__)  # the first, of least energy, where none can be told
    log.info("agreement with the parents by start, least energy first: %s", [round(s, 4) for s in shares])
    kept = replace(starts[best].alignment, history=found.history, others=[])
    return replace(starts[best], alignment=kept)


def _whole(state: dict[str, Tensor], aligned: AlignedParents, role: Any) -> dict[str, Tensor]:
    """What a role returns, if these are all tensors of the target."""
    if not isinstance(state, Mapping):
        raise FusionError(f"{type(role).__name__} must return all tensors of the target, by name. Got {type(state).__name__}.")
    for key, labels in aligned.target.spec.tensors.items():
        shape = labels.shape if labels.diagonal == 1 else (labels.shape[0], labels.shape[1] // labels.diagonal, *labels.shape[2:])
        if key not in state or state[key].shape != shape:
            given, name = f"of shape {tuple(state[key].shape)}" if key in state else "not there", type(role).__name__
            raise FusionError(f"{name} must return all tensors of the target, but {key!r} of shape {tuple(shape)} is {given}.")
    return state


@torch.no_grad()
def _corrected(fused: Fused, correction: Correction, runs: ParentRunner) -> Fused:
    """The fused network after a correction."""
    target = fused.parents.target
    runner = runs.target_runner(target, fused.state)
    state = correction.correct(runner, fused.parents.recorded(runs, correction.max_rows))
    state = _whole(state, fused.parents, correction)
    ran = all(node in runner.values or node in runner.parameters for node in runner.returned if isinstance(node, Node))
    chosen = enumerate(runs.held_out() if ran else [])
    outputs = [select_samples(runner.outputs(batch), c) for batch, c in chosen if c.any()]
    return replace(fused, state=state, outputs=outputs)


def _warn_without(error: Exception) -> None:
    warnings.warn(
        f"The fused network is not corrected: {why(error)} Give rows, fit(FusionInput(models, X)), or say correction=None.",
        FusionWarning,
        stacklevel=6,  # at the call of fit
    )
