"""Tensors that fusion does not average: indices, booleans, and buffers outside state dicts.

The fused network has those of the first model. If the others' differ and affect the outputs, it would compute something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..exceptions import ArchitectureMismatchError, FusionWarning
from ..network.spec import NetworkSpec
from ..network.types import State
from .check import SelfCheck
from .tensors import floating_state

__all__ = ["check_same_function", "constants_of", "outputs_agree", "warn_of_unread"]


_NONE: State = MappingProxyType({})


def check_same_function(check: SelfCheck, plain: nn.Module, other: nn.Module, position: int, replaced: State = _NONE) -> None:
    """Check that another network computes the same as the one that was checked, given the same parameters.

    Parameters
    ----------
    check : SelfCheck
        Of `plain`.
    plain, other : Module
        Plain copies of the same shapes.
    position : int
        Position of the other model, for messages.
    replaced : mapping of str to Tensor
        Constants that replace those of the other network.

    Raises
    ------
    ArchitectureMismatchError
        If it does not, naming the buffers that make the difference, if any do.
    """
    try:
        check.check_same_function(other, position, replaced)
    except ArchitectureMismatchError:
        constants, other_constants = constants_of(plain), {**constants_of(other), **replaced}
        differing = _differing(constants, other_constants)
        relevant = [n for n in differing if not _same(check, plain, position, {n: other_constants[n]})]
        if not relevant or not _same(check, other, position, {**replaced, **{n: constants[n] for n in differing}}):
            raise
        shown = ", ".join(f"{n!r} ({_kind(other_constants[n])}, shape {tuple(other_constants[n].shape)})" for n in relevant[:5])
        advice = " Buffers of real numbers that belong to the weights must be persistent."
        raise ArchitectureMismatchError(
            f"Tensors that the forward reads and that can't be averaged must be equal. Got models 0 and {position} with other "
            f"values in {shown}. The fused network would have those of model 0, which do not fit the weights of the other. Give "
            f"all models the same values before they are trained.{advice if _real(other_constants, relevant) else ''}"
        ) from None


def constants_of(model: nn.Module, *, fitting: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the tensors that are not averaged; if `fitting`, only those with equal shapes but other values there."""
    averaged = floating_state(model)
    constants = {name: buffer for name, buffer in model.named_buffers() if name not in averaged}
    return constants if fitting is None else {name: constants[name] for name in _differing(constants_of(fitting), constants)}


def _differing(first: State, second: State) -> list[str]:
    """Return the names of tensors of equal shapes whose values differ."""
    comparable = [n for n in first if n in second and first[n].shape == second[n].shape]
    return [n for n in comparable if not torch.equal(first[n], second[n].to(first[n].device))]


def _same(check: SelfCheck, model: nn.Module, position: int, constants: State) -> bool:
    """Return whether a model computes the same with some constants replaced."""
    try:
        check.check_same_function(model, position, constants)
    except ArchitectureMismatchError:
        return False
    return True


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _real(tensors: State, names: list[str]) -> bool:
    return any(tensors[n].is_floating_point() for n in names)


@torch.no_grad()
def warn_of_unread(models: Sequence[nn.Module], spec: NetworkSpec, check: SelfCheck) -> None:
    """Warn of tensors that are not trained, differ between models, and are read by no operation: their neurons are unknown."""
    trainable = {name for name, p in models[0].named_parameters() if p.requires_grad}
    states = [floating_state(model) for model in models]
    unread = []
    for name, labels in spec.tensors.items():
        if name in trainable or name not in check.state or any(labels.spans) or not all(name in state for state in states):
            continue
        first = states[0][name]
        if first.numel() > 1 and any(s[name].shape != first.shape or not torch.equal(s[name], first) for s in states[1:]):
            drawn = torch.randn(check.state[name].shape, generator=torch.Generator().manual_seed(0)).to(check.state[name])
            if outputs_agree(check.outputs_with({name: drawn}), check.outputs_with({})):
                unread.append(f"{name!r} of shape {tuple(labels.shape)}")
    if unread:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        warnings.warn(
            f"The forward does not read {', '.join(unread[:5])}{more} in eval mode, so their neurons are unknown: they are "
            "averaged without alignment. Set them again before the fused network is trained further, if they are averages of "
            "weights or codes.",
            FusionWarning,
            stacklevel=6,  # at the call of fit
        )


def outputs_agree(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether floating-point outputs agree."""
    pairs = [(a, b) for a, b in zip(outputs, expected, strict=True) if b.is_floating_point()]
    return all(bool((a - b).abs().max() <= 1e-6 * (1 + b.abs().max())) for a, b in pairs if b.numel())
