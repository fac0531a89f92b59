"""A straightforward rival: layer by layer to the first model, with dense squared distances and POT's network simplex."""

from collections.abc import Sequence

import numpy as np
import ot
import torch
from torch import Tensor


@torch.no_grad()
def baseline(features: Sequence, models: Sequence[Sequence[Tensor]]) -> list[dict[str, np.ndarray]]:
    """Plans of every group and model but the first, from its incoming tensors, whose own inputs are matched already."""
    plans: list[dict[str, np.ndarray]] = [{} for _ in models]
    for group in dict.fromkeys(g for feature in features for g in feature.groups):
        indices = [
            p
            for p, f in enumerate(features)
            if f.groups.count(group) == 1
            and f.roles[f.groups.index(group)] == "out"
            and all(g == group or g in plans[-1] for g in f.groups)
        ]
        for i in range(1, len(models)):
            cost = np.zeros(())
            for p in indices:
                axis = features[p].groups.index(group)
                x, y = models[0][p].double(), models[i][p].double()
                for other, name in enumerate(features[p].groups):
                    if name != group:
                        moved = torch.as_tensor(plans[i][name]) * len(plans[i][name])
                        y = torch.tensordot(moved, y, dims=([1], [other])).movedim(0, other)
                x, y = (t.movedim(axis, 0).reshape(t.shape[axis], -1) for t in (x, y))
                cost = cost + ((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).numpy()
            mass = np.full(len(cost), 1 / len(cost))
            plans[i][group] = ot.emd(mass, mass, cost / cost.max(), numItermax=10_000_000)
    return plans[1:]
