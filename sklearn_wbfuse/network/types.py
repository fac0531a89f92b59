"""Names of types that several packages share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["Inputs", "State"]

State = Mapping[str, Tensor]
"""Tensors of a network by name."""

Inputs = tuple[Any, ...]
"""Positional arguments of a network's forward, each a tree of tensors."""
