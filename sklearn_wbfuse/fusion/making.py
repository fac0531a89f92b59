"""From the networks that a user gives to the parents that roles see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import FusionInput
from ..discovery import (
    Architecture,
    device_of,
    discover_all,
    floating_state,
    plain_copy,
    plain_state,
    validate_models,
    with_separate_networks,
)
from ..discovery.masks import Mask, masked_spec, masked_state
from ..exceptions import FusionError
from ..execution import Parent
from .masking import compared

Copied = Callable[[nn.Module], nn.Module]
"""Makes plain copies; a cached one makes each once."""

__all__ = ["Making", "common_dtype", "discovered", "models_of", "normalised"]


def models_of(given: Any) -> Any:
    """The models of a FusionInput, or what was given instead."""
    return given.models if isinstance(given, FusionInput) else given


def normalised(weights: Any, n_models: int) -> list[float]:
    """The weights of models with sum 1; equal ones by default.

    Raises
    ------
    FusionError
        If they are not one finite number of at least 0 per model, or all 0.
    """
    if weights is None:
        return [1 / n_models] * n_models
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n_models,):
        raise FusionError(f"weights must have one entry per model: {n_models}. Got shape {weights.shape}.")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise FusionError(f"weights must be finite, at least 0 and not all 0. Got {weights.tolist()}.")
    return (weights / weights.sum()).tolist()


def discovered(
    models: Sequence[nn.Module],
    data: FusionInput | None,
    example_inputs: Any = None,
    copied: Copied = plain_copy,
) -> list[Architecture]:
    """The architectures of models, found once for all fits that share rows; their first rows are the inputs by default.

    Architectures that are not shared may have what `copied` makes of a model.
    """
    inputs = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
    if data is None:
        return discover_all(models, inputs, list(map(copied, models)))
    example = data.taken_by(models[0]).tensors(models[0], slice(0, 2)) if inputs is None else inputs
    return data.cached(inputs, lambda: with_separate_networks(discover_all(models, example, list(map(copied, models)))))


def common_dtype(models: Sequence[nn.Module]) -> torch.dtype:
    """Where to compute: in double precision if a model has any."""
    double = any(t.dtype == torch.float64 for model in models for t in floating_state(model).values())
    return torch.float64 if double else torch.float32


@dataclass(frozen=True)
class Making:
    """How the parents of a fusion are made.

    Attributes
    ----------
    inputs : tuple
        Those of the discovery.
    dtype : torch.dtype
        Of computation.
    device : str, torch.device or None
        Of computation; the networks' own if None.
    masks : mapping of str to Mask
    """

    inputs: Any
    dtype: torch.dtype
    device: Any = None
    masks: Mapping[str, Mask] = field(default_factory=dict)

    def masked(self, architecture: Architecture) -> Architecture:
        """An architecture whose masks neither scale nor change sign."""
        spec = masked_spec(architecture.spec, self.masks)
        return architecture if spec is architecture.spec else replace(architecture, spec=spec)

    def tensors(self, model: nn.Module, copied: Copied = plain_copy) -> dict[str, Tensor]:
        """The tensors of a network as they are computed with."""
        try:
            device = torch.device(self.device) if self.device is not None else device_of(model)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise FusionError(
                f"device={self.device!r} can't be used: {str(error).splitlines()[0]}. Give one that this machine has, such as "
                "'cpu', or None for the models' own."
            ) from error
        own = plain_state(model, copied)
        state = {name: tensor.to(device, self.dtype) for name, tensor in own.items()}
        return masked_state(state, self.masks)

    def parent(self, model: nn.Module, architecture: Architecture, weight: float = 1.0, copied: Copied = plain_copy) -> Parent:
        """A parent, whose architecture is masked already."""
        state = self.tensors(model, copied)
        return Parent(model, architecture, state, compared(state, self.masks), weight, copied=copied)

    def further(self, model: nn.Module) -> Parent:
        """A network that the user gives beside the parents."""
        (own,) = validate_models([model])
        return self.parent(own, self.masked(discover_all([own], self.inputs)[0]))
