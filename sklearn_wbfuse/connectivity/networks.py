"""Networks at affine combinations of other networks' parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..discovery import floating_state, plain_copy, validate_models
from ..exceptions import WidthError
from ..network.mixture import Mixture

__all__ = ["AffineNetworks", "difference"]


class AffineNetworks:
    r"""Networks at the affine combinations :math:`\sum_k w_k \theta_k`, :math:`\sum_k w_k = 1`, of networks of equal shapes.

    All floating-point tensors are combined, including buffers such as running statistics.

    Parameters
    ----------
    models : list of Module
        The networks; they are not modified.
    remedy : str
        A hint to append to the error about different shapes.

    Raises
    ------
    WidthError
        If a tensor differs in shape.

    Examples
    --------
    >>> a, b = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> middle = AffineNetworks([a, b]).at([0.5, 0.5])
    >>> torch.allclose(middle.weight, (a.weight + b.weight) / 2)
    True
    """

    def __init__(self, models: Sequence[nn.Module], remedy: str = ""):
        plain = [plain_copy(m) for m in validate_models(models)]
        for position, other in enumerate(plain[1:], 1):
            mismatch = difference(plain[0], other)
            if mismatch is not None:
                raise WidthError(f"Networks {0} and {position} must have equal shapes, but {mismatch}.{remedy}")
        states = [floating_state(m) for m in plain]
        self._model, self._moving, self._states = plain[0], {}, []
        moves = [n for n, first in states[0].items() if not all(torch.equal(first, s[n].to(first)) for s in states[1:])]
        self._moving = {name: states[0][name] for name in moves}
        self._states = [{name: s[name].to(states[0][name], copy=True) for name in moves} for s in states]

    @torch.no_grad()
    def at(self, weights: Sequence[float]) -> nn.Module:
        """Return the network with the given weights, in eval mode; the next call modifies it."""
        mixture = Mixture(weights)  # its mean is exact at the networks themselves
        for name, tensor in self._moving.items():
            tensor.copy_(mixture.mean([state[name] for state in self._states]))
        return self._model

    def displacements(self) -> np.ndarray:
        """Return the parameters (not buffers) of all networks minus the first's, of shape (n_models, n_parameters)."""
        trained = {name for name, _ in self._model.named_parameters()} & self._moving.keys()
        rows = []
        for state in self._states:
            parts = [(state[n].double() - self._states[0][n].double()).flatten().cpu() for n in self._moving if n in trained]
            rows.append(torch.cat(parts).numpy() if parts else np.zeros(0))
        return np.stack(rows)


def difference(first: nn.Module, second: nn.Module) -> str | None:
    """Return the first difference in shape between the tensors of two networks; None if there is none."""
    shapes = [{name: tuple(t.shape) for name, t in floating_state(m).items()} for m in (first, second)]
    for name in [*shapes[0], *shapes[1]]:
        first_shape, second_shape = (s.get(name) for s in shapes)
        if first_shape != second_shape:
            return f"{name!r} has shape {first_shape} in the one and {second_shape} in the other"
    return None
