"""Numbers that a network reads past its parameters, so that no copy of it follows: refused by name."""

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
    """Raise a DiscoveryError where modules hold a parameter's numbers as another tensor or array, or as another parameter."""
    viewed, places = _viewed_memory(model), dict[Any, str]()
    dense = {n: p for n, p in model.named_parameters() if p.layout == torch.strided and p.numel()}
    names = [n for n, p in dense.items() if p.untyped_storage().data_ptr() in viewed]
    if names:
        raise DiscoveryError(
            f"{type(model).__name__} holds the numbers of {names[:8]} also as other tensors or arrays (.data, .detach(), "
            ".numpy()), which no copy of the network follows. Let it hold the parameters themselves, and make views in forward."
        )
    for name, p in dense.items():
        first = places.setdefault((p.data_ptr(), tuple(p.shape), p.stride()), name)
        if first != name:
            raise DiscoveryError(
                f"Parameters {first!r} and {name!r} of {type(model).__name__} share their memory but are two (tied by .data), "
                "which no copy of the network follows. Tie the parameters themselves: b.weight = a.weight."
            )


def refuse_constants(plain: nn.Module, program: Any, missing: Sequence[str]) -> None:
    """Raise a DiscoveryError where a trace holds the numbers of parameters that it does not read by name.

    Parameters
    ----------
    plain : Module
    program : ExportedProgram
    missing : list of str
        Parameters that the trace does not read.
    """
    unnamed = {spec.target for spec in program.graph_signature.input_specs}  # others are parameters, known by their memory
    held = [c for name, c in program.constants.items() if name in unnamed and isinstance(c, Tensor)]
    constants = [c for c in held if c.is_floating_point() and c.numel() > 1]

    def is_read(parameter: Tensor) -> bool:
        alike = [c for c in constants if (c.shape, c.dtype, c.device) == (parameter.shape, parameter.dtype, parameter.device)]
        return any(torch.equal(c, parameter) for c in alike)

    for name in missing:
        if is_read(plain.get_parameter(name)):
            raise DiscoveryError(
                f"The forward of {type(plain).__name__} reads {name!r} through a closure or a copy made outside forward, which "
                "no copy of the network follows. Let forward read the parameter itself: self.weight."
            )
    parts = set(plain.modules())
    for path, module in plain.named_modules():
        for attribute, value in vars(module).items() if constants else ():
            others = [m for m in pytree.tree_leaves(value) if isinstance(m, nn.Module) and m not in parts]
            if any(is_read(p) for m in others for p in m.parameters()):
                raise DiscoveryError(
                    f"The forward of {type(plain).__name__} reads layers in {f'{path}.{attribute}'.lstrip('.')!r} that are not "
                    "its parts, since they stand in a plain list or dict: use nn.ModuleList or nn.ModuleDict."
                )


def _viewed_memory(model: nn.Module) -> set[int]:
    """Memory of the tensors and arrays that modules hold as attributes, other than their parameters and buffers themselves."""
    own = {id(t) for t in [*model.parameters(), *model.buffers()]}
    held = _held(model)
    tensors = [t for t in held if isinstance(t, Tensor) and id(t) not in own and t.layout == torch.strided]
    arrays = [a for a in held if isinstance(a, np.ndarray)]
    return {*(t.untyped_storage().data_ptr() for t in tensors), *(a.__array_interface__["data"][0] for a in arrays)} - {0}


def _held(model: nn.Module) -> list[Any]:
    """What modules hold in their attributes, and in lists and dicts there, but for what hooks compute anew."""
    computed = ("_parameters", "_buffers", "_modules", "_flat_weights")
    attributes = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in computed and not any(f"{name}_{kind}" in module._parameters for kind in ("orig", "v"))
    ]
    return pytree.tree_leaves(attributes)
