"""Outputs of a network: computed, compared, and whether code lowers their precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..network.types import Inputs
from .isolation import untouched_modules

__all__ = ["PrecisionMode", "are_close", "are_finite", "outputs_of"]


class PrecisionMode(TorchDispatchMode):
    """Detects whether code lowers the precision of tensors."""

    is_lowered = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.is_lowered and _has(out, torch.float32, torch.bfloat16, torch.float16):
            self.is_lowered = _has((args, kwargs), torch.float64)
        return out


def _has(tree: Any, *dtypes: torch.dtype) -> bool:
    """Return whether a tree contains tensors of some dtypes."""
    return any(isinstance(t, Tensor) and t.dtype in dtypes and t.dim() > 0 for t in pytree.tree_leaves(tree))


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model, and return the tensors that it returns."""
    with torch.random.fork_rng(devices=[]), untouched_modules(model):
        out = model(*pytree.tree_map(_clone, inputs))
    return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def are_finite(outputs: Sequence[Tensor]) -> bool:
    """Return whether all floating-point outputs are finite."""
    return all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point())


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def are_close(a: Tensor, b: Tensor, tol: float) -> bool:
    """Return whether two outputs agree."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    return bool((a - b).abs().max() <= tol * (1 + b.abs().max())) if a.numel() else True
