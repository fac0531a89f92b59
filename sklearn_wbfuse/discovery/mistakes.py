"""What users give in place of a list of models, and what each of these needs."""

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


def is_rows(given: Any) -> bool:
    """Whether something is data: an array, a tensor, a table, lists of numbers, a loader."""
    if isinstance(given, (nn.Module, str, bytes, Mapping)):
        return False
    if isinstance(given, (Tensor, np.ndarray, np.generic, DataLoader, Dataset)) or hasattr(given, "iloc"):
        return True
    if hasattr(given, "toarray") or hasattr(given, "__dataframe__"):  # sparse matrices, other tables
        return True
    first = given[0] if isinstance(given, (list, tuple)) and given else None
    return isinstance(first, (int, float)) or (first is not None and first is not given and is_rows(first))


def hint_for_list(given: Any) -> str:
    """What to give in place of something that is no list of models."""
    kind = type(given).__name__
    if is_rows(given):
        shape = f" of shape {tuple(given.shape)}" if hasattr(given, "shape") else ""
        return f"Got rows of data, {kind}{shape}, without models; give both, fit(FusionInput(models, X), y)."
    if isinstance(given, nn.ModuleDict) or (isinstance(given, Mapping) and _all(given.values(), nn.Module)):
        return f"Got {kind}; put the models into a list, list(models.values())."
    if isinstance(given, nn.ModuleList):
        return f"Got {kind}; put the models into a list, list(models)."
    if isinstance(given, nn.Sequential) and len({type(m) for m in given}) == 1 and all(map(_has_layers, given)):
        return f"Got {kind}; put the models into a list, list(models) where it holds them."
    if isinstance(given, nn.Module):
        return f"Got {kind}; put the models into a list."
    return f"Got {kind}{hint_for_model(given)}; put the models into a list."


def hint_for_model(given: Any) -> str:
    """What to give in place of something in a list that is no model, as the end of a sentence; empty if nobody knows."""
    if isinstance(given, torch.jit.ScriptModule):
        return "; give the nn.Module it was scripted from"
    if isinstance(given, _CONTAINERS):
        inside = "list(models)" if isinstance(given, nn.ModuleList) else "list(models.values())"
        return f", which has no forward of its own; give the models in it, {inside}"
    if isinstance(given, nn.Module):
        return ""
    if isinstance(given, type):
        return f", the class; give an instance, {given.__name__}(...)"
    if isinstance(given, (str, bytes, os.PathLike)):
        return (
            ", a path; build the network and load the file into it, model.load_state_dict(torch.load(path)), or use wbfuse fuse"
        )
    if isinstance(given, Mapping):
        inner = [k for k, v in given.items() if isinstance(v, Mapping) and _all(v.values(), Tensor)]
        if inner:
            return f", a checkpoint; load its state dict into a network, model.load_state_dict(checkpoint[{inner[0]!r}])"
        return ", a state dict; load it into a network, model.load_state_dict(state)" if _all(given.values(), Tensor) else ""
    if hasattr(given, "initialize") and hasattr(given, "module") and not hasattr(given, "module_"):
        return "; fit it first, and give its module_"  # skorch builds its network there
    inside = _network_in(given)
    if inside:
        return f"; give the network in it, its {inside}"
    if isinstance(given, BaseEstimator):
        return _OF_SCIKIT_LEARN
    if is_rows(given):
        return ", which holds data; rows go beside the models, fit(FusionInput(models, X), y)"
    if hasattr(given, "models") and hasattr(given, "arrays"):
        return "; give it alone, not in a list"
    return "; call it, and give the network that it returns" if callable(given) else ""


_OF_SCIKIT_LEARN = (
    ", an estimator of scikit-learn, which has no torch network; build one of torch.nn layers and copy the weights "
    "(coefs_[k].T and intercepts_[k] of an MLPClassifier are weight and bias of the k-th nn.Linear)"
)


def _network_in(given: Any) -> str:
    """The attribute of a wrapper (skorch, a trainer, a fitted fusion) that is a network."""
    own = [name for name, value in getattr(given, "__dict__", {}).items() if isinstance(value, nn.Module)]
    found = [name for name in ("fused_model_", "module_", "model", "module", "policy") if name in own]
    found += [name for name in own if not name.startswith("_") and not isinstance(getattr(given, name), nn.modules.loss._Loss)]
    if not found and hasattr(given, "fused_model_"):  # a property
        found = ["fused_model_"]
    return found[0] if found else ""


def _has_layers(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _all(values: Any, kind: type) -> bool:
    values = list(values)
    return bool(values) and all(isinstance(v, kind) for v in values)
