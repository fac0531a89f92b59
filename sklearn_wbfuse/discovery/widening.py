"""Repetition of units: the tensors and states of a wider network that computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..network.groups import LabelledTensor, put, take

__all__ = ["repeat_state_units", "repeat_units"]


def repeat_units(tensor: Tensor, labels: LabelledTensor, wide: LabelledTensor, copies: Mapping[str, np.ndarray]) -> Tensor:
    """Return a tensor in which every unit occurs several times; input axes divide the weight among the copies."""
    tensor = labels.unfold(tensor)
    result = torch.zeros(wide.shape, dtype=tensor.dtype)
    for before, after in zip(labels.blocks(), wide.blocks(), strict=True):
        array = take(tensor, before)
        for axis, (span, wide_span) in enumerate(zip(before.axes, after.axes, strict=True)):
            array = array.index_select(axis, torch.as_tensor(copies[span.group]))
            if span.role == "in":
                array = array * (len(span.index) / len(wide_span.index)) * (wide.diagonal / labels.diagonal)
        put(result, after, array)
    return wide.fold(result)


def repeat_state_units(tensor: Tensor, labels: LabelledTensor, wide: LabelledTensor, copies: Mapping[str, np.ndarray]) -> Tensor:
    """Return a recurrent state, its units first, in which every unit occurs as often as in the wider network."""
    flat = tensor.flatten(1)
    before, after = (dataclasses.replace(t, shape=(t.shape[0], flat.shape[1]), spans=(t.spans[0], ())) for t in (labels, wide))
    return repeat_units(flat, before, after, copies).reshape(-1, *tensor.shape[1:])
