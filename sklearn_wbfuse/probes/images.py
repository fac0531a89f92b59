"""Dead leaves: images of shapes that occlude one another, with the edges, scales and colours of photographs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .parts import blurred, fractal_noise, power_law, standardized

__all__ = ["dead_leaves"]

_COLOUR = 0.1
"""Standard deviation of a channel about the luminance: channels then correlate by 0.9, as in photographs."""

_BLUR = 1.25
"""Largest standard deviation of the blur, in pixels of an image of size 32; without it edges are sharper than a camera's."""

_FEWEST = 4
"""Smallest number of shapes of an image."""

_PIXELS = 1 << 16
"""Number of pixels that are painted at once; a block that fits into the cache is several times faster."""


def dead_leaves(
    n_samples: int,
    channels: int,
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    n_leaves: int = 60,
    power: float = 3.0,
    texture: float = 0.3,
) -> Tensor:
    r"""Draw images of random ellipses and rectangles on a background, where later shapes occlude earlier ones.

    Sizes r have the density :math:`r^{-p}` between a twentieth and a half of the shorter side, which makes the model scale
    invariant for p = 3 [1]_; in half of the images the largest shapes come first. Images hold 4 to `n_leaves` shapes and are
    blurred by random amounts. The colour of a shape is a random luminance plus a little noise in each channel, slightly shaded
    along a random direction; noise with a 1/f spectrum is added. Contrasts between neighbouring pixels, correlations of channels
    and the spectrum are then close to those of photographs.

    Parameters
    ----------
    n_samples, channels, height, width : int
    generator : Generator
    n_leaves : int
        Largest number of shapes of an image, from 4 to 255.
    power : float
        p, greater than 1.
    texture : float
        Standard deviation of the noise, relative to that of the shapes.

    Returns
    -------
    Tensor of shape (n_samples, channels, height, width)
        Mean 0 and standard deviation 1 over all images.

    References
    ----------
    .. [1] A. B. Lee, D. Mumford, J. Huang, "Occlusion Models for Natural Images", IJCV 41, 2001.

    Examples
    --------
    >>> import torch
    >>> images = dead_leaves(4, 3, 16, 24, torch.Generator().manual_seed(0))
    >>> images.shape
    torch.Size([4, 3, 16, 24])
    """
    shapes = _Shapes(n_samples, n_leaves, height, width, power, generator)
    top = shapes.topmost().flatten(1)
    luminance = torch.rand(n_samples, n_leaves + 1, 1, generator=generator)
    colours = luminance + _COLOUR * torch.randn(n_samples, n_leaves + 1, channels, generator=generator)
    pixels = colours.gather(1, top[..., None].expand(-1, -1, channels)) + shapes.shading(top)[..., None]
    images = pixels.mT.unflatten(2, (height, width))
    images = standardized(blurred(images, torch.rand(n_samples, generator=generator) * _BLUR * max(min(height, width) / 32, 1.0)))
    return standardized(images + texture * fractal_noise(n_samples, channels, (height, width), generator))


class _Shapes:
    """The centres, sizes, orientations and aspect ratios of the shapes of all images; number 0 is the background."""

    def __init__(self, n_samples: int, n_leaves: int, height: int, width: int, power: float, generator: torch.Generator):
        def uniform() -> Tensor:
            return torch.rand(n_samples, n_leaves, generator=generator)

        self.height, self.width = height, width
        side = min(height, width)
        least, largest = max(1.5, 1.5 / 32 * side), max(side / 2, 2.0)
        radius = power_law(uniform(), least, largest, power)
        largest_first = torch.rand(n_samples, 1, generator=generator) < 0.5
        visible = (_FEWEST * (n_leaves / _FEWEST) ** torch.rand(n_samples, 1, generator=generator)).round()
        radius = torch.where(torch.arange(n_leaves) < visible, radius, 1e-3)  # others are smaller than a pixel
        radius = torch.where(largest_first, radius.sort(1, descending=True).values, radius)
        self.x, self.y, angle = uniform() * width, uniform() * height, uniform() * math.pi
        aspect = (0.5 * torch.randn(n_samples, n_leaves, generator=generator)).exp()
        self.is_ellipse = uniform() < 0.5
        self.along = angle.cos() / (radius * aspect), angle.sin() / (radius * aspect)
        self.across = -angle.sin() * aspect / radius, angle.cos() * aspect / radius
        self.slope = torch.randn(n_samples, n_leaves + 1, 2, generator=generator) * 0.5 / side

    def topmost(self) -> Tensor:
        """Return the number of the shape that each pixel shows, of shape (samples, height, width)."""
        top = torch.zeros(len(self.x), self.height, self.width, dtype=torch.uint8)
        n_images = max(1, _PIXELS // (self.height * self.width))
        for start in range(0, len(top), n_images):
            self._paint(slice(start, start + n_images), top[start : start + n_images])
        return top.long()

    def _paint(self, images: slice, top: Tensor) -> None:
        """Write the numbers of the shapes of some images, in order."""
        columns, rows = torch.arange(self.width).float(), torch.arange(self.height).float()
        for j in range(self.x.shape[1]):
            dx, dy = columns - self.x[images, j, None], rows - self.y[images, j, None]
            a, b = (
                ((u[images, j, None] * dx)[:, None] + (v[images, j, None] * dy)[..., None]).abs_()
                for u, v in (self.along, self.across)
            )
            distance = torch.where(self.is_ellipse[images, j, None, None], a * a + b * b, torch.maximum(a, b))
            top.masked_fill_(distance < 1, j + 1)

    def shading(self, top: Tensor) -> Tensor:
        """Return the shading of each pixel by the slope of its shape, 0 at the centre, of shape (samples, pixels)."""
        middle = torch.tensor([[self.width / 2], [self.height / 2]])
        x, y = (torch.cat([m.expand(len(c), 1), c], 1) for m, c in zip(middle, (self.x, self.y), strict=True))
        (along_x, along_y), pixel = self.slope.unbind(2), torch.arange(self.height * self.width)
        level = -(along_x * x + along_y * y)
        shade = level.gather(1, top) + along_x.gather(1, top) * (pixel % self.width)
        return shade + along_y.gather(1, top) * pixel.div(self.width, rounding_mode="floor")
