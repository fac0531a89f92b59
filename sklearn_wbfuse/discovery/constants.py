"""Tensors that fusion does not average: indices, truth values, and buffers that are in no state dict.

The fused network has those of the first model. Where the others' differ and count, that would be another function.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..exceptions import ArchitectureMismatchError, FusionWarning
from ..network.spec import NetworkSpec
from .check import SelfCheck
from .tensors import floating_state

__all__ = ["close", "computes_the_same", "constants_of", "warn_of_unread"]


_NONE: Mapping[str, Tensor] = MappingProxyType({})


def computes_the_same(
    check: SelfCheck, plain: nn.Module, other: nn.Module, position: int, replaced: Mapping[str, Tensor] = _NONE
) -> None:
    """Another network must compute the same as the one that was checked, given the same parameters.

    Parameters
    ----------
    check : SelfCheck
        Of `plain`.
    plain, other : Module
        Plain copies of the same shapes.
    position : int
        Of the other model, for messages.
    replaced : mapping of str to Tensor
        Constants that the other network is to hold in place of its own.

    Raises
    ------
    ArchitectureMismatchError
        If it does not; names the buffers that make the difference, if some do.
    """
    try:
        check.computes_the_same(other, position, replaced)
    except ArchitectureMismatchError:
        own, theirs = constants_of(plain), {**constants_of(other), **replaced}
        differing = _differing(own, theirs)
        counting = [n for n in differing if not _same(check, plain, position, {n: theirs[n]})]
        if not counting or not _same(check, other, position, {**replaced, **{n: own[n] for n in differing}}):
            raise
        shown = ", ".join(f"{n!r} ({_kind(theirs[n])}, shape {tuple(theirs[n].shape)})" for n in counting[:5])
        raise ArchitectureMismatchError(
            f"Models 0 and {position} have other values in {shown}, which the forward reads and which can't be averaged. The "
            "fused network would have those of model 0, to which the weights of the other do not belong. Give all models the "
            "same values before they are trained"
            + ("; buffers of real numbers that belong to the weights must be persistent." if _real(theirs, counting) else ".")
        ) from None


def constants_of(model: nn.Module, *, fitting: nn.Module | None = None) -> dict[str, Tensor]:
    """What is not averaged of a plain network; if `fitting`, only what has other values in that, in the same shapes."""
    averaged = floating_state(model)
    found = {name: buffer for name, buffer in model.named_buffers() if name not in averaged}
    return found if fitting is None else {name: found[name] for name in _differing(constants_of(fitting), found)}


def _differing(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    both = [n for n in own if n in theirs and own[n].shape == theirs[n].shape]
    return [n for n in both if not torch.equal(own[n], theirs[n].to(own[n].device))]


def _same(check: SelfCheck, model: nn.Module, position: int, constants: Mapping[str, Tensor]) -> bool:
    try:
        check.computes_the_same(model, position, constants)
    except ArchitectureMismatchError:
        return False
    return True


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _real(tensors: Mapping[str, Tensor], names: list[str]) -> bool:
    return any(tensors[n].is_floating_point() for n in names)


@torch.no_grad()
def warn_of_unread(models: Sequence[nn.Module], spec: NetworkSpec, check: SelfCheck) -> None:
    """Warn of tensors that are not trained, differ between models, and that no operation reads: their neurons are unknown."""
    learnt = {name for name, p in models[0].named_parameters() if p.requires_grad}
    states = [floating_state(model) for model in models]
    unread = []
    for name, labels in spec.tensors.items():
        if name in learnt or name not in check.state or any(labels.spans) or not all(name in own for own in states):
            continue
        first = states[0][name]
        if first.numel() > 1 and any(o[name].shape != first.shape or not torch.equal(o[name], first) for o in states[1:]):
            drawn = torch.randn(check.state[name].shape, generator=torch.Generator().manual_seed(0)).to(check.state[name])
            if close(check.outputs_with({name: drawn}), check.outputs_with({})):
                unread.append(f"{name!r} of shape {tuple(labels.shape)}")
    if unread:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        warnings.warn(
            f"The forward does not read {', '.join(unread[:5])}{more} in eval mode, so it is not known which neurons stand "
            "there: they are averaged as they stand. Set them anew before the fused network is trained further, if they are "
            "averages of weights or codes.",
            FusionWarning,
            stacklevel=6,  # at the call of fit
        )


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether floating outputs agree."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b.is_floating_point()]
    return all(bool((a - b).abs().max() <= 1e-6 * (1 + b.abs().max())) for a, b in pairs if b.numel())
