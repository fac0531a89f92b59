"""Parameters whose values a network also reads in another way, so that no copy of it follows: these networks are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..exceptions import DiscoveryError

__all__ = ["refuse_constants", "refuse_views"]


def refuse_views(model: nn.Module) -> None:
    """Raise a DiscoveryError if modules hold a parameter's memory as another tensor, array or parameter."""
    viewed_memory, first_names = _viewed_memory(model), dict[Any, str]()
    dense = {n: p for n, p in model.named_parameters() if p.layout == torch.strided and p.numel()}
    names = [n for n, p in dense.items() if p.untyped_storage().data_ptr() in viewed_memory]
    if names:
        raise DiscoveryError(
            f"Modules must not hold views of parameters as attributes, which no copy of the network follows. Got views (.data, "
            f".detach(), .numpy()) of {names[:8]} in {type(model).__name__}. Hold the parameters themselves, and make views in "
            "forward."
        )
    for name, p in dense.items():
        first = first_names.setdefault((p.data_ptr(), tuple(p.shape), p.stride()), name)
        if first != name:
            raise DiscoveryError(
                f"Parameters must not share memory, which no copy of the network follows. Got {first!r} and {name!r} of "
                f"{type(model).__name__}, tied by .data. Tie the parameters themselves: b.weight = a.weight."
            )


def refuse_constants(plain: nn.Module, program: Any, missing: Sequence[str]) -> None:
    """Raise a DiscoveryError if a trace holds the values of parameters that it does not read by name.

    Parameters
    ----------
    plain : Module
    program : ExportedProgram
    missing : list of str
        Parameters that the trace does not read.
    """
    unnamed = {spec.target for spec in program.graph_signature.input_specs}  # others are parameters, recognised by their memory
    tensors = [c for name, c in program.constants.items() if name in unnamed and isinstance(c, Tensor)]
    constants = [c for c in tensors if c.is_floating_point() and c.numel() > 1]

    def is_read(parameter: Tensor) -> bool:
        candidates = [
            c for c in constants if (c.shape, c.dtype, c.device) == (parameter.shape, parameter.dtype, parameter.device)
        ]
        return any(torch.equal(c, parameter) for c in candidates)

    for name in missing:
        if is_read(plain.get_parameter(name)):
            raise DiscoveryError(
                f"A forward must read parameters themselves, since no copy of the network follows other tensors. Got {name!r} of "
                f"{type(plain).__name__}, read through a closure or a copy made outside forward. Let forward read self.weight."
            )
    parts = set(plain.modules())
    for path, module in plain.named_modules():
        for attribute, value in vars(module).items() if constants else ():
            others = [m for m in pytree.tree_leaves(value) if isinstance(m, nn.Module) and m not in parts]
            if any(is_read(p) for m in others for p in m.parameters()):
                raise DiscoveryError(
                    f"Layers must be submodules. Got layers of {type(plain).__name__} in "
                    f"{f'{path}.{attribute}'.lstrip('.')!r}, a plain list or dict. Use nn.ModuleList or nn.ModuleDict."
                )


def _viewed_memory(model: nn.Module) -> set[int]:
    """Return the memory of tensors and arrays that modules hold as attributes, except their parameters and buffers."""
    registered = {id(t) for t in [*model.parameters(), *model.buffers()]}
    values = _attribute_values(model)
    tensors = [t for t in values if isinstance(t, Tensor) and id(t) not in registered and t.layout == torch.strided]
    arrays = [a for a in values if isinstance(a, np.ndarray)]
    return {*(t.untyped_storage().data_ptr() for t in tensors), *(a.__array_interface__["data"][0] for a in arrays)} - {0}


def _attribute_values(model: nn.Module) -> list[Any]:
    """Return the values of attributes of modules, also in lists and dicts, except those that hooks recompute."""
    computed = ("_parameters", "_buffers", "_modules", "_flat_weights")
    attributes = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in computed and not any(f"{name}_{kind}" in module._parameters for kind in ("orig", "v"))
    ]
    return pytree.tree_leaves(attributes)
