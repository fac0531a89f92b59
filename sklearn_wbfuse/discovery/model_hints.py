"""Hints for users who pass something other than a list of models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

__all__ = ["hint_for_list", "hint_for_model", "is_rows"]

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def is_rows(value: Any) -> bool:
    """Return whether a value is data: an array, a tensor, a table, lists of numbers, a loader."""
    if isinstance(value, (nn.Module, str, bytes, Mapping)):
        return False
    if isinstance(value, (Tensor, np.ndarray, np.generic, DataLoader, Dataset)) or hasattr(value, "iloc"):
        return True
    if hasattr(value, "toarray") or hasattr(value, "__dataframe__"):  # sparse matrices, other tables
        return True
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    return isinstance(first, (int, float)) or (first is not None and first is not value and is_rows(first))


def hint_for_list(value: Any) -> str:
    """Return what to pass instead of a value that is not a list of models."""
    kind = type(value).__name__
    if is_rows(value):
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        return f"Got rows of data, {kind}{shape}, without models. Give both, fit(FusionInput(models, X), y)."
    if isinstance(value, nn.ModuleDict) or (isinstance(value, Mapping) and _all(value.values(), nn.Module)):
        return f"Got {kind}. Put the models into a list, list(models.values())."
    if isinstance(value, nn.ModuleList):
        return f"Got {kind}. Put the models into a list, list(models)."
    if isinstance(value, nn.Sequential) and len({type(m) for m in value}) == 1 and all(map(_has_layers, value)):
        return f"Got {kind}. Put the models into a list: list(models) if it holds them."
    if isinstance(value, nn.Module):
        return f"Got {kind}. Put the models into a list."
    return f"Got {kind}{hint_for_model(value)}. Put the models into a list."


def hint_for_model(value: Any) -> str:
    """Return what to pass instead of an element that is not a model, as the end of a sentence; empty if unknown."""
    if isinstance(value, torch.jit.ScriptModule):
        return "; give the nn.Module it was scripted from"
    if isinstance(value, _CONTAINERS):
        inside = "list(models)" if isinstance(value, nn.ModuleList) else "list(models.values())"
        return f", which has no forward of its own; give the models in it, {inside}"
    if isinstance(value, nn.Module):
        return ""
    if isinstance(value, type):
        return f", the class; give an instance, {value.__name__}(...)"
    if isinstance(value, (str, bytes, os.PathLike)):
        return (
            ", a path; build the network and load the file into it, model.load_state_dict(torch.load(path)), or use wbfuse fuse"
        )
    if isinstance(value, Mapping):
        state_keys = [k for k, v in value.items() if isinstance(v, Mapping) and _all(v.values(), Tensor)]
        if state_keys:
            return f", a checkpoint; load its state dict into a network, model.load_state_dict(checkpoint[{state_keys[0]!r}])"
        return ", a state dict; load it into a network, model.load_state_dict(state)" if _all(value.values(), Tensor) else ""
    if hasattr(value, "initialize") and hasattr(value, "module") and not hasattr(value, "module_"):
        return "; fit it first, and give its module_"  # skorch builds its network there
    inside = _network_in(value)
    if inside:
        return f"; give the network in it, its {inside}"
    if isinstance(value, BaseEstimator):
        return _OF_SCIKIT_LEARN
    if is_rows(value):
        return ", which holds data; rows go beside the models, fit(FusionInput(models, X), y)"
    if hasattr(value, "models") and hasattr(value, "arrays"):
        return "; give it alone, not in a list"
    return "; call it, and give the network that it returns" if callable(value) else ""


_OF_SCIKIT_LEARN = (
    ", an estimator of scikit-learn, which has no torch network; build one of torch.nn layers and copy the weights "
    "(coefs_[k].T and intercepts_[k] of an MLPClassifier are weight and bias of the k-th nn.Linear)"
)


def _network_in(value: Any) -> str:
    """Return the attribute of a wrapper (skorch, a trainer, a fitted fusion) that is a network."""
    networks = [name for name, attribute in getattr(value, "__dict__", {}).items() if isinstance(attribute, nn.Module)]
    names = [name for name in ("fused_model_", "module_", "model", "module", "policy") if name in networks]
    names += [
        name for name in networks if not name.startswith("_") and not isinstance(getattr(value, name), nn.modules.loss._Loss)
    ]
    if not names and hasattr(value, "fused_model_"):  # a property
        names = ["fused_model_"]
    return names[0] if names else ""


def _has_layers(module: nn.Module) -> bool:
    """Return whether a module has submodules."""
    return any(True for _ in module.children())


def _all(values: Any, kind: type) -> bool:
    """Return whether there are values and all are of a kind."""
    values = list(values)
    return bool(values) and all(isinstance(v, kind) for v in values)
