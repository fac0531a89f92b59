"""The least work that a matching needs, straight in torch and scipy. It is not to be changed: figures are ratios to it.

For each group of neurons and each model, the products of its incoming and of its outgoing weights with those of the first model;
then, for each model but the first, one assignment. One pass over the groups, nothing carried, no gauge, no energy.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def floor(features: Sequence, models: Sequence[Sequence[Tensor]]) -> list[np.ndarray]:
    """Orders of the neurons of every group and model but the first.

    Parameters
    ----------
    described : list of Feature
        Which group stands on which axis of the arrays.
    models : list of list of Tensor
        Arrays of each model.
    """
    orders = []
    for group in dict.fromkeys(g for feature in features for g in feature.groups):
        for i, arrays in enumerate(models):
            similar: Tensor | float = 0.0
            for feature, a, b in zip(features, models[0], arrays, strict=True):
                if feature.groups.count(group) == 1:
                    axis = feature.groups.index(group)
                    left, right = (t.movedim(axis, 0).reshape(t.shape[axis], -1) for t in (a, b))
                    similar = similar + left @ right.T
            if i:
                orders.append(linear_sum_assignment(centred(-similar))[1])
    return orders


def centred(cost: Tensor) -> np.ndarray:
    """Costs less the means of rows and columns: same optimum, and the assignment is several times faster."""
    cost = cost - cost.mean(1, keepdim=True)
    return (cost - cost.mean(0, keepdim=True)).double().numpy()
