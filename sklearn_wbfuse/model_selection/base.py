"""The base of classifier and regressor, which fit a clone of a fusion and run the fused network on rows."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..base import HelpfulMixin, label_of, short_text
from ..data.fusion_input import FusionInput, rows_of
from ..data.scores import check_labels, outputs, outputs_for
from ..discovery import guess_inputs, validate_models
from ..exceptions import FusionError, InvalidModelError
from ..fusion import WassersteinFusion
from ..fusion.measurement import outputs_are
from ..persistence import PersistenceMixin

__all__ = ["Predictor"]


class Predictor(PersistenceMixin, HelpfulMixin, MetaEstimatorMixin, BaseEstimator):
    """Base of classifier and regressor: fits a clone of `fusion` and runs the fused network on rows."""

    _parameter_constraints: ClassVar[dict] = {
        "fusion": [HasMethods(["fit", "set_params"]), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    fusion: Any
    batch_size: int
    _kind: str  # of outputs: "binary" if one column separates two classes, or "targets"
    fusion_: Any

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.target_tags.required = False
        tags.no_validation = True
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return parameters by name; if `fusion` is None, including those of the default fusion, so that searches find them."""
        params = super().get_params(deep)
        if deep and self.fusion is None:
            params |= {f"fusion__{name}": value for name, value in WassersteinFusion().get_params().items()}
        return params

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name; ``fusion__reg`` is the parameter `reg` of the fusion."""
        nested = [name for name in params if name.startswith("fusion__")]
        if nested and params.get("fusion", self.fusion) is None:
            options = {name.removeprefix("fusion__"): params.pop(name) for name in nested}
            params["fusion"] = WassersteinFusion().set_params(**options)
        return super().set_params(**params)

    @property
    def fused_model_(self) -> nn.Module:
        """The fused network."""
        check_is_fitted(self)
        return self.fusion_.fused_model_

    def _fit_fusion(self, X: Any, y: Any) -> np.ndarray:
        """Fit a clone of the fusion, and return the outputs of the fused network on a few rows."""
        data = X if isinstance(X, FusionInput) else None
        if y is not None and data is not None:
            check_labels(data, y)
        if data is None:
            X = list(X) if isinstance(X, Iterator) else X  # an iterator can only be read once
            validate_models(X)
            if y is not None:
                raise InvalidModelError("Labels need rows: fit(FusionInput(models, X), y). Got models alone and y.")
        fusion = WassersteinFusion() if self.fusion is None else clone(self.fusion)
        if isinstance(fusion, (ClassifierMixin, RegressorMixin)):
            raise FusionError(f"fusion must be a fusion, such as WassersteinFusion(). Got {label_of(fusion)}.")
        with outputs_are(self._kind):
            self.fusion_ = fusion.fit(X)
        if not hasattr(fusion, "fused_model_"):
            raise TypeError(
                f"fusion={short_text(self.fusion)} has no fused_model_ after fit; give one such as WassersteinFusion()."
            )
        return outputs(fusion.fused_model_, data[:2]) if data is not None else self._example_outputs(fusion)

    def _example_outputs(self, fusion: Any) -> np.ndarray:
        """Return the fused network's outputs on the inputs of the discovery, or on guessed ones for fusions that have none."""
        model, inputs = fusion.fused_model_, getattr(fusion, "_inputs", None)
        try:
            inputs = guess_inputs(model) if inputs is None else inputs
            return outputs_for(model, inputs)
        except FusionError as error:
            if hasattr(fusion, "_inputs"):
                raise
            raise FusionError(
                f"{type(fusion).__name__} has no inputs to run its fused network on; give rows, fit(FusionInput(models, X)). "
                f"({error})"
            ) from error

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return outputs(self.fused_model_, rows_of(X), self.batch_size)
