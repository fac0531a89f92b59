"""Example inputs: as positional arguments, guessed, and for messages."""

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
from ..network.types import Inputs
from .modules import device_of

__all__ = ["as_inputs", "cast_inputs", "guess_inputs", "shapes_of", "why_guess_failed"]


def as_inputs(example_inputs: Any, model: nn.Module) -> Inputs:
    """Return example inputs as the tuple of positional arguments of ``model(*inputs)``.

    A mapping holds keyword arguments (as a tokenizer returns them): they are ordered by the signature of forward, and missing
    arguments before the last of them take their defaults.

    Raises
    ------
    DiscoveryError
        If forward has no such arguments, needs others, or takes one by keyword only; or if inputs are not tensors.
    """
    if isinstance(example_inputs, Mapping):
        arguments = _positional({name: _tensor(value, name) for name, value in example_inputs.items()}, model)
    else:
        arguments = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    if arguments and all(isinstance(x, int) and not isinstance(x, bool) for x in arguments):
        raise DiscoveryError(f"example_inputs must be tensors. Got the shape {arguments}. Give (torch.randn{arguments},).")
    return tuple(_tensor(x, str(k)) if isinstance(x, np.ndarray) else x for k, x in enumerate(arguments))


def _tensor(value: Any, name: str) -> Any:
    """Convert arrays, and lists of numbers as a tokenizer returns them, to tensors."""
    if isinstance(value, Tensor) or not isinstance(value, (np.ndarray, list)):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DiscoveryError(
            f"example_inputs must be tensors of real numbers. Got {name!r}, which can't be converted to a tensor "
            f'({str(error).splitlines()[0][:80]}). Call a tokenizer with return_tensors="pt" and padding=True.'
        ) from error


def _positional(keywords: Mapping[str, Any], model: nn.Module) -> Inputs:
    """Return keyword arguments as positional arguments."""
    signature, kind = inspect.signature(model.forward), type(model).__name__
    accepted = {n: p for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)}
    unknown = [n for n in keywords if n not in accepted]
    missing = [n for n, p in accepted.items() if n not in keywords and p.default is p.empty]
    keyword_only = [
        n for n in unknown if n in signature.parameters and signature.parameters[n].kind is inspect.Parameter.KEYWORD_ONLY
    ]
    if keyword_only:
        raise DiscoveryError(
            f"example_inputs must be positional arguments. Got {keyword_only}, which forward of {kind} takes by keyword only. "
            "Leave them out, or wrap the network in a module whose forward passes them on."
        )
    if unknown or missing:
        wrong = f"has no arguments {unknown}" if unknown else f"needs {missing} too"
        raise DiscoveryError(
            f"A mapping of example_inputs must contain the arguments of forward. Got {list(keywords)}, but forward of {kind} "
            f"{wrong}; it takes {list(accepted)}. For one argument that is a mapping itself, give a tuple: "
            "example_inputs=(mapping,)."
        )
    last = max((k for k, n in enumerate(accepted) if n in keywords), default=-1)
    return tuple(keywords.get(n, p.default) for n, p in list(accepted.items())[: last + 1])


def guess_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """Guess inputs for a model that begins with a linear, recurrent or embedding layer.

    Raises
    ------
    DiscoveryError
        If the first layer with parameters is of another kind; the message shows the required call.
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
        kind, shown_name = type(layer).__name__, f" {name!r}" if name else ""
        start = f"begins with the {kind}{shown_name}" if name else "begins with its own parameters"
        raise DiscoveryError(f"Can't guess inputs for {type(model).__name__}, which {start}. Give some: {_call(model)}.")
    raise DiscoveryError(f"{type(model).__name__} has no parameters, so there is nothing to fuse.")


def why_guess_failed(model: nn.Module, inputs: Sequence[Any], error: DiscoveryError) -> DiscoveryError:
    """Return the error of a discovery on guessed inputs, with this fact in its message."""
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
    return DiscoveryError(f"{error} This occurred with {guess} and may differ with yours: WassersteinFusion(example_inputs=...).")


def _call(model: nn.Module) -> str:
    """Return the option with inputs for the first layer whose inputs have channels, features or tokens, for messages."""
    inputs = "(tensor, ...)"
    for layer in model.modules():
        if isinstance(layer, _ConvNd):
            inputs = f"(torch.randn(2, {layer.in_channels}, {('L', 'H, W', 'D, H, W')[len(layer.kernel_size) - 1]}),)"
        elif isinstance(layer, _NormBase):
            sizes = {"1d": "", "2d": ", H, W", "3d": ", D, H, W"}.get(type(layer).__name__[-2:], ", ...")
            inputs = f"(torch.randn(2, {layer.num_features}{sizes}),)"
        elif isinstance(layer, nn.Linear):
            inputs = f"(torch.randn(2, ..., {layer.in_features}),)"
        elif isinstance(layer, nn.LayerNorm):
            inputs = f"(torch.randn(2, ..., {', '.join(map(str, layer.normalized_shape))}),)"
        elif isinstance(layer, nn.RNNBase):
            inputs = f"(torch.randn({'2, T' if layer.batch_first else 'T, 2'}, {layer.input_size}),)"
        elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            inputs = f"(torch.randint({layer.num_embeddings}, (2, T)),)"
        else:
            continue
        break
    return f"WassersteinFusion(example_inputs={inputs})"


def cast_inputs(inputs: Sequence[Any], model: nn.Module) -> Inputs:
    """Return inputs on the device of a model, floating-point ones in the dtype of its floating-point parameters."""
    device = device_of(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def cast(leaf: Any) -> Any:
        return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(cast, tuple(inputs))


def shapes_of(inputs: Any) -> str:
    """Return inputs as text, each tensor by its shape, and by its dtype if it is not floating point, without values."""
    if isinstance(inputs, (Tensor, np.ndarray)):
        dtype = str(inputs.dtype).removeprefix("torch.")
        return f"{tuple(inputs.shape)}" if "float" in dtype else f"{tuple(inputs.shape)} {dtype}"
    if isinstance(inputs, Mapping):
        return f"{{{', '.join(f'{k!r}: {shapes_of(v)}' for k, v in inputs.items())}}}"
    if isinstance(inputs, (list, tuple)):
        items = ", ".join(map(shapes_of, inputs))
        return f"[{items}]" if isinstance(inputs, list) else f"({items}{',' if len(inputs) == 1 else ''})"
    is_plain = inputs is None or isinstance(inputs, (bool, int, float))
    return repr(inputs) if is_plain else type(inputs).__name__
