"""Operations on an ``nn.Module``: unwrapping, validation, plain copies, writing tensors back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..exceptions import InvalidModelError, NonFiniteError, WidthError
from ..network.types import State
from .model_hints import hint_for_list, hint_for_model, is_rows
from .parametrized import materialise, parametrized_names, prune_like, pruned_names, write_parametrized
from .tensors import floating_state

__all__ = [
    "device_of",
    "is_finite",
    "plain_copy",
    "plain_state",
    "rebuild_flat_weights",
    "reorder_tensors",
    "unwrap",
    "validate_models",
    "write_back",
]


def unwrap(model: nn.Module) -> nn.Module:
    """Remove DataParallel and ``torch.compile`` wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def validate_models(models: Any) -> list[nn.Module]:
    """Return a list of unwrapped modules that can be fused as far as can be checked without running them.

    Raises
    ------
    InvalidModelError
        Not a list, empty, an element that is not an ordinary module, lazy parameters, or two devices.
    NonFiniteError
        NaN or infinity in a parameter or buffer.
    """
    no_list = isinstance(models, (nn.Module, str, bytes, Mapping)) or not isinstance(models, (Sequence, Iterable))
    if no_list or is_rows(models):
        raise InvalidModelError(f"Expected a list of torch.nn.Module objects. {hint_for_list(models)}")
    elements = list(models)
    if not elements:
        raise InvalidModelError("Expected at least one model. Got an empty list.")
    checked = []
    for position, model in enumerate(elements):
        hint = hint_for_model(model)
        if hint or not isinstance(model, nn.Module):
            raise InvalidModelError(f"Model {position} must be an ordinary torch.nn.Module. Got {type(model).__name__}{hint}.")
        plain = unwrap(model)
        for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
            if isinstance(tensor, (nn.UninitializedParameter, nn.parameter.UninitializedBuffer)):
                raise InvalidModelError(
                    f"Parameters must have shapes. Got lazy {name!r} in model {position}. Run the model once first."
                )
        checked.append(plain)
    devices = {position: device_of(m) for position, m in enumerate(checked)}
    if len(set(devices.values())) > 1:
        shown = ", ".join(f"model {p} on {d}" for p, d in devices.items())
        raise InvalidModelError(f"All models must be on one device. Got {shown}. Move them with .to(device).")
    masks = dict(checked[0].named_buffers())
    for position, model in enumerate(checked):
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not _is_valid(tensor, masks.get(name)):
                raise NonFiniteError(f"Model {position}: {name!r} of shape {tuple(tensor.shape)} has NaN or infinite values.")
    return checked


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, by their sum at a tenth of the cost, unless it overflows."""
    return bool(tensor.detach().sum().isfinite()) or bool(tensor.isfinite().all())


def _is_valid(tensor: Tensor, mask: Tensor | None) -> bool:
    """Return whether the values are finite, or infinite in a buffer that all models share (a mask of attention)."""
    if not tensor.is_floating_point() or is_finite(tensor):
        return True
    return mask is not None and not bool(tensor.isnan().any()) and torch.equal(mask, tensor)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's tensors.

    Raises
    ------
    InvalidModelError
        If its tensors are on several devices.
    """
    devices = {t.device for t in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise InvalidModelError(
            f"All tensors of a model must be on one device. Got {sorted(map(str, devices))} in {type(model).__name__}. Move it "
            "to one."
        )
    return devices.pop() if devices else torch.device("cpu")


def _attributes(model: nn.Module) -> Iterable[Any]:
    """Yield the values that the modules of a network hold, except empty ones, since looking into them is as slow as the copy."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                yield from value.values()
            elif name != "_modules" and not (value is None or (isinstance(value, (dict, int, str, float)) and not value)):
                yield from pytree.tree_leaves(value)


def _copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in eval mode, without gradients."""
    try:
        try:
            copied = copy.deepcopy(model)
        except RuntimeError:  # tensors with a history are refused
            computed = [t for t in _attributes(model) if isinstance(t, Tensor) and not t.is_leaf]
            copied = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    except Exception as error:
        raise InvalidModelError(
            f"Models must allow deep copies, since fusion never changes yours. Got {type(model).__name__}, which can't be copied "
            f"({error}). Detach tensors that are stored as attributes, or define __deepcopy__."
        ) from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied.eval()


def plain_copy(model: nn.Module, *, plain: bool = True) -> nn.Module:
    """Return a deep copy in eval mode, without gradients; parametrized tensors become plain ones if `plain`."""
    copied = _copy(model)
    if plain:
        materialise(copied)
        rebuild_flat_weights(copied)
    return copied


def reorder_tensors(first: nn.Module, other: nn.Module) -> None:
    """Register the tensors of a plain network in the order of the first (pruning, for instance, moves them to the end)."""
    first_modules = dict(first.named_modules())
    for path, module in other.named_modules():
        first_module = first_modules.get(path, module)
        for store, first_store in ((module._parameters, first_module._parameters), (module._buffers, first_module._buffers)):
            if store.keys() == first_store.keys():
                for name in list(first_store):
                    store[name] = store.pop(name)


def plain_state(model: nn.Module, plain: Callable[[nn.Module], nn.Module] = plain_copy) -> dict[str, Tensor]:
    """Return the floating-point tensors of a plain copy, to be read only.

    These are the model's own tensors if nothing is parametrized and no class defines how it is copied: copies of Keras networks,
    for instance, have other names.
    """
    return floating_state(plain(model) if parametrized_names(model) or _defines_copies(model) else model)


def _defines_copies(model: nn.Module) -> bool:
    """Return whether a class among the modules defines how it is copied."""
    kinds = {type(module) for module in model.modules()}
    return any(hasattr(k, "__deepcopy__") or k.__reduce__ is not object.__reduce__ for k in kinds)


def rebuild_flat_weights(model: nn.Module) -> None:
    """Rebuild the second list of weights that recurrent layers hold, and their one block of memory for CUDA."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
            module.flatten_parameters()


@torch.no_grad()
def write_back(
    template: nn.Module,
    state: State,
    *,
    sized: nn.Module,
    exact: bool = False,
    reuse_sized: bool = False,
    template_state: State | None = None,
) -> nn.Module:
    """Return a copy of `template` (wrapping, hooks, ``requires_grad``, ties, parametrizations) that holds `state`.

    Parameters
    ----------
    template : Module
        The first parent, unwrapped.
    state : mapping of str to Tensor
        Values by name, as in `floating_state` of a plain copy.
    sized : Module
        A plain copy with the right shapes.
    exact : bool
        Whether spectral norms can hold values of a norm above 1; otherwise these are scaled to norm 1; see `write_parametrized`.
    reuse_sized : bool
        Whether `sized` itself may become the result, instead of a copy.
    template_state : mapping of str to Tensor, optional
        The `plain_state` of the template, if known; its shapes and dtypes are used.
    """
    parametrized = parametrized_names(template)
    template_state = plain_state(template) if template_state is None else template_state
    same = {n: t.shape for n, t in template_state.items()} == {n: t.shape for n, t in floating_state(sized).items()}
    fixed_size = parametrized - pruned_names(template)
    if not same and fixed_size:
        raise WidthError(
            f"Parametrized tensors must keep their sizes. Got other sizes for {sorted(fixed_size)}. Remove the parametrizations "
            "first."
        )
    result = plain_copy(template, plain=False) if same else sized if reuse_sized else plain_copy(sized)
    if not same:
        for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
            tensor.data = tensor.data.to(template_state[name].dtype if name in template_state else tensor.dtype)
        prune_like(result, template)
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        module = result.get_submodule(owner)
        if name in parametrized:
            write_parametrized(module, leaf, value, name, exact=exact)
        else:
            target = getattr(module, leaf)
            target.copy_(value)
    rebuild_flat_weights(result)
    return result
