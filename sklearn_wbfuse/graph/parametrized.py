"""Parametrized tensors: fusion sees their values, and writes back what the parametrization makes of the result.

Both kinds of torch: ``torch.nn.utils.parametrize``, and the hooks of ``torch.nn.utils.weight_norm``.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ..exceptions import DiscoveryError, FusionWarning

__all__ = ["materialise", "parametrized_names", "write_parametrized"]


def _weight_norms(module: nn.Module) -> dict[str, WeightNorm]:
    return {hook.name: hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)}


def materialise(model: nn.Module) -> None:
    """Replace parametrized tensors of a copy by their values (torch's own removal would change the class of all copies)."""
    for module in model.modules():
        for name in _weight_norms(module):
            remove_weight_norm(module, name)
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))


def parametrized_names(model: nn.Module) -> set[str]:
    """Names of the parametrized tensors."""
    names = set()
    for path, module in model.named_modules():
        own = [*_weight_norms(module), *(module.parametrizations if parametrize.is_parametrized(module) else ())]
        names |= {f"{path}.{name}".lstrip(".") for name in own}
    return names


def write_parametrized(module: nn.Module, leaf: str, value: Tensor, name: str) -> None:
    """Set a parametrized tensor; warns where the parametrization can't hold the value.

    Raises
    ------
    DiscoveryError
        If the parametrization has no right_inverse.
    """
    norm = _weight_norms(module).get(leaf)
    if norm is not None:
        getattr(module, f"{leaf}_g").copy_(torch.norm_except_dim(value, 2, norm.dim))
        getattr(module, f"{leaf}_v").copy_(value)
        setattr(module, leaf, norm.compute_weight(module))
    else:
        try:
            setattr(module, leaf, value.to(getattr(module, leaf).dtype))
        except (NotImplementedError, RuntimeError) as error:
            raise DiscoveryError(
                f"The parametrization of {name!r} has no right_inverse; define one or remove the parametrization."
            ) from error
    held = getattr(module, leaf)
    if not torch.allclose(held, value.to(held), rtol=1e-3, atol=1e-3):
        warnings.warn(
            f"The parametrization of {name!r} can't hold the fused tensor, the weighted mean of the aligned ones; it holds what "
            "its right_inverse makes of it. Remove the parametrization to keep the mean.",
            FusionWarning,
            stacklevel=5,
        )
