"""What images and signals are made of: sizes of a power law, noise of a spectrum, blur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["blurred", "fractal_noise", "power_law", "standardized"]

_COMMON = 2.0
"""How much more of the noise all channels share than each has of its own."""


def standardized(values: Tensor) -> Tensor:
    """Values of mean 0 and deviation 1 over everything; constant ones become 0."""
    return (values - values.mean()) / values.std(correction=0).clamp_min(1e-12)


def power_law(uniform: Tensor, least: float, largest: float, power: float) -> Tensor:
    """Sizes of a density that falls with a power over 1, from numbers that are uniform between 0 and 1."""
    start, stop = (size ** (1 - power) for size in (least, largest))
    return (start + (stop - start) * uniform) ** (1 / (1 - power))


def fractal_noise(n_samples: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise whose amplitudes fall as one over the frequency, shape (n_samples, channels, *size), deviation 1 over everything."""
    grids = torch.meshgrid(*(torch.fft.fftfreq(n) for n in size), indexing="ij")
    frequency = torch.stack([g.square() for g in grids]).sum(0).sqrt()
    frequency.view(-1)[0] = 1 / max(size)
    white = torch.randn(n_samples, channels, *size, generator=generator)
    white = white + _COMMON * torch.randn(n_samples, 1, *size, generator=generator)
    axes = list(range(2, 2 + len(size)))
    return standardized(torch.fft.ifftn(torch.fft.fftn(white, dim=axes) / frequency, dim=axes).real)


def blurred(images: Tensor, deviation: Tensor) -> Tensor:
    """Images after a Gaussian blur, of a deviation in pixels of its own for each."""
    height, width = images.shape[2:]
    pad = [min(4, width - 1)] * 2 + [min(4, height - 1)] * 2
    padded = torch.nn.functional.pad(images, pad, mode="reflect")
    rows, columns = (torch.fft.fftfreq(n) for n in padded.shape[2:])
    squared = rows[:, None].square() + columns.square()
    gain = (-2 * (torch.pi * deviation).square()[:, None, None] * squared).exp()
    smooth = torch.fft.ifft2(torch.fft.fft2(padded) * gain[:, None]).real
    return smooth[..., pad[2] : pad[2] + height, pad[0] : pad[0] + width]
