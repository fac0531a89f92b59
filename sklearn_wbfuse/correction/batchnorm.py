"""New running statistics for the batch norms of a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..exceptions import FusionError

__all__ = ["recompute_batchnorm"]


@torch.no_grad()
def recompute_batchnorm(model: nn.Module, X: Any, *, batch_size: int = 250) -> nn.Module:
    r"""Return a copy of a model whose batch norms hold the statistics of its own activations on `X`.

    Averaged networks have smaller activations than their parents, so averaged statistics do not fit them. Each running mean
    becomes :math:`\frac{1}{B} \sum_b \mu_b` and each running variance :math:`\frac{1}{B} \sum_b \sigma^2_b` over B batches,
    in one pass.

    Parameters
    ----------
    model : Module
        The network; it is not modified.
    X : array-like or Tensor of shape (n_samples, ...), or tuple of them
        Unlabelled inputs.
    batch_size : int
        At least 2; a smaller last batch is left out.

    Returns
    -------
    Module
        The copy, in eval mode.

    Raises
    ------
    FusionError
        If the model has no batch norm with running statistics, or there are fewer than 2 rows.

    Examples
    --------
    >>> import torch
    >>> norm = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    >>> fitted = recompute_batchnorm(norm, 5 + torch.zeros(10, 3))
    >>> fitted[0].running_mean
    tensor([5., 5., 5.])
    """
    recomputed = copy.deepcopy(model).eval()
    norms = [m for m in recomputed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        raise FusionError(f"recompute_batchnorm needs batch norms with running statistics. {type(model).__name__} has none.")
    parameter = next(recomputed.parameters(), torch.zeros(()))
    arrays = [torch.as_tensor(a) for a in (X if isinstance(X, tuple) else (X,))]
    n_rows = len(arrays[0])
    if n_rows < 2 or batch_size < 2:
        raise FusionError(f"Statistics need at least 2 rows in a batch. Got {n_rows} rows and batch_size={batch_size}.")
    batch_size = min(batch_size, n_rows)
    counts = [None if m.num_batches_tracked is None else m.num_batches_tracked.clone() for m in norms]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # for a plain mean over batches
        norm.train()
    with torch.random.fork_rng(devices=[]):
        for start in range(0, n_rows - batch_size + 1, batch_size):
            batch = [a[start : start + batch_size].to(parameter.device) for a in arrays]
            recomputed(*(b.to(parameter.dtype) if b.is_floating_point() else b for b in batch))
    for norm, momentum, count in zip(norms, momenta, counts, strict=True):
        norm.momentum = momentum
        if count is not None and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.copy_(count)
    return recomputed.eval()
