"""Noise of a spectrum, in one dimension of space or two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fractal_noise", "standardized"]

_COMMON = 2.0
"""How much more of the noise all channels share than each has of its own."""


def standardized(values: Tensor) -> Tensor:
    """Values of mean 0 and deviation 1 over everything; constant ones become 0."""
    return (values - values.mean()) / values.std(correction=0).clamp_min(1e-12)


def fractal_noise(n_samples: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise whose amplitudes fall as one over the frequency, shape (n_samples, channels, *size), deviation 1 over everything."""
    grids = torch.meshgrid(*(torch.fft.fftfreq(n) for n in size), indexing="ij")
    frequency = torch.stack([g.square() for g in grids]).sum(0).sqrt()
    frequency.view(-1)[0] = 1 / max(size)
    white = torch.randn(n_samples, channels, *size, generator=generator)
    white = white + _COMMON * torch.randn(n_samples, 1, *size, generator=generator)
    axes = list(range(2, 2 + len(size)))
    return standardized(torch.fft.ifftn(torch.fft.fftn(white, dim=axes) / frequency, dim=axes).real)
