"""Values as JSON, with tensors and arrays beside it.

What JSON has no word for is an object with one key that starts with ``$``: ``{"$float": "inf"}``, ``{"$tuple": [1, 2]}``,
``{"$tensor": "inputs.0"}``. A reader that meets a tag it does not know raises; no name is ever imported or called.
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

__all__ = ["ESTIMATORS", "Decoder", "Encoder"]

ESTIMATORS[Probe.__name__] = Probe

_NUMERIC = "biuf"  # kinds of numpy arrays that are stored as tensors


class Encoder:
    """Values to JSON; `tensors` collects what goes into safetensors, `network` the one network among the values."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.network: nn.Module | None = None

    def estimator(self, estimator: Any, where: str = "", *, fitted: bool) -> dict[str, Any]:
        """Class, parameters and, if `fitted`, what the estimator says it has learnt.

        Raises
        ------
        PersistenceError
            If its class is unknown, or a value can't be stored.
        """
        name = type(estimator).__name__
        if ESTIMATORS.get(name) is not type(estimator):
            why = "another class of that name was defined since" if name in ESTIMATORS else "its class is not registered"
            raise PersistenceError(
                f"{where or 'The estimator'}, a {name}, can't be saved: {why}. Classes of your own inherit "
                "sklearn_wbfuse.persistence.PersistenceMixin and have names that no other has."
            )
        parameters = {key: self._parameter(estimator, key, value, where) for key, value in sorted(_own(estimator).items())}
        found: dict[str, Any] = {"estimator": name, "parameters": parameters}
        if fitted:
            stored = estimator._stored()
            found["fitted"] = {key: self.value(value, _join(where, key), fitted=True) for key, value in stored.items()}
        return found

    def _parameter(self, estimator: Any, key: str, value: Any, where: str) -> Any:
        if isinstance(value, nn.Module):
            default = inspect.signature(type(estimator)).parameters[key].default
            warnings.warn(
                f"The parameter {_join(where, key)!r} of {type(estimator).__name__} is a network and not stored; it loads as "
                f"{default!r}. Set it again before you fit anew.",
                FusionWarning,
                stacklevel=5,
            )
            value = default
        return self.value(value, _join(_join(where, "parameters"), key))

    def value(self, value: Any, where: str, *, fitted: bool = False) -> Any:
        """One value; `where` names it in errors and its tensors in the file."""
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        if isinstance(value, (np.bool_, np.integer, np.floating)):
            return self.value(value.item(), where)
        if type(value) in (list, tuple):
            encoded = [self.value(v, _join(where, str(i)), fitted=fitted) for i, v in enumerate(value)]
            return encoded if isinstance(value, list) else {"$tuple": encoded}
        if isinstance(value, (dict, UserDict)):
            pairs = [(k, self.value(v, _join(where, str(k)), fitted=fitted)) for k, v in value.items()]
            if all(isinstance(k, str) and not k.startswith("$") for k in value):
                return dict(pairs)
            return {"$items": [[self.value(k, where), v] for k, v in pairs]}
        if isinstance(value, (Tensor, np.ndarray)):
            return self._array(value, where)
        if isinstance(value, Coupling):
            return {"$coupling": self.value(value.arrays, where)}
        return self._object(value, where, fitted)

    def _object(self, value: Any, where: str, fitted: bool) -> Any:
        if isinstance(value, torch.device):
            return {"$device": str(value)}
        if isinstance(value, np.random.RandomState):
            state = value.get_state(legacy=False)
            if state["bit_generator"] == "MT19937":
                return {"$random_state": self.value(state, where)}
        if isinstance(value, nn.Module) and self.network is None:
            self.network = value
            return {"$network": "model.safetensors"}
        if isinstance(value, BaseEstimator) and not isinstance(value, type):
            return {"$estimator": self.estimator(value, where, fitted=fitted and _is_fitted(value))}
        raise PersistenceError(
            f"{where!r} is a {type(value).__module__}.{type(value).__qualname__}, which can't be saved. What can: numbers, "
            "strings, lists, tuples, dicts, tensors, arrays and estimators. pickle stores any object, for readers who trust it."
        )

    def _array(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, np.ndarray) and value.dtype.kind in "UO":
            items = [self.value(v, where) for v in value.ravel().tolist()]
            return {"$objects": {"dtype": value.dtype.str, "shape": list(value.shape), "items": items}}
        if isinstance(value, np.ndarray) and value.dtype.kind not in _NUMERIC:
            raise PersistenceError(f"{where!r} is an array of {value.dtype}, which can't be saved; convert it to numbers.")
        key = where
        while key in self.tensors:
            key += "'"
        if isinstance(value, np.ndarray):
            native = value.astype(value.dtype.newbyteorder("="))  # a copy, in C order
            self.tensors[key] = torch.from_numpy(native.reshape(value.shape, order="C").copy(order="C"))
            return {"$array": key}
        if value.layout != torch.strided or value.is_quantized:
            raise PersistenceError(f"{where!r} is a {value.layout} tensor, which can't be saved; give a dense one.")
        self.tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": key}


class Decoder:
    """JSON back to values.

    Parameters
    ----------
    tensors : dict of str to Tensor
    network : dict of str to Tensor
        What stands for the network: its state dict.
    model : Module
        The template that fitted estimators are restored on.
    """

    def __init__(self, tensors: Mapping[str, Tensor], network: Mapping[str, Tensor], model: nn.Module):
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
        """An estimator, fitted if it was.

        Raises
        ------
        PersistenceError
            If its class or a parameter is unknown.
        """
        name = body["estimator"]
        getattr(sys.modules[__name__.partition(".")[0]], name, None)  # the package imports its own when they are first named
        if name not in ESTIMATORS:
            raise PersistenceError(
                f"The save holds a {name!r}, which no imported module defines; known are {sorted(ESTIMATORS)}. Import the module "
                "that defines it first, or update sklearn_wbfuse."
            )
        parameters = {key: self.value(value) for key, value in body["parameters"].items()}
        unknown = sorted(set(parameters) - set(ESTIMATORS[name]._get_param_names()))
        if unknown:
            raise PersistenceError(f"This version of {name} has no parameters {unknown}; update sklearn_wbfuse.")
        estimator = ESTIMATORS[name](**parameters)
        if "fitted" in body:
            estimator._restore(self.value(body["fitted"]), self.model)
        return estimator

    def value(self, body: Any) -> Any:
        """One value."""
        if isinstance(body, list):
            return [self.value(v) for v in body]
        if not isinstance(body, dict):
            return body
        tag = next(iter(body), "")
        if not tag.startswith("$"):
            return {k: self.value(v) for k, v in body.items()}
        if len(body) != 1 or tag not in self._tags:
            raise PersistenceError(f"fusion.json has an entry {tag!r} that this version does not know; update sklearn_wbfuse.")
        return self._tags[tag](body[tag])

    def _objects(self, body: Mapping[str, Any]) -> np.ndarray:
        array = np.empty(len(body["items"]), dtype=np.dtype(body["dtype"]))
        array[:] = [self.value(v) for v in body["items"]]
        return array.reshape(body["shape"])

    def _random_state(self, body: Any) -> np.random.RandomState:
        state = np.random.RandomState()
        state.set_state(self.value(body))
        return state


def _own(estimator: Any) -> dict[str, Any]:
    return estimator.get_params(deep=False)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _is_fitted(estimator: Any) -> bool:
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError):  # TypeError: it has no fit, as corrections
        return False
    return hasattr(estimator, "_stored")
