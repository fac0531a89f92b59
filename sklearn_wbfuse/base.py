"""Additions to scikit-learn's estimators: hints at misspelt names, links to the documentation, clones that share networks."""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError, StrOptions
from torch import Tensor, nn

from .exceptions import did_you_mean

__all__ = ["ESTIMATORS", "HelpfulMixin", "aligned", "did_you_mean", "label_of", "short_text"]

ESTIMATORS: dict[str, Any] = {}
"""Estimators by their names in saved files; corrections and estimators that can be saved register themselves."""

_MOST_ENTRIES = 6  # entries of a list that a label shows
_LONGEST = 40  # characters of other values that a label shows


def short_text(value: Any) -> str:
    """Format a value in one short line for labels and errors; tensors, arrays and networks appear without their numbers.

    Examples
    --------
    >>> import torch
    >>> short_text((torch.ones(2, 5), 0.1, torch.nn.Linear(2, 2), [0.9, 0.1]))
    '(Tensor(2, 5), 0.1, Linear(...), [0.9, 0.1])'
    """
    kind = type(value).__name__
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{kind}({', '.join(map(str, value.shape))})"
    if isinstance(value, (type, types.FunctionType)):
        return f"{'class ' * isinstance(value, type)}{value.__name__}"
    if isinstance(value, nn.Module):
        return f"{kind}(...)"
    if hasattr(value, "get_params"):
        return label_of(value)
    if isinstance(value, Mapping):
        shown = [f"{_cut(repr(k))}: {short_text(v)}" for k, v in itertools.islice(value.items(), _MOST_ENTRIES)]
        return f"{{{', '.join(shown + ['...'] * (len(value) > _MOST_ENTRIES))}}}"
    if isinstance(value, (list, tuple)):
        shown = [*map(short_text, value[:_MOST_ENTRIES]), *["..."] * (len(value) > _MOST_ENTRIES)]
        inside = ", ".join(shown) + "," * (isinstance(value, tuple) and len(shown) == 1)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    text = " ".join(repr(value).split())
    return f"{kind}(...)" if "tensor(" in text or "array(" in text else _cut(text)


def label_of(estimator: Any) -> str:
    """Format an estimator in one line: its class, and its parameters with other values than the defaults.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> label_of(Ridge(alpha=0.5))
    'Ridge(alpha=0.5)'
    """
    if isinstance(estimator, type):
        return short_text(estimator)
    params, shown = estimator.get_params(deep=False), []
    for name, parameter in inspect.signature(type(estimator)).parameters.items():
        if name in params and params[name] is not parameter.default and repr(params[name]) != repr(parameter.default):
            shown.append(f"{name}={short_text(params[name])}")
    return f"{type(estimator).__name__}({', '.join(shown)})"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Format rows of cells as a table; the first row holds the headers, and columns in `left` are aligned left, others right.

    Examples
    --------
    >>> print(aligned([("name", "size"), ("a", "1,000")]))
    name   size
    ----  -----
    a     1,000
    """
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(n) if i in left else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, lengths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * n for n in lengths))
    return "\n".join(line.rstrip() for line in lines)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 13]}...{text[-10:]}"


class HelpfulMixin:
    """Goes before ``BaseEstimator`` in the bases of a class."""

    _doc_link_module = "sklearn_wbfuse"
    _doc_link_template = "https://sklearn-wbfuse.readthedocs.io/en/latest/generated/{page}.html"

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        name, (package, *parts) = type(self).__name__, type(self).__module__.split(".")
        public = hasattr(sys.modules[package], name)
        return {"page": ".".join([package, name] if public else [package, self._documented_in or parts[0], name])}

    _documented_in = ""  # the package under which it is documented, if it is defined in another one

    def __sklearn_clone__(self) -> Any:
        """Clone like scikit-learn, but share networks among the parameters instead of copying them."""
        params = self.get_params(deep=False)  # type: ignore[attr-defined]
        cloned = type(self)(**{k: v if isinstance(v, nn.Module) else clone(v, safe=False) for k, v in params.items()})
        if hasattr(self, "_metadata_request"):  # set by set_..._request
            cloned._metadata_request = copy.deepcopy(self._metadata_request)  # type: ignore[attr-defined]
        return cloned

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name; ``a__b`` is the parameter b of the estimator that is the parameter a."""
        valid = self.get_params(deep=True)  # type: ignore[attr-defined]
        for name in params:
            prefix, nested, _ = name.partition("__")
            if prefix not in valid:
                inner = [v for v in valid if v.endswith(f"__{name}")]
                hint = f" Did you mean {inner[0]!r}?" if inner else did_you_mean(name, valid)
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {sorted(valid)}.{hint}")
            if nested and not hasattr(params.get(prefix, valid[prefix]), "set_params"):
                shown = f"{prefix}={short_text(valid[prefix])}"
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}: {shown} has none of its own.")
        return super().set_params(**params)  # type: ignore[misc]

    def _validate_params(self) -> None:
        try:
            super()._validate_params()  # type: ignore[misc]
        except InvalidParameterError as error:
            for name, constraints in self._parameter_constraints.items():  # type: ignore[attr-defined]
                options = [o for c in constraints if isinstance(c, StrOptions) for o in c.options]
                value = getattr(self, name)
                if f"{name!r} parameter" in str(error):
                    text = str(error).replace(f"Got {value!r}", f"Got {short_text(value)}")
                    hint = did_you_mean(value, options) if isinstance(value, str) else ""
                    raise InvalidParameterError(f"{text}{hint}") from None
            raise
