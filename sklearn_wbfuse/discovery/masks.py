"""Constant tensors of -1, 0 and 1, such as masks and wirings, whose mean has other values.

A mask of zeros and ones that multiplies weights is applied to them: the masked values are fused, and the fused mask is one where
any of the aligned masks is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..network.groups import LabelledTensor, Span
from ..network.spec import NetworkSpec
from ..network.types import State
from .check import SelfCheck
from .constants import outputs_agree
from .spec_changes import drop_symmetry
from .tensors import floating_state

__all__ = ["Mask", "find_masks", "masked_spec", "masked_state", "ones_where_any"]

_EQUAL = 10.0  # factor of a mask that all models share in the comparison of neurons, so that matched neurons share it


@dataclass(frozen=True)
class Mask:
    """How a constant tensor of -1, 0 and 1 is handled.

    Attributes
    ----------
    weights : tuple of str
        The tensors that it multiplies, if it does nothing else.
    factor : float
        Its factor in the comparison of neurons.
    """

    weights: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def stays(self) -> bool:
        """Whether its values stay unchanged when neurons are multiplied."""
        return bool(self.weights) or self.factor == _EQUAL


@torch.no_grad()
def find_masks(models: Sequence[nn.Module], check: SelfCheck) -> dict[str, Mask]:
    """Return the tensors that are not trained and hold -1, 0 and 1, but not a single value, in every model.

    Parameters
    ----------
    models : list of Module
    check : SelfCheck
        Of the first model.
    """
    trainable = {name for name, p in models[0].named_parameters() if p.requires_grad}
    states = [floating_state(model) for model in models]
    masks = {}
    for name, tensor in states[0].items():
        if name in trainable or name not in check.state or not all(name in state and _is_mask(state[name]) for state in states):
            continue
        if any(bool((state[name] != state[name].flatten()[0]).any()) for state in states):
            equal = all(torch.equal(state[name].cpu(), tensor.cpu()) for state in states[1:])
            signed = any(bool((state[name] < 0).any()) for state in states)
            weights = () if signed else _multiplied(name, check, [n for n in states[0] if not _is_mask(states[0][n])])
            masks[name] = Mask(weights, _EQUAL if equal else 0.0 if weights else 1.0)
    return masks


def _is_mask(tensor: Tensor) -> bool:
    """Return whether a tensor holds only -1, 0 and 1."""
    return tensor.numel() > 1 and bool(((tensor == 0) | (tensor.abs() == 1)).all())


def _multiplied(name: str, check: SelfCheck, others: Sequence[str]) -> tuple[str, ...]:
    """Return the tensors that a mask multiplies, if the network needs no mask once they are multiplied."""
    shape, owner = check.state[name].shape, name[: name.rfind(".") + 1]
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(check.state[name])
    ones = torch.ones_like(mask)

    def same(masked: Sequence[str], value: Tensor) -> bool:
        masked_weights = {n: check.state[n] * mask for n in masked}
        return outputs_agree(check.outputs_with({name: value} | masked_weights), expected)

    expected = check.outputs_with({name: mask})
    candidates = [n for n in others if n.startswith(owner) and n in check.state and _fits(shape, check.state[n].shape)]
    weights = [n for n in candidates if same([n], mask)]
    if same([], ones) or not same(weights, ones):
        return ()
    for weight in list(weights):  # for instance, a bias of units that are masked afterwards need not be
        rest = [n for n in weights if n != weight]
        weights = rest if same(rest, ones) else weights
    return tuple(weights)


def _fits(mask: torch.Size, weight: torch.Size) -> bool:
    """Return whether multiplying by a mask preserves the shape of a tensor."""
    try:
        return torch.broadcast_shapes(mask, weight) == weight
    except RuntimeError:
        return False


def masked_spec(spec: NetworkSpec, masks: Mapping[str, Mask]) -> NetworkSpec:
    """Return a spec in which masks neither scale nor change sign; the tensors that they multiply do so instead, if any."""
    for name, mask in masks.items():
        if not mask.stays:
            continue
        labels = spec.tensors[name]
        moving = [(axis, s) for axis, spans in enumerate(labels.spans) for s in spans if s.exponent or s.odd]
        changed = {}
        for weight in mask.weights:
            labels_with_factors = _with_factors(spec.tensors[weight], moving, len(labels.shape))
            if labels_with_factors is not None:
                changed[weight] = labels_with_factors
        if len(changed) < len(mask.weights) or not mask.weights:
            spec = drop_symmetry(spec, "scales", {s.group for _, s in moving if s.exponent})
            spec = drop_symmetry(spec, "signs", {s.group for _, s in moving if s.odd})
        elif moving:
            unscaled = replace(labels, spans=tuple(tuple(replace(s, exponent=0.0, odd=False) for s in a) for a in labels.spans))
            spec = replace(spec, tensors={**spec.tensors, **changed, name: unscaled})
    return spec


def _with_factors(labels: LabelledTensor, moving: Sequence[tuple[int, Span]], dims: int) -> LabelledTensor | None:
    """Return a tensor with the scales and signs of a mask of `dims` dimensions; None if its units are arranged differently."""
    spans = [list(axis) for axis in labels.spans]
    for axis, span in moving:
        axis_spans = spans[axis + len(labels.shape) - dims]
        position = next(
            (k for k, s in enumerate(axis_spans) if s.group == span.group and s.index.shape == span.index.shape), None
        )
        if position is None or (axis_spans[position].index != span.index).any():
            return None
        axis_spans[position] = replace(
            axis_spans[position], exponent=axis_spans[position].exponent + span.exponent, odd=axis_spans[position].odd != span.odd
        )
    return replace(labels, spans=tuple(map(tuple, spans)))


def masked_state(state: State, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """Return a network's tensors with masks applied to the weights that they multiply."""
    result = dict(state)
    for name, mask in masks.items():
        result |= {weight: result[weight] * state[name] for weight in mask.weights}
    return result


def ones_where_any(state: State, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """Return a carried network's tensors with masks of zeros and ones again, where weights are masked already."""
    return {n: (t != 0).to(t) if n in masks and masks[n].weights else t for n, t in state.items()}
