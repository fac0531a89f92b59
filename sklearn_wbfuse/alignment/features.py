"""Features, the arrays that matching compares: blocks of the tensors of a network, freed of gauges, and activations.

Blocks without a neuron group hold nothing to match and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..network.groups import LabelledTensor, take
from ..network.spec import NetworkSpec
from ..network.types import State

__all__ = ["Feature", "canonical_tensors", "extract_features", "with_activations"]


@dataclass(frozen=True, eq=False)
class Feature:
    r"""The axes of one block of one tensor, the same for every model.

    Attributes
    ----------
    name : str
    groups : tuple of str
        The group of each axis of the array; a last axis holds all fixed positions.
    roles : tuple of {"out", "in"}
    exponents : tuple of float
        Scale exponent of each axis.
    odd : tuple of bool
        Whether each axis changes sign with its neurons.
    alpha : float
        Weight in the energy, :math:`\alpha_p`.
    """

    name: str
    groups: tuple[str, ...]
    roles: tuple[str, ...]
    exponents: tuple[float, ...]
    odd: tuple[bool, ...]
    alpha: float = 1.0


def canonical_tensors(spec: NetworkSpec, state: State) -> list[tuple[LabelledTensor, Tensor]]:
    r"""Return the labelled tensors that matching compares.

    Of a norm with running statistics these are the weight :math:`\gamma` and the bias :math:`\beta`. Mean and variance follow
    from the weights before the norm and from the inputs, and the mean cancels a bias before the norm. When they were matched as
    well, as the shift :math:`\beta + (b - \mu) \gamma / \sigma`, a pair of ResNet14 reached 52 %, without them 61 % (statistics
    recomputed, 2,000 training images, six starts); dividing the weights by :math:`\sigma` was no better. Two biases that only
    occur as a sum are replaced by their sum.
    """
    values = dict(state)
    for pair in spec.bias_pairs:
        rows = torch.as_tensor(pair.positions, device=values[pair.bias].device)
        total, redundant = values[pair.bias].clone(), values[pair.redundant_bias].clone()
        total[rows] += redundant[rows]
        redundant[rows] = 0
        values[pair.bias], values[pair.redundant_bias] = total, redundant
    return [(labels, values[name]) for name, labels in spec.tensors.items() if name not in spec.uncompared]


def extract_features(spec: NetworkSpec, state: State, alpha_h: float = 1.0) -> tuple[list[Feature], list[Tensor]]:
    """Return the features of a network and their arrays: all blocks of its tensors with a neuron group."""
    features, arrays = [], []
    for labels, value in canonical_tensors(spec, state):
        whole = labels.unfold(value)
        for block in labels.blocks():
            axes = block.axes
            if axes:
                alpha = alpha_h if labels.recurrent else 1.0
                features.append(
                    Feature(
                        labels.name,
                        tuple(s.group for s in axes),
                        tuple(s.role for s in axes),
                        tuple(s.exponent for s in axes),
                        tuple(s.odd for s in axes),
                        alpha,
                    )
                )
                arrays.append(take(whole, block))
    return features, arrays


def with_activations(
    weight_features: Sequence[Feature],
    weight_arrays: Sequence[Sequence[Tensor]],
    activation_features: Sequence[Feature],
    activation_arrays: Sequence[Sequence[Tensor]],
    share: float,
) -> tuple[list[Feature], list[list[Tensor]]]:
    r"""Combine features of weights and of activations, :math:`(1 - s) E_{weights} + s \sum_g c_g E_{activations, g}`.

    :math:`c_g` scales the activations of a group to the squared norm of its tensors. With a share of 1 tensors remain only for
    groups without activations.

    Parameters
    ----------
    weight_features : list of Feature
    weight_arrays : list of list of Tensor
        Of each network.
    activation_features : list of Feature
        Of one group each.
    activation_arrays : list of list of Tensor
        Of each network; scaled in place.
    share : float
        From 0 to 1.
    """
    active = {f.groups[0] for f in activation_features}
    remaining = [p for p, f in enumerate(weight_features) if share < 1 or not active.issuperset(f.groups)]
    features = [weight_features[p] for p in remaining]
    features = [replace(f, alpha=f.alpha * (1 - share)) if share < 1 else f for f in features]
    arrays = [[network[p] for p in remaining] for network in weight_arrays]
    for group in active:
        indices = [k for k, f in enumerate(activation_features) if f.groups[0] == group]
        weight_norm = sum(
            float(array.square().sum())
            for network in weight_arrays
            for feature, array in zip(weight_features, network, strict=True)
            if group in feature.groups
        )
        norm = sum(float(network[k].square().sum()) for network in activation_arrays for k in indices)
        factor = (weight_norm / norm) ** 0.5 if norm else 1.0
        features += [replace(activation_features[k], alpha=share) for k in indices]
        for combined, network in zip(arrays, activation_arrays, strict=True):
            combined += [network[k].mul_(factor) for k in indices]
    return features, arrays
