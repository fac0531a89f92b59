"""Constant tensors of -1, 0 and 1: masks, and wirings. The mean of different ones is none.

A mask of zeros and ones that multiplies weights is taken into them: the values that count are fused, and the fused mask has
ones where one of the aligned masks has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..network.groups import LabelledTensor, Span
from ..network.spec import NetworkSpec
from .check import SelfCheck
from .constants import close
from .restricted import drop_symmetry
from .tensors import floating_state

__all__ = ["Mask", "find_masks", "masked_spec", "masked_state", "ones_where_any"]

_EQUAL = 10.0  # what a mask that all models share is multiplied by where neurons are compared: they must have the same


@dataclass(frozen=True)
class Mask:
    """What becomes of a constant tensor of -1, 0 and 1.

    Attributes
    ----------
    weights : tuple of str
        The tensors that it multiplies, if it does nothing else.
    factor : float
        What it is multiplied by where neurons are compared.
    """

    weights: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def stays(self) -> bool:
        """Whether its values are to stay what they are when neurons are multiplied."""
        return bool(self.weights) or self.factor == _EQUAL


@torch.no_grad()
def find_masks(models: Sequence[nn.Module], check: SelfCheck) -> dict[str, Mask]:
    """Tensors that are not trained and hold -1, 0 and 1 in every model, and not one of these alone.

    Parameters
    ----------
    models : list of Module
    check : SelfCheck
        Of the first model.
    """
    learnt = {name for name, p in models[0].named_parameters() if p.requires_grad}
    states = [floating_state(model) for model in models]
    found = {}
    for name, tensor in states[0].items():
        if name in learnt or name not in check.state or not all(name in own and _is_mask(own[name]) for own in states):
            continue
        if any(bool((own[name] != own[name].flatten()[0]).any()) for own in states):
            equal = all(torch.equal(own[name].cpu(), tensor.cpu()) for own in states[1:])
            signed = any(bool((own[name] < 0).any()) for own in states)
            weights = () if signed else _multiplied(name, check, [n for n in states[0] if not _is_mask(states[0][n])])
            found[name] = Mask(weights, _EQUAL if equal else 0.0 if weights else 1.0)
    return found


def _is_mask(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool(((tensor == 0) | (tensor.abs() == 1)).all())


def _multiplied(name: str, check: SelfCheck, others: Sequence[str]) -> tuple[str, ...]:
    """Of other tensors those that a mask multiplies, if the network needs no mask once they are multiplied."""
    shape, owner = check.state[name].shape, name[: name.rfind(".") + 1]
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(check.state[name])
    ones = torch.ones_like(mask)

    def same(masked: Sequence[str], held: Tensor) -> bool:
        given = {n: check.state[n] * mask for n in masked}
        return close(check.outputs_with({name: held} | given), expected)

    expected = check.outputs_with({name: mask})
    near = [n for n in others if n.startswith(owner) and n in check.state and _fits(shape, check.state[n].shape)]
    weights = [n for n in near if same([n], mask)]
    if same([], ones) or not same(weights, ones):
        return ()
    for weight in list(weights):  # a bias of units that are masked afterwards, say, need not be
        rest = [n for n in weights if n != weight]
        weights = rest if same(rest, ones) else weights
    return tuple(weights)


def _fits(mask: torch.Size, weight: torch.Size) -> bool:
    """Whether multiplying by a mask leaves the shape of a tensor as it is."""
    try:
        return torch.broadcast_shapes(mask, weight) == weight
    except RuntimeError:
        return False


def masked_spec(spec: NetworkSpec, masks: Mapping[str, Mask]) -> NetworkSpec:
    """A graph in which masks neither scale nor change sign: the tensors that they multiply do so in their place, if any."""
    for name, mask in masks.items():
        if not mask.stays:
            continue
        labels = spec.tensors[name]
        moving = [(axis, s) for axis, spans in enumerate(labels.spans) for s in spans if s.exponent or s.odd]
        changed = {}
        for weight in mask.weights:
            taken = _with_factors(spec.tensors[weight], moving, len(labels.shape))
            if taken is not None:
                changed[weight] = taken
        if len(changed) < len(mask.weights) or not mask.weights:
            spec = drop_symmetry(spec, "scales", {s.group for _, s in moving if s.exponent})
            spec = drop_symmetry(spec, "signs", {s.group for _, s in moving if s.odd})
        elif moving:
            still = replace(labels, spans=tuple(tuple(replace(s, exponent=0.0, odd=False) for s in a) for a in labels.spans))
            spec = replace(spec, tensors={**spec.tensors, **changed, name: still})
    return spec


def _with_factors(labels: LabelledTensor, moving: Sequence[tuple[int, Span]], dims: int) -> LabelledTensor | None:
    """A tensor that takes over the scales and signs of a mask of `dims` dimensions; None if its units stand otherwise."""
    spans = [list(axis) for axis in labels.spans]
    for axis, span in moving:
        own = spans[axis + len(labels.shape) - dims]
        at = next((k for k, s in enumerate(own) if s.group == span.group and s.index.shape == span.index.shape), None)
        if at is None or (own[at].index != span.index).any():
            return None
        own[at] = replace(own[at], exponent=own[at].exponent + span.exponent, odd=own[at].odd != span.odd)
    return replace(labels, spans=tuple(map(tuple, spans)))


def masked_state(state: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """A network's tensors, those that masks multiply multiplied."""
    result = dict(state)
    for name, mask in masks.items():
        result |= {weight: result[weight] * state[name] for weight in mask.weights}
    return result


def ones_where_any(state: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """A carried network's tensors, its masks zeros and ones again where weights are masked already."""
    return {n: (t != 0).to(t) if n in masks and masks[n].weights else t for n, t in state.items()}
