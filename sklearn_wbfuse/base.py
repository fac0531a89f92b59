"""What every estimator of this library adds to scikit-learn's: hints for misspelt names, links, clones that share networks."""

from __future__ import annotations

import copy
import sys
from typing import Any

from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError, StrOptions
from torch import nn

from .exceptions import did_you_mean

__all__ = ["HelpfulMixin", "did_you_mean"]


class HelpfulMixin:
    """Goes before ``BaseEstimator``."""

    _doc_link_module = "sklearn_wbfuse"
    _doc_link_template = "https://sklearn-wbfuse.readthedocs.io/en/latest/generated/{page}.html"

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        name, (package, *parts) = type(self).__name__, type(self).__module__.split(".")
        public = hasattr(sys.modules[package], name)
        return {"page": ".".join([package, name] if public else [package, parts[0], name])}

    def __sklearn_clone__(self) -> Any:
        """As scikit-learn clones, but networks among the parameters are shared, not copied."""
        own = self.get_params(deep=False)  # type: ignore[attr-defined]
        twin = type(self)(**{k: v if isinstance(v, nn.Module) else clone(v, safe=False) for k, v in own.items()})
        if hasattr(self, "_metadata_request"):  # what set_..._request has set
            twin._metadata_request = copy.deepcopy(self._metadata_request)  # type: ignore[attr-defined]
        return twin

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name; ``a__b`` is parameter b of the estimator that is parameter a."""
        valid = self.get_params(deep=True)  # type: ignore[attr-defined]
        for name in params:
            own, nested, _ = name.partition("__")
            if own not in valid:
                inner = [v for v in valid if v.endswith(f"__{name}")]
                hint = f" Did you mean {inner[0]!r}?" if inner else did_you_mean(name, valid)
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {sorted(valid)}.{hint}")
            if nested and not hasattr(params.get(own, valid[own]), "set_params"):
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}: {own}={valid[own]!r} has none of its own.")
        return super().set_params(**params)  # type: ignore[misc]

    def _validate_params(self) -> None:
        try:
            super()._validate_params()  # type: ignore[misc]
        except InvalidParameterError as error:
            for name, constraints in self._parameter_constraints.items():  # type: ignore[attr-defined]
                options = [o for c in constraints if isinstance(c, StrOptions) for o in c.options]
                value = getattr(self, name)
                if isinstance(value, str) and f"{name!r} parameter" in str(error):
                    raise InvalidParameterError(f"{error}{did_you_mean(value, options)}") from None
            raise
