r"""The weights of models, and which of them own which neurons of a target; all weighted means of models are computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .couplings import along
from .groups import LabelledTensor, Span

__all__ = ["Mixture"]


class Mixture:
    r"""Weights :math:`\lambda_i` of models, and the masses :math:`r^i_j` with which they own the target's neurons.

    The mean of values x at the target's neurons j is

    .. math:: \bar x_j = \sum_i \lambda_{i|j} x^i_j, \qquad \lambda_{i|j} = \frac{\lambda_i r^i_j}{\sum_k \lambda_k r^k_j} .

    If all models own all neurons equally, as in a barycenter, :math:`\lambda_{i|j} = \lambda_i`. The mean of equal values is
    that value.

    Parameters
    ----------
    weights : sequence of float
        :math:`\lambda_i`, sum 1.
    masses : mapping of str to ndarray of shape (n_models, n_target), optional
        :math:`r^i_j` for groups that models own in part; all models own the other groups equally.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> mixture = Mixture([0.25, 0.75], {"hidden": np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])})
    >>> mixture.mean([torch.zeros(3), torch.ones(3)])
    tensor([0.7500, 0.7500, 0.7500])
    >>> mixture.mean([torch.zeros(3), torch.ones(3)], "hidden")
    tensor([0.7500, 0.0000, 1.0000])
    """

    def __init__(self, weights: Sequence[float], masses: Mapping[str, np.ndarray] | None = None):
        self.weights, self.masses = [float(w) for w in weights], dict(masses or {})

    def has_all(self, model: int) -> bool:
        """Return whether a model has all the weight, so that the mean of the others does not exist."""
        return 1 - self.weights[model] < 1e-12

    def conditional(self, group: str) -> np.ndarray:
        r"""Return :math:`\lambda_{i|j}`, of shape (n_models, n_target), or (n_models, 1) if all models own the group equally."""
        weights = np.asarray(self.weights)[:, None]
        if group not in self.masses:
            return weights
        shares = weights * self.masses[group]
        total = shares.sum(0)
        return np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)

    def mean(self, values: Sequence[Any], group: str | None = None) -> Any:
        r"""Return the mean of tensors or arrays, one for each model; a `group` is that of the neurons on the first axis."""
        if group is None or group not in self.masses:
            return _weighted_sum(values, self.weights)
        return self._along_axis(values, self.conditional(group), 0)

    def mean_of_others(self, model: int, values: Sequence[Any]) -> Any:
        r"""Return :math:`\sum_{j \ne i} \lambda_j x^j / (1 - \lambda_i)`, or the model's own value if it has all the weight."""
        if self.has_all(model):
            return self.mean(values)
        rest = 1 - self.weights[model]
        return _weighted_sum(values, [0.0 if j == model else w / rest for j, w in enumerate(self.weights)])

    def mean_tensor(self, values: Sequence[Tensor], labels: LabelledTensor) -> Tensor:
        """Return the mean of a tensor in the target's neurons; the models that own a neuron own its row."""
        axis = next((a for a, spans in enumerate(labels.spans) if any(s.role == "out" for s in spans)), None)
        return self.mean(values) if axis is None else self.mean_along(values, labels.spans[axis], axis)

    def mean_along(self, values: Sequence[Tensor], spans: Sequence[Span], axis: int) -> Tensor:
        """Return the mean of tensors with the groups of `spans` on an axis; all models own the positions without a group."""
        if not any(span.group in self.masses for span in spans):
            return self.mean(values)
        weights = np.repeat(np.asarray(self.weights)[:, None], values[0].shape[axis], 1)
        for span in spans:
            weights[:, span.index] = self.conditional(span.group)[:, :, None]
        return self._along_axis(values, weights, axis)

    @staticmethod
    def _along_axis(values: Sequence[Tensor], weights: np.ndarray, axis: int) -> Tensor:
        pairs = [(v, torch.as_tensor(w, dtype=v.dtype, device=v.device)) for v, w in zip(values, weights, strict=True)]
        shaped = [along(w, axis % v.dim(), v.dim()) for v, w in pairs]
        return _weighted_sum([v.masked_fill(w == 0, 0) for v, w in zip(values, shaped, strict=True)], shaped)


def _weighted_sum(values: Sequence[Any], weights: Sequence[Any]) -> Any:
    """Sum values times weights; values of weight 0 are ignored, and a single value is returned as it is."""
    counted = [(w, v) for w, v in zip(weights, values, strict=True) if isinstance(w, Tensor) or w]
    if len(counted) == 1 and not isinstance(counted[0][0], Tensor):
        return counted[0][1]
    total: Any = 0.0
    for weight, value in counted:
        total = total + weight * value
    return total
