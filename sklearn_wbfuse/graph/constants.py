"""Tensors that fusion does not average: indices, truth values, and buffers that are in no state dict.

The fused network has those of the first model. Where the others' differ and count, that would be another function.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..exceptions import ArchitectureMismatchError, FusionWarning
from ..groups import Graph
from .check import SelfCheck
from .modules import floating_state, plain_copy

__all__ = ["close", "computes_the_same", "outputs_with", "warn_of_unread", "with_constants"]


def computes_the_same(check: SelfCheck, plain: nn.Module, other: nn.Module, position: int) -> None:
    """Another network must compute the same as the one that was checked, given the same parameters.

    Parameters
    ----------
    check : SelfCheck
        Of `plain`.
    plain, other : Module
        Plain copies of the same shapes.
    position : int
        Of the other model, for messages.

    Raises
    ------
    ArchitectureMismatchError
        If it does not; names the buffers that make the difference, if some do.
    """
    try:
        check.computes_the_same(other, position)
    except ArchitectureMismatchError:
        own, theirs = _constants(plain), _constants(other)
        counting = [n for n in _differing(own, theirs) if not _same(check, _with(plain, {n: theirs[n]}), position)]
        if not counting or not _same(check, with_constants(other, plain), position):
            raise
        shown = ", ".join(f"{n!r} ({_kind(theirs[n])}, shape {tuple(theirs[n].shape)})" for n in counting[:5])
        raise ArchitectureMismatchError(
            f"Models 0 and {position} have other values in {shown}, which the forward reads and which can't be averaged. The "
            "fused network would have those of model 0, to which the weights of the other do not belong. Give all models the "
            "same values before they are trained"
            + ("; buffers of real numbers that belong to the weights must be persistent." if _real(theirs, counting) else ".")
        ) from None


def with_constants(model: nn.Module, source: nn.Module) -> nn.Module:
    """A copy of a plain network that holds what another does not average, where the shapes are the same."""
    own, theirs = _constants(model), _constants(source)
    return _with(model, {name: theirs[name] for name in _differing(own, theirs)})


def _constants(model: nn.Module) -> dict[str, Tensor]:
    averaged = floating_state(model)
    return {name: buffer for name, buffer in model.named_buffers() if name not in averaged}


def _differing(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    both = [n for n in own if n in theirs and own[n].shape == theirs[n].shape]
    return [n for n in both if not torch.equal(own[n], theirs[n].to(own[n].device))]


def _with(model: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    twin = plain_copy(model)
    held = dict(twin.named_buffers())
    for name, value in values.items():
        held[name].copy_(value)
    return twin


def _same(check: SelfCheck, model: nn.Module, position: int) -> bool:
    try:
        check.computes_the_same(model, position)
    except ArchitectureMismatchError:
        return False
    return True


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _real(tensors: dict[str, Tensor], names: list[str]) -> bool:
    return any(tensors[n].is_floating_point() for n in names)


@torch.no_grad()
def warn_of_unread(models: Sequence[nn.Module], graph: Graph, check: SelfCheck) -> None:
    """Warn of tensors that are not trained, differ between models, and that no operation reads: their neurons are unknown."""
    learnt = {name for name, p in models[0].named_parameters() if p.requires_grad}
    states = [floating_state(model) for model in models]
    unread = []
    for name, labels in graph.tensors.items():
        if name in learnt or name not in check.state or any(labels.spans) or not all(name in own for own in states):
            continue
        first = states[0][name]
        if first.numel() > 1 and any(o[name].shape != first.shape or not torch.equal(o[name], first) for o in states[1:]):
            drawn = torch.randn(check.state[name].shape, generator=torch.Generator().manual_seed(0)).to(check.state[name])
            if close(outputs_with(check, {name: drawn}), outputs_with(check, {})):
                unread.append(f"{name!r} of shape {tuple(labels.shape)}")
    if unread:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        warnings.warn(
            f"The forward does not read {', '.join(unread[:5])}{more} in eval mode, so it is not known which neurons stand "
            "there: they are averaged as they stand. Set them anew before the fused network is trained further, if they are "
            "averages of weights or codes.",
            FusionWarning,
            stacklevel=5,  # at the call of fit
        )


def outputs_with(check: SelfCheck, changed: Mapping[str, Tensor]) -> list[Tensor]:
    """What the network computes of the first random inputs with some of its random tensors replaced."""
    return check._outputs(check.twin, {**check.state, **changed}, check.inputs[0])


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether floating outputs agree."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b.is_floating_point()]
    return all(bool((a - b).abs().max() <= 1e-6 * (1 + b.abs().max())) for a, b in pairs if b.numel())
