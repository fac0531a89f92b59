"""Values as JSON, with tensors and arrays in a separate file.

A value that JSON cannot represent is an object with one key that starts with ``$``, its tag: ``{"$float": "inf"}``,
``{"$tuple": [1, 2]}``, ``{"$tensor": "inputs.0"}``. The decoder raises on unknown tags; it never imports or calls a stored name.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ..base import ESTIMATORS
from ..exceptions import FusionWarning, PersistenceError
from ..execution import Probe
from ..network.couplings import Coupling, coupling_from
from ..network.types import State

__all__ = ["ESTIMATORS", "Decoder", "Encoder"]

ESTIMATORS[Probe.__name__] = Probe

_NUMERIC = "biuf"  # kinds of NumPy dtypes that are stored as tensors


class Encoder:
    """Encodes values as JSON; collects tensors and arrays in `tensors`, and the only network among the values in `network`."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.network: nn.Module | None = None

    def estimator(self, estimator: Any, path: str = "", *, fitted: bool) -> dict[str, Any]:
        """Encode the class, the parameters and, if `fitted`, the fitted attributes of an estimator.

        Raises
        ------
        PersistenceError
            If its class is unknown, or a value cannot be stored.
        """
        name = type(estimator).__name__
        if ESTIMATORS.get(name) is not type(estimator):
            reason = "another class of that name was defined since" if name in ESTIMATORS else "its class is not registered"
            raise PersistenceError(
                f"{path or 'The estimator'}, a {name}, cannot be saved: {reason}. Let your classes inherit from "
                "sklearn_wbfuse.persistence.PersistenceMixin, under unique names."
            )
        parameters = sorted(estimator.get_params(deep=False).items())
        body: dict[str, Any] = {"estimator": name, "parameters": {}}
        for key, value in parameters:
            body["parameters"][key] = self._parameter(estimator, key, value, path)
        if fitted:
            stored = estimator._stored()
            body["fitted"] = {key: self.value(value, _join(path, key), fitted=True) for key, value in stored.items()}
        return body

    def _parameter(self, estimator: Any, key: str, value: Any, path: str) -> Any:
        if isinstance(value, nn.Module):
            default = inspect.signature(type(estimator)).parameters[key].default
            warnings.warn(
                f"The parameter {_join(path, key)!r} of {type(estimator).__name__} is a network and is not stored; it loads as "
                f"{default!r}. Set it before you fit again.",
                FusionWarning,
                stacklevel=4,  # at the call of save
            )
            value = default
        return self.value(value, _join(_join(path, "parameters"), key))

    def value(self, value: Any, path: str, *, fitted: bool = False) -> Any:
        """Encode a value; `path` names it in errors, and its tensors in the file."""
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        if isinstance(value, (np.bool_, np.integer, np.floating)):
            return self.value(value.item(), path)
        if type(value) in (list, tuple):
            encoded = [self.value(v, _join(path, str(i)), fitted=fitted) for i, v in enumerate(value)]
            return encoded if isinstance(value, list) else {"$tuple": encoded}
        if isinstance(value, (dict, UserDict)):
            pairs = [(k, self.value(v, _join(path, str(k)), fitted=fitted)) for k, v in value.items()]
            if all(isinstance(k, str) and not k.startswith("$") for k in value):
                return dict(pairs)
            return {"$items": [[self.value(k, path), v] for k, v in pairs]}
        if isinstance(value, (Tensor, np.ndarray)):
            return self._array(value, path)
        if isinstance(value, Coupling):
            return {"$coupling": self.value(value.arrays, path)}
        return self._object(value, path, fitted)

    def _object(self, value: Any, path: str, fitted: bool) -> Any:
        if isinstance(value, torch.device):
            return {"$device": str(value)}
        if isinstance(value, np.random.RandomState):
            state = value.get_state(legacy=False)
            if state["bit_generator"] == "MT19937":
                return {"$random_state": self.value(state, path)}
        if isinstance(value, nn.Module) and self.network is None:
            self.network = value
            return {"$network": "model.safetensors"}
        if isinstance(value, BaseEstimator) and not isinstance(value, type):
            return {"$estimator": self.estimator(value, path, fitted=fitted and _is_fitted(value))}
        raise PersistenceError(
            f"{path!r} must be a number, string, list, tuple, dict, tensor, array or estimator to be saved. Got "
            f"{type(value).__module__}.{type(value).__qualname__}. Convert it, or use pickle if all readers trust the file."
        )

    def _array(self, value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, np.ndarray) and value.dtype.kind in "UO":
            items = [self.value(v, path) for v in value.ravel().tolist()]
            return {"$objects": {"dtype": value.dtype.str, "shape": list(value.shape), "items": items}}
        if isinstance(value, np.ndarray) and value.dtype.kind not in _NUMERIC:
            raise PersistenceError(f"{path!r} must be an array of numbers. Got {value.dtype}. Convert it to numbers.")
        key = path
        while key in self.tensors:
            key += "'"
        if isinstance(value, np.ndarray):
            native = value.astype(value.dtype.newbyteorder("="))  # a copy, in C order
            self.tensors[key] = torch.from_numpy(native.reshape(value.shape, order="C").copy(order="C"))
            return {"$array": key}
        if value.layout != torch.strided or value.is_quantized:
            raise PersistenceError(f"{path!r} must be a dense tensor. Got {value.layout}. Convert it to a dense tensor.")
        self.tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": key}


class Decoder:
    """Decodes values from JSON.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Those that the encoder collected.
    network : dict of str to Tensor
        The state dict of the network among the values, by which the network is replaced.
    model : Module
        The template for restoring fitted estimators.
    """

    def __init__(self, tensors: State, network: State, model: nn.Module):
        self.tensors, self.network, self.model = tensors, network, model
        self._tags: dict[str, Callable[[Any], Any]] = {
            "$float": float,
            "$tuple": lambda body: tuple(map(self.value, body)),
            "$items": lambda body: {self.value(k): self.value(v) for k, v in body},
            "$tensor": lambda body: self.tensors[body].clone(),
            "$array": lambda body: self.tensors[body].numpy().copy(),
            "$objects": self._objects,
            "$coupling": lambda body: coupling_from(**self.value(body)),
            "$device": torch.device,
            "$random_state": self._random_state,
            "$network": lambda body: dict(self.network),
            "$estimator": self.estimator,
        }

    def estimator(self, body: Mapping[str, Any]) -> Any:
        """Decode an estimator, fitted if it was saved fitted.

        Raises
        ------
        PersistenceError
            If its class or a parameter is unknown.
        """
        name = body["estimator"]
        getattr(sys.modules[__name__.partition(".")[0]], name, None)  # the package imports its estimators on first access
        if name not in ESTIMATORS:
            raise PersistenceError(
                f"The saved estimator must be one of {sorted(ESTIMATORS)}. Got {name!r}, which no imported module defines. "
                "Import the module that defines it, or update sklearn_wbfuse."
            )
        parameters = {key: self.value(value) for key, value in body["parameters"].items()}
        unknown = sorted(set(parameters) - set(ESTIMATORS[name]._get_param_names()))
        if unknown:
            raise PersistenceError(f"This version of {name} has no parameters {unknown}. Update sklearn_wbfuse.")
        estimator = ESTIMATORS[name](**parameters)
        if "fitted" in body:
            estimator._restore(self.value(body["fitted"]), self.model)
        return estimator

    def value(self, body: Any) -> Any:
        """Decode a value."""
        if isinstance(body, list):
            return [self.value(v) for v in body]
        if not isinstance(body, dict):
            return body
        tag = next(iter(body), "")
        if not tag.startswith("$"):
            return {k: self.value(v) for k, v in body.items()}
        if len(body) != 1 or tag not in self._tags:
            raise PersistenceError(f"fusion.json has an entry {tag!r} that is unknown to this version. Update sklearn_wbfuse.")
        return self._tags[tag](body[tag])

    def _objects(self, body: Mapping[str, Any]) -> np.ndarray:
        array = np.empty(len(body["items"]), dtype=np.dtype(body["dtype"]))
        array[:] = [self.value(v) for v in body["items"]]
        return array.reshape(body["shape"])

    def _random_state(self, body: Any) -> np.random.RandomState:
        state = np.random.RandomState()
        state.set_state(self.value(body))
        return state


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_fitted(estimator: Any) -> bool:
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError):  # TypeError: it has no method fit, like corrections
        return False
    return hasattr(estimator, "_stored")
