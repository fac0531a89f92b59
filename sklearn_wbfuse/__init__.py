"""Fuse trained PyTorch networks of different seeds, data and widths into one, as a scikit-learn estimator."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .discovery import discover
    from .fusion import VanillaAveraging, WassersteinFusion
    from .layers import declare, register_rule, register_sizes
    from .model_selection import FusionClassifier, FusionInput, FusionRegressor, compare
    from .persistence import load

__version__ = "0.1.0"

__all__ = [
    "FusionClassifier",
    "FusionInput",
    "FusionRegressor",
    "VanillaAveraging",
    "WassersteinFusion",
    "compare",
    "declare",
    "discover",
    "load",
    "register_rule",
    "register_sizes",
]

_HOMES = {
    "FusionClassifier": "model_selection",
    "FusionInput": "data",
    "FusionRegressor": "model_selection",
    "VanillaAveraging": "fusion",
    "WassersteinFusion": "fusion",
    "compare": "model_selection",
    "declare": "layers",
    "discover": "discovery",
    "load": "persistence",
    "register_rule": "layers",
    "register_sizes": "layers",
}
_MODULES = {
    *_HOMES.values(),
    "alignment",
    "averaging",
    "base",
    "cli",
    "connectivity",
    "correction",
    "datasets",
    "exceptions",
    "execution",
    "inspection",
    "network",
    "probes",
    "transport",
}


def __getattr__(name: str) -> Any:
    """Import a public name or a module on first access: PyTorch and scikit-learn take seconds, and help needs neither."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
