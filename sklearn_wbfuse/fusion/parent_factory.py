"""Makes the parents of a fusion from the user's networks."""

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
from .masking import compared_tensors

Copied = Callable[[nn.Module], nn.Module]
"""A function that makes plain copies; a cached one makes each copy once."""

__all__ = ["ParentFactory", "architectures_of", "common_dtype", "models_of", "normalised_weights"]


def models_of(models: Any) -> Any:
    """Return the models of a FusionInput, or the argument itself if it is none."""
    return models.models if isinstance(models, FusionInput) else models


def normalised_weights(weights: Any, n_models: int) -> list[float]:
    """Return the weights of models with sum 1; equal ones by default.

    Raises
    ------
    FusionError
        If they are not one finite number of at least 0 per model, or all are 0.
    """
    if weights is None:
        return [1 / n_models] * n_models
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n_models,):
        raise FusionError(f"weights must have one entry per model: {n_models}. Got shape {weights.shape}.")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise FusionError(f"weights must be finite, at least 0 and not all 0. Got {weights.tolist()}.")
    return (weights / weights.sum()).tolist()


def architectures_of(
    models: Sequence[nn.Module],
    data: FusionInput | None,
    example_inputs: Any = None,
    copied: Copied = plain_copy,
) -> list[Architecture]:
    """Discover the architectures of models, once for all fits that share rows; the first rows are the default inputs.

    Architectures that no other fit shares may hold the copies that `copied` makes.
    """
    inputs = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
    if data is None:
        return discover_all(models, inputs, list(map(copied, models)))
    example = data.taken_by(models[0]).tensors(models[0], slice(0, 2)) if inputs is None else inputs
    return data.cached(inputs, lambda: with_separate_networks(discover_all(models, example, list(map(copied, models)))))


def common_dtype(models: Sequence[nn.Module]) -> torch.dtype:
    """Return the dtype of computation, double precision if a model has any."""
    has_double = any(t.dtype == torch.float64 for model in models for t in floating_state(model).values())
    return torch.float64 if has_double else torch.float32


@dataclass(frozen=True)
class ParentFactory:
    """Makes the parents of a fusion.

    Attributes
    ----------
    inputs : tuple
        Inputs of the discovery.
    dtype : torch.dtype
        The dtype of computation.
    device : str, torch.device or None
        The device of computation; the networks' own if None.
    masks : mapping of str to Mask
    """

    inputs: Any
    dtype: torch.dtype
    device: Any = None
    masks: Mapping[str, Mask] = field(default_factory=dict)

    def masked(self, architecture: Architecture) -> Architecture:
        """Return an architecture whose masks neither scale nor change sign."""
        spec = masked_spec(architecture.spec, self.masks)
        return architecture if spec is architecture.spec else replace(architecture, spec=spec)

    def tensors(self, model: nn.Module, copied: Copied = plain_copy) -> dict[str, Tensor]:
        """Return the tensors of a network in the dtype and on the device of computation."""
        try:
            device = torch.device(self.device) if self.device is not None else device_of(model)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise FusionError(
                f"device must be one that this machine has, such as 'cpu', or None for the models' own. Got {self.device!r}: "
                f"{str(error).splitlines()[0]}."
            ) from error
        state = {name: tensor.to(device, self.dtype) for name, tensor in plain_state(model, copied).items()}
        return masked_state(state, self.masks)

    def parent(self, model: nn.Module, architecture: Architecture, weight: float = 1.0, copied: Copied = plain_copy) -> Parent:
        """Make a parent, given its architecture after `masked`."""
        state = self.tensors(model, copied)
        return Parent(model, architecture, state, compared_tensors(state, self.masks), weight, copied=copied)

    def further(self, model: nn.Module) -> Parent:
        """Make a parent of a network that the user passes in addition to the parents."""
        (network,) = validate_models([model])
        return self.parent(network, self.masked(discover_all([network], self.inputs)[0]))
