"""Ingredients of images and signals: sizes of a power law, noise with a 1/f spectrum, blur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["blurred", "fractal_noise", "power_law", "standardized"]

_COMMON = 2.0
"""Amplitude of the noise that all channels share, relative to that of each channel alone."""


def standardized(values: Tensor) -> Tensor:
    """Scale values to mean 0 and standard deviation 1 over all axes; constant values become 0."""
    return (values - values.mean()) / values.std(correction=0).clamp_min(1e-12)


def power_law(uniform: Tensor, least: float, largest: float, power: float) -> Tensor:
    """Transform uniform numbers in [0, 1] into sizes with a density that falls with a power greater than 1."""
    start, stop = (size ** (1 - power) for size in (least, largest))
    return (start + (stop - start) * uniform) ** (1 / (1 - power))


def fractal_noise(n_samples: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw noise with amplitudes 1/f, of shape (n_samples, channels, *size) and standard deviation 1 over all axes."""
    grids = torch.meshgrid(*(torch.fft.fftfreq(n) for n in size), indexing="ij")
    frequency = torch.stack([g.square() for g in grids]).sum(0).sqrt()
    frequency.view(-1)[0] = 1 / max(size)
    white = torch.randn(n_samples, channels, *size, generator=generator)
    white = white + _COMMON * torch.randn(n_samples, 1, *size, generator=generator)
    axes = list(range(2, 2 + len(size)))
    return standardized(torch.fft.ifftn(torch.fft.fftn(white, dim=axes) / frequency, dim=axes).real)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own standard deviation `sigma` in pixels."""
    height, width = images.shape[2:]
    pad = [min(4, width - 1)] * 2 + [min(4, height - 1)] * 2
    padded = torch.nn.functional.pad(images, pad, mode="reflect")
    rows, columns = (torch.fft.fftfreq(n) for n in padded.shape[2:])
    squared = rows[:, None].square() + columns.square()
    gain = (-2 * (torch.pi * sigma).square()[:, None, None] * squared).exp()
    smooth = torch.fft.ifft2(torch.fft.fft2(padded) * gain[:, None]).real
    return smooth[..., pad[2] : pad[2] + height, pad[0] : pad[0] + width]
