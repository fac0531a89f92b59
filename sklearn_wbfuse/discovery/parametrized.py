"""Parametrized tensors: fusion uses their values, and writes back what the parametrization can represent of the result.

Both kinds of torch: ``torch.nn.utils.parametrize``, and the hooks of ``torch.nn.utils`` (weight_norm, spectral_norm, prune).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ..exceptions import DiscoveryError, FusionWarning, NonFiniteError
from ..network.types import State

__all__ = [
    "TOLERANCE",
    "apply_pruning_masks",
    "distance",
    "materialise",
    "parametrized_names",
    "prune_like",
    "pruned_names",
    "recompute",
    "representable_value",
    "write_parametrized",
]

TOLERANCE = 1e-3  # accepted difference of a tensor from its parametrized value, relative to its largest entry


def _hooks(module: nn.Module) -> dict[str, Any]:
    """Return the hooks that compute a tensor before each forward, by its name."""
    hooks: dict[str, Any] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            hooks[hook.name] = hook
        elif isinstance(hook, prune.BasePruningMethod):
            hooks[hook._tensor_name] = hook
    return hooks


def _parametrizations(module: nn.Module) -> dict[str, Any]:
    """Return the parametrizations of a module, by the name of the tensor."""
    return dict(cast("nn.ModuleDict", module.parametrizations).items()) if parametrize.is_parametrized(module) else {}


def _compute(module: nn.Module, hook: Any) -> Tensor:
    """Return what a hook computes from its tensors in eval mode."""
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(module)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False)
    return hook.apply_mask(module)


def recompute(model: nn.Module) -> None:
    """Recompute the tensors that hooks compute before each forward, which hold the values of the last one."""
    with torch.no_grad():
        for module in model.modules():
            for name, hook in _hooks(module).items():
                setattr(module, name, _compute(module, hook))


def materialise(model: nn.Module) -> None:
    """Replace parametrized tensors of a copy by their values (torch's own removal would change the class of all copies)."""
    for module in model.modules():
        for name, hook in _hooks(module).items():
            _remove(module, name, hook)
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in _parametrizations(module)}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))


def _remove(module: nn.Module, name: str, hook: Any) -> None:
    """Remove a hook, and register its tensor as a parameter."""
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, name)
    else:
        original = getattr(module, f"{name}_orig")
        value = nn.Parameter(hook.apply_mask(module).detach(), original.requires_grad)  # the original may be tied to another
        prune.remove(module, name)
        setattr(module, name, value)


def parametrized_names(model: nn.Module) -> set[str]:
    """Return the names of the parametrized tensors."""
    return {f"{path}.{name}".lstrip(".") for path, m in model.named_modules() for name in (*_hooks(m), *_parametrizations(m))}


def pruned_names(model: nn.Module) -> set[str]:
    """Return the names of the tensors that ``torch.nn.utils.prune`` masks."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name, hook in _hooks(module).items()
        if isinstance(hook, prune.BasePruningMethod)
    }


def prune_like(model: nn.Module, template: nn.Module) -> None:
    """Prune the same tensors of a plain network as of a template, in the network's widths."""
    for path, module in template.named_modules():
        for name, hook in _hooks(module).items():
            if isinstance(hook, prune.BasePruningMethod):
                pruned = model.get_submodule(path)
                weight = pruned._parameters[name]
                assert weight is not None
                del pruned._parameters[name]
                pruned.register_parameter(f"{name}_orig", weight)
                pruned.register_buffer(f"{name}_mask", torch.ones_like(weight))
                setattr(pruned, name, weight.detach().clone())
                pruned.register_forward_pre_hook(copy.deepcopy(hook))


def apply_pruning_masks(state: State, names: Collection[str]) -> dict[str, Tensor]:
    """Return a state dict with masked values instead of originals and masks, unless `names` contain the originals."""
    result = dict(state)
    for original in state:
        name = original.removesuffix("_orig")
        mask = f"{name}_mask"
        if original not in names and name != original and name not in state and mask in state:
            result[name] = result.pop(original) * result.pop(mask)
    return result


def write_parametrized(module: nn.Module, leaf: str, value: Tensor, name: str, *, exact: bool = False) -> None:
    """Set a parametrized tensor, and warn if the parametrization cannot represent the value.

    Parameters
    ----------
    module : Module
    leaf : str
    value : Tensor
    name : str
        The full name, for messages.
    exact : bool
        Whether spectral norms can hold values of a norm above 1, as in networks whose vectors u and v have not converged;
        otherwise these are scaled to norm 1.

    Raises
    ------
    DiscoveryError
        If the parametrization has no right_inverse.
    NonFiniteError
        If its value is NaN or infinite.
    """
    result = representable_value(module, leaf, value, name, exact=exact)
    if not bool(torch.isfinite(result).all()):
        raise NonFiniteError(
            f"Parametrized tensors must be finite. Got NaN or infinity for the fused tensor {name!r} of shape "
            f"{tuple(value.shape)} (perhaps a norm of zero). Remove the parametrization of the models before they are fused."
        )
    difference = distance(result, value)
    if difference > TOLERANCE:
        warnings.warn(
            f"The parametrization of {name!r} can't hold the fused tensor, the weighted mean of the aligned ones. It holds "
            f"{_replacement(module, leaf)}, whose entries differ by up to {difference:.1%} of the largest. To keep the mean, "
            "remove the parametrization from the models before they are fused.",
            FusionWarning,
            stacklevel=5,
        )


def distance(result: Tensor, value: Tensor) -> float:
    """Return the largest difference, relative to the largest entry of `value`."""
    if not result.numel():
        return 0.0
    value = value.to(result)
    return float((result - value).abs().max() / value.abs().max().clamp(min=torch.finfo(result.dtype).tiny))


def _replacement(module: nn.Module, leaf: str) -> str:
    """Return what a parametrization holds if it cannot represent a value, for messages."""
    parts = [_hooks(module).get(leaf), *_parametrizations(module).get(leaf, ())]
    if any(isinstance(p, (SpectralNorm, _SpectralNorm)) for p in parts):
        return "that mean divided by its spectral norm"
    if any(isinstance(p, _Orthogonal) for p in parts):
        return "the nearest orthogonal matrix"
    return "the result of its right_inverse"


def representable_value(module: nn.Module, leaf: str, value: Tensor, name: str, *, exact: bool = False) -> Tensor:
    """Set a parametrized tensor as `write_parametrized` does, and return its new value."""
    _write(module, leaf, value, name, exact)
    return getattr(module, leaf).detach()


@torch.no_grad()
def _write(module: nn.Module, leaf: str, value: Tensor, name: str, exact: bool) -> None:
    """Set a parametrized tensor by its hook or its parametrizations."""
    hook = _hooks(module).get(leaf)
    if isinstance(hook, WeightNorm):
        getattr(module, f"{leaf}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
        getattr(module, f"{leaf}_v").copy_(value)
    elif isinstance(hook, SpectralNorm):
        getattr(module, f"{leaf}_orig").copy_(value)
        _set_singular_vectors(
            getattr(module, f"{leaf}_u"), getattr(module, f"{leaf}_v"), hook.reshape_weight_to_matrix(value), exact
        )
    elif hook is not None:
        getattr(module, f"{leaf}_orig").copy_(value)
        getattr(module, f"{leaf}_mask").copy_(getattr(module, f"{leaf}_orig") != 0)
    if hook is not None:
        setattr(module, leaf, _compute(module, hook))
        return
    parts = _parametrizations(module)[leaf]
    value = value.to(getattr(module, leaf))  # dtype and device
    if isinstance(parts[-1], _Orthogonal):
        value = _nearest_orthogonal(value)  # torch's right_inverse returns another orthogonal matrix
    try:
        with torch.random.fork_rng(devices=[value.device] if value.is_cuda else []):
            torch.manual_seed(0)  # nonsquare orthogonal matrices are completed by random columns
            setattr(module, leaf, value)
    except Exception as error:
        raise DiscoveryError(
            f"Parametrizations must have a right_inverse that takes the fused value. Got {type(error).__name__} for {name!r}. "
            "Define one or remove the parametrization."
        ) from error
    originals = (parts.original,) if parts.is_tensor else tuple(getattr(parts, f"original{k}") for k in range(parts.ntensors))
    for part in parts:
        if isinstance(part, _SpectralNorm) and originals[0].dim() > 1:
            _set_singular_vectors(part._u, part._v, part._reshape_weight_to_matrix(originals[0]), exact)
        originals = (part(*originals),)


def _set_singular_vectors(u: Tensor, v: Tensor, matrix: Tensor, exact: bool) -> None:
    """Set the vectors of a spectral norm, by which a matrix is divided, to the limit of power iteration.

    If `exact` and the norm is above 1, v is rotated such that the matrix is divided by 1.
    """
    left, values, right = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    norm, vectors = float(values[0]), [left[:, 0], right[0]]
    if exact and norm > 1:
        rotated = 1 if len(vectors[1]) > 1 else 0
        vector = vectors[rotated]
        if len(vector) > 1:
            orthogonal = torch.zeros_like(vector)
            orthogonal[vector.abs().argmin()] = 1.0
            orthogonal -= vector * (vector @ orthogonal)
            vectors[rotated] = vector / norm + orthogonal / orthogonal.norm() * (1 - norm**-2) ** 0.5
    u.copy_(vectors[0])
    v.copy_(vectors[1])


def _nearest_orthogonal(value: Tensor) -> Tensor:
    """Return the nearest orthogonal matrix."""
    left, _, right = torch.linalg.svd(value.double(), full_matrices=False)
    return (left @ right).to(value.dtype)
