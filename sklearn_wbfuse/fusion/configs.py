"""Configurations of networks, such as those of transformers, that have to match the widths of the fused network.

The fields that determine a width are found by building the network from changed configurations and comparing shapes; no field
and no architecture is known by name.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..discovery import floating_state, plain_copy
from ..exceptions import FusionWarning

__all__ = ["follow_widths"]

_TRIES = 40  # largest number of configurations from which a network is built and run
_SEVERAL = 4096  # largest number of configurations whose shapes are compared
_TOLERANCE = 1e-6

Shapes = dict[str, tuple[int, ...]]
"""The shapes of the tensors of a network by name."""


@dataclass(frozen=True)
class Field:
    """A whole number in a configuration, in a nested one, or in a list there; or a field that is None."""

    path: tuple[Any, ...]
    value: int | None

    def set(self, config: Any, value: int) -> None:
        """Set the field of a configuration."""
        *inner, last = self.path
        if isinstance(last, int):  # an entry of a list, or of a tuple
            owner = _follow(config, inner[:-1])
            entries = getattr(owner, inner[-1])
            setattr(owner, inner[-1], type(entries)([*entries[:last], value, *entries[last + 1 :]]))
        else:
            setattr(_follow(config, inner), last, value)


def follow_widths(model: nn.Module, template: nn.Module, inputs: Sequence[Any]) -> None:
    """Adjust the configurations in a network to its widths; warn if that is impossible.

    Parameters
    ----------
    model : Module
        The fused network, whose configurations are modified.
    template : Module
        The network of which it is a copy, whose configurations are right.
    inputs : tuple
        Inputs of the network.
    """
    done: list[str] = []
    for path, module in template.named_modules():
        fused = model.get_submodule(path)
        if any(path.startswith(f"{d}.".lstrip(".")) for d in done) or not _is_configured(module) or not _is_configured(fused):
            continue
        done.append(path)
        if _shapes(module) != _shapes(fused) and not _follow_one(model, path, module, inputs):
            warnings.warn(
                f"The fused {type(module).__name__}{f' {path!r}' if path else ''} has other widths than its configuration, and "
                "no fields were found that determine them, so that save_pretrained and from_pretrained will not restore it. Save "
                "the fusion (fusion.save), or the whole network (torch.save(model, path)).",
                FusionWarning,
                stacklevel=5,  # at the call of fit
            )


def _is_configured(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "to_dict") and hasattr(module, "save_pretrained")


def _follow_one(model: nn.Module, path: str, template: nn.Module, inputs: Sequence[Any]) -> bool:
    module = model.get_submodule(path)
    candidates = _candidates(type(template), template.config, _shapes(template), _shapes(module))
    call = _recorded_call(model, path, inputs)
    for values in itertools.islice(candidates, _TRIES):
        config = _changed(template.config, values)
        if call is not None and _computes_the_same(type(template), config, call):
            for module_config in {id(m.config): m.config for m in module.modules() if hasattr(m, "config")}.values():
                if type(module_config) is type(config):
                    for field, value in values.items():
                        field.set(module_config, value)
            return True
    return False


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}


def _fields(config: Any, path: tuple[Any, ...] = ()) -> Iterator[Field]:
    """Yield the whole numbers and empty fields of a configuration, except indices of tokens."""
    for name, value in vars(config).items():
        if name.startswith("_") or name.endswith("_id"):
            continue
        if hasattr(value, "to_dict"):
            yield from _fields(value, (*path, name))
        elif value is None or (type(value) is int and value > 0):
            yield Field((*path, name), value)
        elif isinstance(value, (list, tuple)) and all(type(v) is int and v > 0 for v in value):
            yield from (Field((*path, name, k), v) for k, v in enumerate(value))


def _follow(config: Any, path: Sequence[str]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _changed(config: Any, values: Mapping[Field, int]) -> Any:
    changed = copy.deepcopy(config)
    for field, value in values.items():
        field.set(changed, value)
    return changed


def _built(kind: Any, config: Any, values: Mapping[Field, int]) -> Shapes | None:
    """Return the shapes of the network of a changed configuration; None if it cannot be built."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return _shapes(kind(_changed(config, values)))
    except Exception:  # a configuration may refuse anything
        return None


def _candidates(kind: Any, config: Any, shapes: Shapes, target: Shapes) -> Iterator[dict[Field, int]]:
    """Yield changes of a configuration that result in the target shapes, few changes first."""
    changed = {
        (name, axis): (a, b)
        for name in shapes
        for axis, (a, b) in enumerate(zip(shapes[name], target.get(name, ()), strict=False))
        if a != b
    }
    if shapes.keys() != target.keys() or _built(kind, config, {}) != shapes:
        return
    choices: dict[Field, list[int | None]] = {}
    for field in _fields(config):
        axes = _axes_of(kind, config, shapes, field)
        if axes is None:
            continue
        ratios = {changed[axis] for axis in axes if axis in changed}
        if field.value is None:
            values = {target[name][axis] for name, axis in axes}
        elif axes:
            values = {field.value * b // a for a, b in ratios if field.value * b % a == 0}
        else:  # for instance, the number of heads is in no shape
            values = {field.value * b // a for a, b in changed.values() if field.value > 1 and field.value * b % a == 0}
        if values:
            choices[field] = [None, *sorted(values - {field.value})]
    every = itertools.islice(itertools.product(*choices.values()), _SEVERAL)
    for chosen in sorted(every, key=lambda values: sum(v is not None for v in values)):
        change = {f: v for f, v in zip(choices, chosen, strict=True) if v is not None}
        if _built(kind, config, change) == target:
            yield change


def _axes_of(kind: Any, config: Any, shapes: Shapes, field: Field) -> set[tuple[str, int]] | None:
    """Return the axes whose sizes a field changes; None if it changes more than sizes, or cannot be changed."""
    for factor in (2, 3):
        changed = _built(kind, config, {field: factor * (field.value or 1)})
        if changed is not None:
            break
    if changed is None or changed.keys() != shapes.keys() or any(len(changed[n]) != len(s) for n, s in shapes.items()):
        return None
    return {(n, axis) for n, s in shapes.items() for axis, size in enumerate(s) if changed[n][axis] != size}


def _recorded_call(model: nn.Module, path: str, inputs: Sequence[Any]) -> tuple[nn.Module, Any, Any, list[Tensor]] | None:
    """Return a part of a network with random values, the arguments with which the network calls it, and its outputs."""
    randomised = plain_copy(model, plain=False).cpu().double()
    generator = torch.Generator().manual_seed(0)
    for tensor in floating_state(randomised).values():
        if tensor.dim() > 1 and bool(torch.isfinite(tensor).all()):  # initial weights hardly distinguish heads
            fan_in = max(tensor[0].numel(), 1)
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1.5 / fan_in**0.5)
    calls: list[Any] = []
    module = randomised.get_submodule(path)
    handle = module.register_forward_hook(lambda m, a, k, out: calls.append((a, k, out)), with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            randomised(*pytree.tree_map(_double, tuple(inputs)))
    except Exception:  # the code may need single precision
        return None
    finally:
        handle.remove()
    return (module, *calls[0][:2], _leaves(calls[0][2])) if calls else None


def _double(leaf: Any) -> Any:
    return leaf.cpu().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _leaves(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, Mapping) else [output]
    return [leaf for leaf in pytree.tree_leaves(list(values)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@torch.no_grad()
def _computes_the_same(kind: Any, config: Any, call: tuple[nn.Module, Any, Any, list[Tensor]]) -> bool:
    """Return whether the network of a configuration computes the same outputs with the same tensors and arguments."""
    module, arguments, named, expected = call
    try:
        with torch.random.fork_rng(devices=[]):
            network = kind(config).double().eval()
            network.load_state_dict(module.state_dict())
            outputs = _leaves(network(*arguments, **named))
    except Exception:
        return False
    pairs = list(zip(outputs, expected, strict=False))
    same = all(a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * (1 + b.abs().max())) for a, b in pairs)
    return same and len(outputs) == len(expected)
