"""Parametrized tensors: fusion sees their values, and writes back what the parametrization makes of the result.

Both kinds of torch: ``torch.nn.utils.parametrize``, and the hooks of ``torch.nn.utils`` (weight_norm, spectral_norm, prune).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ..exceptions import DiscoveryError, FusionWarning, NonFiniteError

__all__ = [
    "HELD",
    "distance",
    "held_value",
    "materialise",
    "parametrized_names",
    "prune_again",
    "pruned_names",
    "recompute",
    "without_pruning",
    "write_parametrized",
]

HELD = 1e-3  # how far a tensor may be from what a parametrization makes of it, relative to its largest value


def _hooks(module: nn.Module) -> dict[str, Any]:
    """The hooks that compute a tensor before each forward, by its name."""
    found: dict[str, Any] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            found[hook.name] = hook
        elif isinstance(hook, prune.BasePruningMethod):
            found[hook._tensor_name] = hook
    return found


def _lists(module: nn.Module) -> dict[str, Any]:
    return dict(cast("nn.ModuleDict", module.parametrizations).items()) if parametrize.is_parametrized(module) else {}


def _compute(module: nn.Module, hook: Any) -> Tensor:
    """What a hook makes of its tensors in eval mode."""
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(module)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False)
    return hook.apply_mask(module)


def recompute(model: nn.Module) -> None:
    """Set what hooks compute before each forward; otherwise it is that of the last one."""
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
            values = {name: getattr(module, name).detach().clone() for name in _lists(module)}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))


def _remove(module: nn.Module, name: str, hook: Any) -> None:
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
    """Names of the parametrized tensors."""
    return {f"{path}.{name}".lstrip(".") for path, m in model.named_modules() for name in (*_hooks(m), *_lists(m))}


def pruned_names(model: nn.Module) -> set[str]:
    """Names of the tensors that ``torch.nn.utils.prune`` masks."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name, hook in _hooks(module).items()
        if isinstance(hook, prune.BasePruningMethod)
    }


def prune_again(model: nn.Module, template: nn.Module) -> None:
    """Give a plain network the pruned tensors of a template, in its own widths."""
    for path, module in template.named_modules():
        for name, hook in _hooks(module).items():
            if isinstance(hook, prune.BasePruningMethod):
                twin = model.get_submodule(path)
                weight = twin._parameters[name]
                assert weight is not None
                del twin._parameters[name]
                twin.register_parameter(f"{name}_orig", weight)
                twin.register_buffer(f"{name}_mask", torch.ones_like(weight))
                setattr(twin, name, weight.detach().clone())
                twin.register_forward_pre_hook(copy.deepcopy(hook))


def without_pruning(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """A state dict with masked values in place of originals and masks, but where the network itself has these."""
    found = dict(state)
    for original in state:
        name = original.removesuffix("_orig")
        mask = f"{name}_mask"
        if original not in own and name != original and name not in state and mask in state:
            found[name] = found.pop(original) * found.pop(mask)
    return found


def write_parametrized(module: nn.Module, leaf: str, value: Tensor, name: str, *, exact: bool = False) -> None:
    """Set a parametrized tensor; warns where the parametrization can't hold the value.

    Parameters
    ----------
    module : Module
    leaf : str
    value : Tensor
    name : str
        The full name, for messages.
    exact : bool
        Whether spectral norms hold values of a norm above 1, as those of networks whose vectors u and v have not converged;
        otherwise they bring them to norm 1.

    Raises
    ------
    DiscoveryError
        If the parametrization has no right_inverse.
    NonFiniteError
        If it makes NaN of the value.
    """
    held = held_value(module, leaf, value, name, exact=exact)
    if not bool(torch.isfinite(held).all()):
        raise NonFiniteError(
            f"The parametrization of {name!r} makes NaN or infinity of the fused tensor of shape {tuple(value.shape)} (a norm of "
            "zero, perhaps); remove the parametrization of the models before they are fused."
        )
    off = distance(held, value)
    if off > HELD:
        warnings.warn(
            f"The parametrization of {name!r} can't hold the fused tensor, the weighted mean of the aligned ones; it holds "
            f"{_instead(module, leaf)}, whose entries are up to {off:.1%} of the largest away. Remove it from the models before "
            "they are fused to keep the mean.",
            FusionWarning,
            stacklevel=5,
        )


def distance(held: Tensor, value: Tensor) -> float:
    """The largest difference, relative to the largest entry of `value`."""
    value = value.to(held)
    return float((held - value).abs().max() / value.abs().max().clamp(min=torch.finfo(held.dtype).tiny)) if held.numel() else 0.0


def _instead(module: nn.Module, leaf: str) -> str:
    parts = [_hooks(module).get(leaf), *_lists(module).get(leaf, ())]
    if any(isinstance(p, (SpectralNorm, _SpectralNorm)) for p in parts):
        return "it divided by its spectral norm"
    if any(isinstance(p, _Orthogonal) for p in parts):
        return "the nearest orthogonal matrix"
    return "what its right_inverse makes of it"


def held_value(module: nn.Module, leaf: str, value: Tensor, name: str, *, exact: bool = False) -> Tensor:
    """Set a parametrized tensor as `write_parametrized` does and return what it is then."""
    _write(module, leaf, value, name, exact)
    return getattr(module, leaf).detach()


@torch.no_grad()
def _write(module: nn.Module, leaf: str, value: Tensor, name: str, exact: bool) -> None:
    hook = _hooks(module).get(leaf)
    if isinstance(hook, WeightNorm):
        getattr(module, f"{leaf}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
        getattr(module, f"{leaf}_v").copy_(value)
    elif isinstance(hook, SpectralNorm):
        getattr(module, f"{leaf}_orig").copy_(value)
        _aim(getattr(module, f"{leaf}_u"), getattr(module, f"{leaf}_v"), hook.reshape_weight_to_matrix(value), exact)
    elif hook is not None:
        getattr(module, f"{leaf}_orig").copy_(value)
        getattr(module, f"{leaf}_mask").copy_(getattr(module, f"{leaf}_orig") != 0)
    if hook is not None:
        setattr(module, leaf, _compute(module, hook))
        return
    parts = _lists(module)[leaf]
    value = value.to(getattr(module, leaf))  # its dtype and device
    if isinstance(parts[-1], _Orthogonal):
        value = _nearest_orthogonal(value)  # torch's own right_inverse makes another one of it
    try:
        with torch.random.fork_rng(devices=[value.device] if value.is_cuda else []):
            torch.manual_seed(0)  # orthogonal matrices that are not square are completed by random columns
            setattr(module, leaf, value)
    except Exception as error:
        raise DiscoveryError(
            f"The parametrization of {name!r} has no right_inverse that takes its fused value ({type(error).__name__}); define "
            "one or remove the parametrization."
        ) from error
    inner = (parts.original,) if parts.is_tensor else tuple(getattr(parts, f"original{k}") for k in range(parts.ntensors))
    for part in parts:
        if isinstance(part, _SpectralNorm) and inner[0].dim() > 1:
            _aim(part._u, part._v, part._reshape_weight_to_matrix(inner[0]), exact)
        inner = (part(*inner),)


def _aim(u: Tensor, v: Tensor, matrix: Tensor, exact: bool) -> None:
    """Set the vectors of a spectral norm, by which a matrix is divided: what power iteration converges to.

    If `exact` and the norm is above 1, v is turned away so far that the matrix is divided by 1.
    """
    left, values, right = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    norm, ends = float(values[0]), [left[:, 0], right[0]]
    if exact and norm > 1:
        turned = 1 if len(ends[1]) > 1 else 0
        own = ends[turned]
        if len(own) > 1:
            across = torch.zeros_like(own)
            across[own.abs().argmin()] = 1.0
            across -= own * (own @ across)
            ends[turned] = own / norm + across / across.norm() * (1 - norm**-2) ** 0.5
    u.copy_(ends[0])
    v.copy_(ends[1])


def _nearest_orthogonal(value: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(value.double(), full_matrices=False)
    return (left @ right).to(value.dtype)
