"""Example inputs: as positional arguments, guessed, and as errors show them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from ..exceptions import DiscoveryError
from .modules import device_of

__all__ = ["as_inputs", "cast_inputs", "guess_inputs", "shapes_of", "why_guess_failed"]


def as_inputs(example_inputs: Any, model: nn.Module) -> tuple[Any, ...]:
    """Example inputs as the tuple of positional arguments of ``model(*inputs)``.

    A mapping holds keyword arguments (what a tokenizer returns): they take their places in the signature of forward, and the
    arguments before the last of them that are not given take their defaults.

    Raises
    ------
    DiscoveryError
        If forward has no such arguments, needs others, or takes one by its name only; or if there is no tensor.
    """
    if isinstance(example_inputs, Mapping):
        given = _positional({name: _tensor(value, name) for name, value in example_inputs.items()}, model)
    else:
        given = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    if given and all(isinstance(x, int) and not isinstance(x, bool) for x in given):
        raise DiscoveryError(f"example_inputs must be tensors, not a shape: example_inputs=(torch.randn{given},). Got {given}.")
    return tuple(_tensor(x, str(k)) if isinstance(x, np.ndarray) else x for k, x in enumerate(given))


def _tensor(value: Any, name: str) -> Any:
    """Arrays, and lists of numbers as a tokenizer gives them, as tensors."""
    if isinstance(value, Tensor) or not isinstance(value, (np.ndarray, list)):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DiscoveryError(
            f"example_inputs: {name!r} can't be made a tensor ({str(error).splitlines()[0][:80]}); give tensors of real numbers, "
            'of a tokenizer with return_tensors="pt" and padding=True.'
        ) from error


def _positional(given: Mapping[str, Any], model: nn.Module) -> tuple[Any, ...]:
    signature, kind = inspect.signature(model.forward), type(model).__name__
    takes = {n: p for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}
    unknown = [n for n in given if n not in takes]
    missing = [n for n, p in takes.items() if n not in given and p.default is p.empty]
    by_name = [n for n in unknown if n in signature.parameters and signature.parameters[n].kind is inspect.Parameter.KEYWORD_ONLY]
    if by_name:
        raise DiscoveryError(
            f"example_inputs name {by_name}, which forward of {kind} takes by name only, and networks are traced with positional "
            "arguments; leave them out, or wrap the network in a module whose forward passes them on."
        )
    if unknown or missing:
        wrong = f"has no arguments {unknown}" if unknown else f"needs {missing} too"
        raise DiscoveryError(
            f"example_inputs are a mapping of keyword arguments, {list(given)}, but forward of {kind} {wrong}; it takes "
            f"{list(takes)}. For one argument that is a mapping itself give a tuple, example_inputs=(mapping,)."
        )
    last = max((k for k, n in enumerate(takes) if n in given), default=-1)
    return tuple(given.get(n, p.default) for n, p in list(takes.items())[: last + 1])


def guess_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """Inputs for a model that begins with a linear, recurrent or embedding layer.

    Raises
    ------
    DiscoveryError
        If the first layer with parameters is any other: the message shows the call that is needed.
    """
    generator = torch.Generator().manual_seed(0)
    for name, layer in model.named_modules():
        if next(layer.parameters(recurse=False), None) is None:
            continue
        if isinstance(layer, nn.Linear):
            return (torch.randn(2, layer.in_features, generator=generator),)
        if isinstance(layer, nn.RNNBase):
            shape = (2, 3) if layer.batch_first else (3, 2)
            return (torch.randn(*shape, layer.input_size, generator=generator),)
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            return (torch.randint(0, layer.num_embeddings, (2, 5), generator=generator),)
        kind, where = type(layer).__name__, f" {name!r}" if name else ""
        begins = f"begins with the {kind}{where}" if name else "begins with parameters of its own"
        raise DiscoveryError(f"Can't guess inputs for {type(model).__name__}, which {begins}; give some: {_call(model)}.")
    raise DiscoveryError(f"{type(model).__name__} has no parameters, so there is nothing to fuse.")


def why_guess_failed(model: nn.Module, inputs: Sequence[Any], error: DiscoveryError) -> DiscoveryError:
    """The error of a discovery on inputs that were guessed, which says so."""
    first = next(name for name, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None)
    guess = f"inputs of shapes {shapes_of(inputs)}, a guess from the first layer{f' {first!r}' if first else ''},"
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as cause:
        why = (str(cause).strip().splitlines() or [""])[0][:300]
        return DiscoveryError(
            f"{type(model).__name__} does not run on {guess} ({type(cause).__name__}: {why}). Give inputs that it takes: "
            f"{_call(model)}."
        )
    return DiscoveryError(f"{error} This was seen with {guess} and may differ with yours: WassersteinFusion(example_inputs=...).")


def _call(model: nn.Module) -> str:
    """The option with inputs for the first layer whose inputs have channels, features or tokens."""
    shown = "(tensor, ...)"
    for layer in model.modules():
        if isinstance(layer, _ConvNd):
            shown = f"(torch.randn(2, {layer.in_channels}, {('L', 'H, W', 'D, H, W')[len(layer.kernel_size) - 1]}),)"
        elif isinstance(layer, _NormBase):
            sizes = {"1d": "", "2d": ", H, W", "3d": ", D, H, W"}.get(type(layer).__name__[-2:], ", ...")
            shown = f"(torch.randn(2, {layer.num_features}{sizes}),)"
        elif isinstance(layer, nn.Linear):
            shown = f"(torch.randn(2, ..., {layer.in_features}),)"
        elif isinstance(layer, nn.LayerNorm):
            shown = f"(torch.randn(2, ..., {', '.join(map(str, layer.normalized_shape))}),)"
        elif isinstance(layer, nn.RNNBase):
            shown = f"(torch.randn({'2, T' if layer.batch_first else 'T, 2'}, {layer.input_size}),)"
        elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            shown = f"(torch.randint({layer.num_embeddings}, (2, T)),)"
        else:
            continue
        break
    return f"WassersteinFusion(example_inputs={shown})"


def cast_inputs(inputs: Sequence[Any], model: nn.Module) -> tuple[Any, ...]:
    """Inputs on the device of a model, floating ones in the dtype of its floating parameters."""
    device = device_of(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def ready(leaf: Any) -> Any:
        return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(ready, tuple(inputs))


def shapes_of(inputs: Any) -> str:
    """Inputs with the shape of each tensor in its place, and its dtype where it does not float; nothing of their values."""
    if isinstance(inputs, (Tensor, np.ndarray)):
        dtype = str(inputs.dtype).removeprefix("torch.")
        return f"{tuple(inputs.shape)}" if "float" in dtype else f"{tuple(inputs.shape)} {dtype}"
    if isinstance(inputs, Mapping):
        return f"{{{', '.join(f'{k!r}: {shapes_of(v)}' for k, v in inputs.items())}}}"
    if isinstance(inputs, (list, tuple)):
        inside = ", ".join(map(shapes_of, inputs))
        return f"[{inside}]" if isinstance(inputs, list) else f"({inside}{',' if len(inputs) == 1 else ''})"
    plain = inputs is None or isinstance(inputs, (bool, int, float))
    return repr(inputs) if plain else type(inputs).__name__
