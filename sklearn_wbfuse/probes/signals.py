"""Signals, the one-dimensional analogue of dead leaves: steps, ramps and bursts that occlude one another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .parts import fractal_noise, power_law, standardized

__all__ = ["occluding_steps"]


def occluding_steps(
    n_samples: int,
    channels: int,
    length: int,
    generator: torch.Generator,
    *,
    n_pieces: int = 20,
    power: float = 2.0,
    texture: float = 0.3,
) -> Tensor:
    r"""Draw signals of pieces that occlude one another: levels with a slope, a third of them with an oscillation.

    Durations d have the density :math:`d^{-p}` between one step and the whole length. Level, slope and oscillation of a piece are
    shared by all channels, with a random gain for each channel and a random level of its own. Noise with a 1/f spectrum is
    added.

    Parameters
    ----------
    n_samples, channels, length : int
    generator : Generator
    n_pieces : int
    power : float
        p, greater than 1; 2 is scale invariant in one dimension.
    texture : float
        Standard deviation of the noise, relative to that of the pieces.

    Returns
    -------
    Tensor of shape (n_samples, channels, length)
        Mean 0 and standard deviation 1 over all signals.

    Examples
    --------
    >>> import torch
    >>> occluding_steps(4, 2, 50, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 2, 50])
    """

    def uniform(*size: int) -> Tensor:
        return torch.rand(n_samples, n_pieces + 1, *size, generator=generator)

    def normal(*size: int) -> Tensor:
        return torch.randn(n_samples, n_pieces + 1, *size, generator=generator)

    duration = power_law(uniform(), 1.0, max(float(length), 2.0), power)
    centre = uniform() * length
    step = torch.arange(length).float()
    top = torch.zeros(n_samples, length, dtype=torch.long)
    for j in range(1, n_pieces + 1):
        covers = (step - centre[:, j, None]).abs() * 2 < duration[:, j, None]
        top.masked_fill_(covers, j)

    def shown(values: Tensor) -> Tensor:  # (samples, pieces, channels) to (samples, channels, length)
        return values.gather(1, top[..., None].expand(-1, -1, values.shape[2])).mT

    gain = 1 + 0.5 * torch.randn(n_samples, 1, channels, generator=generator)
    level, slope = normal(1) * gain + 0.5 * normal(channels), normal(1) * gain / length
    from_centre = step - shown(centre[..., None])
    oscillates = (uniform(1) < 1 / 3).float()
    rate = math.pi * uniform(1) ** 2  # up to the Nyquist frequency
    phase = shown(rate) * from_centre + 2 * math.pi * shown(uniform(1))
    signal = shown(level) + shown(slope) * from_centre + shown(oscillates * gain) * phase.sin()
    return standardized(standardized(signal) + texture * fractal_noise(n_samples, channels, (length,), generator))
