"""Masks in fusion: the tensors that are compared, and the masks of the fused network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ..alignment import AlignedParents
from ..discovery.masks import Mask, ones_where_any
from ..exceptions import FusionWarning
from ..network.types import State

__all__ = ["compared_tensors", "fused_masks"]


def compared_tensors(state: State, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """Return the tensors by which neurons are compared, with a large weight for masks that all models share.

    Masks that are multiplied into the weights already have weight 0.
    """
    return {name: tensor * masks[name].factor if name in masks else tensor for name, tensor in state.items()}


def fused_masks(fused: State, parents: AlignedParents, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """Return the fused tensors with valid masks; warn if the aligned models have different masks.

    Parameters
    ----------
    fused : dict of str to Tensor
        The mean of the parents.
    parents : AlignedParents
    masks : dict of str to Mask
    """
    result = ones_where_any(fused, masks)
    different: dict[bool, list[str]] = {True: [], False: []}
    for name, mask in masks.items():
        first, *others = (p.tensor(name) for p in parents)
        if all(torch.equal(other, first) for other in others):
            result[name] = first
        else:
            different[bool(mask.weights)].append(name)
    for multiplies_weights, names in different.items():
        if names:
            consequence = (
                "has ones where any of them has, so that their meaning (an order of the inputs, a sparsity) may be lost"
                if multiplies_weights
                else "has their mean, which is no mask"
            )
            shown = ", ".join(f"{n!r} of shape {tuple(fused[n].shape)}" for n in names[:5])
            warnings.warn(
                f"The masks {shown} hold only -1, 0 and 1, and differ between the models even when their neurons are aligned. "
                f"The fused network {consequence}. Train models with the same masks to keep them.",
                FusionWarning,
                stacklevel=5,  # at the call of fit
            )
    return result
