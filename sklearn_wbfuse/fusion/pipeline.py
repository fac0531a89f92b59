"""The steps of a fusion: run the parents on the probe, align, average, correct, and choose among several starts."""

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
from ..averaging import Averager
from ..base import did_you_mean, short_text
from ..correction import CORRECTIONS, Correction
from ..data import FusionInput, Objective
from ..discovery import Architecture, write_back
from ..exceptions import FusionError, FusionWarning
from ..execution import PROBES, ParentRunner, Parents, Probe
from ..execution.parent_runner import select_samples
from ..execution.sizing import sized_probe
from .measurement import agreement_on, reason_of
from .progress import log
from .roles import Roles

__all__ = ["Fused", "align", "corrections_of", "fuse", "probe_of", "run_on_probe"]


def probe_of(parameter: Any) -> Probe:
    """Return the probe that a parameter names or is.

    Raises
    ------
    TypeError
        If it is no probe.
    """
    probe = Probe(parameter) if isinstance(parameter, str) else parameter
    if not isinstance(probe, Probe):
        raise TypeError(f"probe must be 'auto', 'noise', 'data', one of {list(PROBES)}, or a Probe. Got {short_text(probe)}.")
    probe._validate_params()
    return probe


def corrections_of(parameter: Any) -> list[Correction]:
    """Return the corrections that a parameter names or is, in order.

    Raises
    ------
    TypeError, ValueError
        If it names or is no correction.
    """
    corrections = []
    for correction in parameter if isinstance(parameter, (tuple, list)) else [parameter]:
        if correction is None:
            continue
        if isinstance(correction, str):
            name = "regression" if correction == "auto" and not isinstance(parameter, (tuple, list)) else correction
            if name not in CORRECTIONS:
                hint = did_you_mean(correction, ["auto", *CORRECTIONS])
                raise ValueError(f"correction must be 'auto' or one of {list(CORRECTIONS)}. Got {correction!r}.{hint}")
            correction = CORRECTIONS[name]()
        if not isinstance(correction, Correction):
            raise TypeError(
                f"correction must be None, 'auto', one of {list(CORRECTIONS)}, a correction such as Regression(ridge=0.1), "
                f"or a tuple of these. Got {short_text(correction)}."
            )
        correction._validate_params()
        corrections.append(correction)
    return corrections


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
    """Return the parents on the inputs of the probe.

    If this fails with correction="auto" and nothing else needs them, warn and return None.
    """
    mixes = any(c.uses_mixtures for c in corrections)
    try:
        sized = sized_probe(probe, [p.architecture for p in parents], capped=is_lenient)
        return ParentRunner(parents, data, sized, rng, mixes=mixes)
    except Exception as error:  # networks may raise anything on unfamiliar inputs
        if is_needed or not is_lenient:
            raise
        _warn_without_correction(error)
        return None


def align(
    roles: Roles, parents: Parents, target: Architecture, objective: Objective | None, *, is_lenient: bool
) -> tuple[Alignment, Parents]:
    """Return the alignment and the parents that were aligned.

    If the parents fail on the probe with correction="auto", warn and align them without activations.
    """
    try:
        return _aligned(roles, parents, target, objective), parents
    except Exception as error:
        if parents.runs is None or not is_lenient or roles.aligner.compares_activations:
            raise
        parents = parents.with_runs(None)
        alignment = _aligned(roles, parents, target, objective)
        _warn_without_correction(error)
        return alignment, parents


def _aligned(roles: Roles, parents: Parents, target: Architecture, objective: Objective | None) -> Alignment:
    alignment = roles.aligner.align(parents, target.spec, objective)
    if not isinstance(alignment, Alignment):
        raise TypeError(f"{type(roles.aligner).__name__}.align must return an Alignment. Got {type(alignment).__name__}.")
    return alignment


@dataclass(eq=False)
class Fused:
    """The result of one start.

    Attributes
    ----------
    alignment : Alignment
    parents : AlignedParents
    state : dict of str to Tensor
        The fused network's tensors.
    outputs : list
        Its outputs for held-out samples of the probe, if they are known.
    """

    alignment: Alignment
    parents: AlignedParents
    state: dict[str, Tensor]
    outputs: list[Any]


def fuse(
    roles: Roles,
    parents: Parents,
    alignment: Alignment,
    target: Architecture,
    corrections: Sequence[Correction],
    objective: Objective | None,
    kind: str | None,
    *,
    is_lenient: bool,
) -> Fused:
    """Average and correct the parents for each start of an alignment; return the result that agrees best with the parents."""
    runs = parents.runs
    starts, failure = [], None
    for start in [alignment, *alignment.others] if corrections else [alignment]:
        aligned = AlignedParents.of(parents, start, target)
        fused = Fused(start, aligned, _checked(roles.averager.average(aligned, objective), aligned, roles.averager), [])
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
        _warn_without_correction(failure)
    if len(starts) == 1 or runs is None:
        return starts[0]
    shares = []
    for fused in starts:
        model = write_back(parents[0].plain, fused.state, sized=target.plain)
        agreement, _ = agreement_on(runs, model, target.spec, runs.held_out(), kind, fused.outputs)
        shares.append(float("-inf") if agreement is None else agreement.mean)
    best = max(range(len(starts)), key=shares.__getitem__)  # the first, of least energy, if no agreement can be measured
    log.info("agreement with the parents by start, least energy first: %s", [round(s, 4) for s in shares])
    return replace(starts[best], alignment=replace(starts[best].alignment, history=alignment.history, others=[]))


def _checked(state: dict[str, Tensor], aligned: AlignedParents, role: Averager | Correction) -> dict[str, Tensor]:
    """Check that a role has returned all tensors of the target."""
    if not isinstance(state, Mapping):
        raise FusionError(f"{type(role).__name__} must return all tensors of the target, by name. Got {type(state).__name__}.")
    for key, labels in aligned.target.spec.tensors.items():
        shape = labels.shape if labels.diagonal == 1 else (labels.shape[0], labels.shape[1] // labels.diagonal, *labels.shape[2:])
        if key not in state or state[key].shape != shape:
            returned = f"shape {tuple(state[key].shape)}" if key in state else "no such tensor"
            raise FusionError(
                f"{type(role).__name__} must return all tensors of the target, {key!r} of shape {tuple(shape)} among them. Got "
                f"{returned}."
            )
    return state


@torch.no_grad()
def _corrected(fused: Fused, correction: Correction, runs: ParentRunner) -> Fused:
    """Apply a correction to the fused network."""
    target = fused.parents.target
    runner = runs.target_runner(target, fused.state)
    state = correction.correct(runner, fused.parents.recorded(runs, correction.max_rows))
    state = _checked(state, fused.parents, correction)
    has_run = all(node in runner.values or node in runner.parameters for node in runner.returned if isinstance(node, Node))
    held_out = enumerate(runs.held_out() if has_run else [])
    outputs = [select_samples(runner.outputs(batch), mask) for batch, mask in held_out if mask.any()]
    return replace(fused, state=state, outputs=outputs)


def _warn_without_correction(error: Exception) -> None:
    warnings.warn(
        f"The fused network is not corrected: {reason_of(error)} To fuse without a correction, set correction=None.",
        FusionWarning,
        stacklevel=6,  # at the call of fit
    )
