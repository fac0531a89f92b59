"""Masks and wirings in fusion: what is compared, what is carried, and what the fused network holds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ..alignment import AlignedParents
from ..discovery.masks import Mask, ones_where_any
from ..exceptions import FusionWarning

__all__ = ["compared", "fused_masks"]


def compared(state: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """What neurons are compared by: masks that all models share count much, those that are in the weights already nothing."""
    return {name: tensor * masks[name].factor if name in masks else tensor for name, tensor in state.items()}


def fused_masks(fused: Mapping[str, Tensor], parents: AlignedParents, masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """The fused tensors with masks that are masks; warns where the aligned models have different ones.

    Parameters
    ----------
    fused : dict of str to Tensor
        The mean.
    parents : AlignedParents
    masks : dict of str to Mask
    """
    result = ones_where_any(fused, masks)
    different: dict[bool, list[str]] = {True: [], False: []}
    for name, mask in masks.items():
        first, *others = (p.tensor(name) for p in parents)
        if all(torch.equal(own, first) for own in others):
            result[name] = first
        else:
            different[bool(mask.weights)].append(name)
    for multiplies, names in different.items():
        if names:
            what = (
                "ones where one of them has; what they stand for (an order of the inputs, a sparsity) may not hold for it"
                if multiplies
                else "their mean, which is no mask"
            )
            shown = ", ".join(f"{n!r} of shape {tuple(fused[n].shape)}" for n in names[:5])
            warnings.warn(
                f"The masks {shown} hold only -1, 0 and 1, and differ between the models even when their neurons are aligned. "
                f"The fused network has {what}. Train models with the same masks to keep them.",
                FusionWarning,
                stacklevel=5,  # at the call of fit
            )
    return result
