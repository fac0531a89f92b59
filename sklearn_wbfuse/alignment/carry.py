"""Whole networks carried into the target's neurons, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..couplings import Coupling
from ..exceptions import WidthError
from ..groups import Block, Graph, LabelledTensor, along, put, relabel, take
from .energy import carried_along

__all__ = ["carry_map", "carry_state", "check_blocks", "mean_scales", "mean_state"]

Scales = Mapping[str, np.ndarray]


def carry_state(
    state: Mapping[str, Tensor],
    source: Graph,
    target: Graph,
    couplings: Mapping[str, Coupling],
    source_scales: Scales,
    target_scales: Scales,
) -> dict[str, Tensor]:
    """All tensors of a model in the neurons, widths and scales of the target.

    Output axes average and input axes split; units are first multiplied by `source_scales` and then divided by
    `target_scales`, each to the axis' exponent.

    Raises
    ------
    WidthError
        See `check_blocks`.
    """
    check_blocks(source, target)
    if source is target and all(c.is_permutation for c in couplings.values()):
        order = {name: c.index for name, c in couplings.items() if c.index is not None}
        factor = {name: source_scales[name][order[name]] / target_scales[name] for name in source_scales}
        for name, c in couplings.items():
            if c.signs is not None:
                factor[name] = c.signs * factor.get(name, 1.0)
        return {name: relabel(tensor, source.tensors[name], order, factor) for name, tensor in state.items()}
    result = {}
    for name, tensor in state.items():
        labels, wanted = source.tensors[name], target.tensors[name]
        whole = labels.unfold(tensor)
        out = torch.zeros(wanted.shape, dtype=tensor.dtype, device=tensor.device)
        for before, after in zip(labels.blocks(), wanted.blocks(), strict=True):
            array = _times(take(whole, before), before, source_scales, 1)
            for axis, span in enumerate(before.axes):
                array = carried_along(array, axis, couplings[span.group], span.role, span.odd)
            put(out, after, _times(array, after, target_scales, -1))
        result[name] = wanted.fold(out)
    return result


def carry_map(
    name: str,
    axis: int,
    source: Graph,
    target: Graph,
    couplings: Mapping[str, Coupling],
    source_scales: Scales,
    target_scales: Scales,
) -> Tensor:
    """How activations along an axis of a tensor are carried: a matrix of shape (size in the target, size in the source).

    Parameters
    ----------
    name : str
    axis : int
    source, target, couplings, source_scales, target_scales
        As in `carry_state`.
    """
    size, both = source.tensors[name].shape[axis], []
    for graph in (source, target):
        labels = graph.tensors[name]
        both.append(replace(graph, tensors={"": LabelledTensor("", (labels.shape[axis], size), (labels.spans[axis], ()))}))
    eye = {"": torch.eye(size, dtype=torch.float64)}
    return carry_state(eye, both[0], both[1], couplings, source_scales, target_scales)[""]


def check_blocks(source: Graph, target: Graph) -> None:
    """A tensor of diagonal blocks keeps their number: a copy of a block would read the inputs of its own copy only.

    Raises
    ------
    WidthError
        If it does not.
    """
    for name, labels in source.tensors.items():
        wanted = target.tensors[name].diagonal
        if labels.diagonal != wanted:
            raise WidthError(
                f"Parameter {name!r} holds {labels.diagonal} diagonal blocks in a model and {wanted} in the target "
                "(a convolution in groups); fuse models of equal numbers of groups into a target with as many."
            )


def _times(array: Tensor, block: Block, scales: Scales, sign: int) -> Tensor:
    for axis, span in enumerate(block.axes):
        if span.exponent and span.group in scales:
            factor = torch.as_tensor(scales[span.group] ** (sign * span.exponent), dtype=array.dtype, device=array.device)
            array = array * along(factor, axis, array.dim())
    return array


def mean_state(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    r"""Closed-form target of eq. (9): the :math:`\lambda`-weighted mean of carried models."""
    kept = [(w, s) for w, s in zip(weights, states, strict=True) if w]
    return {name: sum(w * s[name] for w, s in kept) if len(kept) > 1 else kept[0][1][name] for name in kept[0][1]}  # type: ignore[misc]


def mean_scales(
    scales: Sequence[Scales], couplings: Sequence[Mapping[str, Coupling]], weights: Sequence[float]
) -> dict[str, np.ndarray]:
    """The target's scales: geometric mean of the models', so that equal models keep theirs."""
    result = {}
    for name in scales[0]:
        logs: Any = 0.0
        for own, plans, weight in zip(scales, couplings, weights, strict=True):
            log, coupling = np.log(own[name]), plans[name]
            logs = logs + weight * (log[coupling.index] if coupling.index is not None else coupling.barycentric_map("out") @ log)
        result[name] = np.exp(logs)
    return result
