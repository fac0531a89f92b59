"""An objective: labelled rows as a differentiable loss and a score."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..network.types import State
from .fusion_input import FusionInput
from .scores import as_array, check_labels, holds_targets, outputs, score_outputs

__all__ = ["Objective"]


class Objective:
    r"""Labelled rows as a differentiable loss and a score.

    For classes the loss is the mean of :math:`-\log p_y`, where p is the softmax of the outputs or the logistic function of a
    single one; for targets it is the mean squared error. The score is accuracy or R2, like that of the fusions.

    Parameters
    ----------
    rows : FusionInput
        Its models are ignored.
    y : array-like of shape (n_samples, ...)
        Classes (class k is output k) or continuous targets.
    probabilities : bool, default=False
        Whether outputs are probabilities rather than logits.
    batch_size : int, default=200

    Raises
    ------
    FusionError
        If there is not one label per row.

    Examples
    --------
    >>> import torch
    >>> from sklearn_wbfuse import FusionInput
    >>> objective = Objective(FusionInput([], torch.eye(2)), [0, 1])
    >>> network = torch.nn.Linear(2, 2, bias=False)
    >>> state = {"weight": 2 * torch.eye(2)}
    >>> objective.score(network, state), round(float(objective.loss(network, state)), 3)
    (1.0, 0.127)
    """

    def __init__(self, rows: FusionInput, y: Any, *, probabilities: bool = False, batch_size: int = 200):
        check_labels(rows, y)
        self.rows, self.y = rows, as_array(y)
        self.probabilities, self.batch_size = probabilities, batch_size
        self.tells_values = holds_targets(self.y)

    def __len__(self) -> int:
        return len(self.rows)

    def loss(self, network: nn.Module, state: State | None = None, rows: slice = slice(None)) -> Tensor:
        """Return the mean loss of a network over rows, differentiable in the tensors of `state`.

        Parameters
        ----------
        network : Module
            It runs in its present mode and is not modified.
        state : mapping of str to Tensor, optional
            Tensors that replace the network's own of these names.
        rows : slice
        """
        inputs = self.rows.taken_by(network).tensors(network, rows)
        returned = functional_call(network, dict(state or {}), inputs)
        return self.loss_of(returned, self.y[rows])

    def loss_of(self, returned: Tensor, y: np.ndarray) -> Tensor:
        """Return the mean loss of outputs."""
        if self.tells_values:
            return F.mse_loss(returned, torch.as_tensor(y).to(returned).reshape(returned.shape))
        classes = torch.as_tensor(y).to(returned.device)
        columns = returned.reshape(len(returned), -1)
        if columns.shape[1] == 1:
            loss = F.binary_cross_entropy if self.probabilities else F.binary_cross_entropy_with_logits
            return loss(columns[:, 0], classes.to(columns))
        logs = columns.clamp_min(torch.finfo(columns.dtype).tiny).log() if self.probabilities else columns.log_softmax(1)
        return F.nll_loss(logs, classes.long())

    def score(self, network: nn.Module, state: State | None = None) -> float:
        """Return the accuracy for classes or R2 for targets, with the tensors of `state` if they are given."""
        called = network if state is None else _With(network, state)
        predicted = outputs(called, self.rows, self.batch_size)
        return score_outputs(predicted, self.y, probabilities=self.probabilities, is_continuous=self.tells_values)


class _With(nn.Module):
    """A network with replaced tensors."""

    def __init__(self, network: nn.Module, state: State):
        super().__init__()
        self.network, self.state = network, dict(state)

    def forward(self, *inputs: Any) -> Any:
        return functional_call(self.network, self.state, inputs)
