"""Networks that are built from a configuration, as those of transformers: it follows the widths of the fused network.

Which field says which width is found out by building the network from changed configurations and looking at its shapes; no
field and no architecture is known by name.
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

_TRIES = 40  # configurations from which a network is built and run
_SEVERAL = 4096  # configurations whose shapes are looked at, at most
_TOLERANCE = 1e-6

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Field:
    """A whole number in a configuration, in one within it, or in a list there; or a field that is None."""

    path: tuple[Any, ...]
    value: int | None

    def set(self, config: Any, value: int) -> None:
        """Set the field of a configuration."""
        *inner, last = self.path
        if isinstance(last, int):  # an entry of a list, or of a tuple
            owner = _follow(config, inner[:-1])
            held = getattr(owner, inner[-1])
            setattr(owner, inner[-1], type(held)([*held[:last], value, *held[last + 1 :]]))
        else:
            setattr(_follow(config, inner), last, value)


def follow_widths(model: nn.Module, template: nn.Module, inputs: Sequence[Any]) -> None:
    """Bring the configurations in a network to its widths; warn where that can't be.

    Parameters
    ----------
    model : Module
        The fused network, whose configurations are changed.
    template : Module
        The network that it is a copy of, whose configurations are right.
    inputs : tuple
        What it is run on.
    """
    done: list[str] = []
    for path, module in template.named_modules():
        own = model.get_submodule(path)
        if any(path.startswith(f"{d}.".lstrip(".")) for d in done) or not _is_configured(module) or not _is_configured(own):
            continue
        done.append(path)
        if _shapes(module) != _shapes(own) and not _follow_one(model, path, module, inputs):
            warnings.warn(
                f"The fused {type(module).__name__}{f' {path!r}' if path else ''} has other widths than its configuration says, "
                "and no fields were found that say them, so that save_pretrained and from_pretrained will not give it back. Save "
                "the fusion (fusion.save), or the whole network (torch.save(model, path)).",
                FusionWarning,
                stacklevel=5,  # at the call of fit
            )


def _is_configured(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "to_dict") and hasattr(module, "save_pretrained")


def _follow_one(model: nn.Module, path: str, template: nn.Module, inputs: Sequence[Any]) -> bool:
    wanted, module = _shapes(model.get_submodule(path)), model.get_submodule(path)
    fitting = _fitting(type(template), template.config, _shapes(template), wanted)
    calls = _calls(model, path, inputs)
    for values in itertools.islice(fitting, _TRIES):
        config = _changed(template.config, values)
        if calls is not None and _gives(type(template), config, calls):
            for held in {id(m.config): m.config for m in module.modules() if hasattr(m, "config")}.values():
                if type(held) is type(config):
                    for field, value in values.items():
                        field.set(held, value)
            return True
    return False


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}


def _fields(config: Any, path: tuple[Any, ...] = ()) -> Iterator[Field]:
    """Whole numbers and empty fields of a configuration, but numbers of tokens."""
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
    twin = copy.deepcopy(config)
    for field, value in values.items():
        field.set(twin, value)
    return twin


def _built(kind: Any, config: Any, values: Mapping[Field, int]) -> Shapes | None:
    """The shapes of a network of a changed configuration; None where there is no such network."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return _shapes(kind(_changed(config, values)))
    except Exception:  # a configuration may refuse anything
        return None


def _fitting(kind: Any, config: Any, own: Shapes, wanted: Shapes) -> Iterator[dict[Field, int]]:
    """Changes of a configuration that give the shapes wanted, few changes first."""
    changed = {
        (name, axis): (a, b)
        for name in own
        for axis, (a, b) in enumerate(zip(own[name], wanted.get(name, ()), strict=False))
        if a != b
    }
    if own.keys() != wanted.keys() or _built(kind, config, {}) != own:
        return
    choices: dict[Field, list[int | None]] = {}
    for field in _fields(config):
        moved = _moved(kind, config, own, field)
        if moved is None:
            continue
        ratios = {changed[place] for place in moved if place in changed}
        if field.value is None:
            values = {wanted[name][axis] for name, axis in moved}
        elif moved:
            values = {field.value * b // a for a, b in ratios if field.value * b % a == 0}
        else:  # a number of heads, say, is in no shape
            values = {field.value * b // a for a, b in changed.values() if field.value > 1 and field.value * b % a == 0}
        if values:
            choices[field] = [None, *sorted(values - {field.value})]
    every = itertools.islice(itertools.product(*choices.values()), _SEVERAL)
    for taken in sorted(every, key=lambda values: sum(v is not None for v in values)):
        change = {f: v for f, v in zip(choices, taken, strict=True) if v is not None}
        if _built(kind, config, change) == wanted:
            yield change


def _moved(kind: Any, config: Any, own: Shapes, field: Field) -> set[tuple[str, int]] | None:
    """The axes whose sizes a field changes; None if it changes more, or can't be changed."""
    for factor in (2, 3):
        found = _built(kind, config, {field: factor * (field.value or 1)})
        if found is not None:
            break
    if found is None or found.keys() != own.keys() or any(len(found[n]) != len(s) for n, s in own.items()):
        return None
    return {(n, axis) for n, s in own.items() for axis, size in enumerate(s) if found[n][axis] != size}


def _calls(model: nn.Module, path: str, inputs: Sequence[Any]) -> tuple[nn.Module, Any, Any, list[Tensor]] | None:
    """A part of a network with random values, what it is called with, and what it computes of that."""
    twin = plain_copy(model, plain=False).cpu().double()
    generator = torch.Generator().manual_seed(0)
    for tensor in floating_state(twin).values():
        if tensor.dim() > 1 and bool(torch.isfinite(tensor).all()):  # weights at their start hardly tell heads apart
            fan_in = max(tensor[0].numel(), 1)
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1.5 / fan_in**0.5)
    seen: list[Any] = []
    module = twin.get_submodule(path)
    handle = module.register_forward_hook(lambda m, a, k, out: seen.append((a, k, out)), with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            twin(*pytree.tree_map(_double, tuple(inputs)))
    except Exception:  # code of single precision
        return None
    finally:
        handle.remove()
    return (module, *seen[0][:2], _leaves(seen[0][2])) if seen else None


def _double(leaf: Any) -> Any:
    return leaf.cpu().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _leaves(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, Mapping) else [output]
    return [leaf for leaf in pytree.tree_leaves(list(values)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@torch.no_grad()
def _gives(kind: Any, config: Any, calls: tuple[nn.Module, Any, Any, list[Tensor]]) -> bool:
    """Whether the network of a configuration computes the same of the same values."""
    module, arguments, named, expected = calls
    try:
        with torch.random.fork_rng(devices=[]):
            twin = kind(config).double().eval()
            twin.load_state_dict(module.state_dict())
            found = _leaves(twin(*arguments, **named))
    except Exception:
        return False
    pairs = list(zip(found, expected, strict=False))
    same = all(a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * (1 + b.abs().max())) for a, b in pairs)
    return same and len(found) == len(expected)
