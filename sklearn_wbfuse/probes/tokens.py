"""Strings of tokens from a random Markov chain with Zipf's law."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["zipf_chain"]

_FOLLOWERS = 8
"""Tokens that commonly follow a token."""

_COMMON = 0.5
"""How often the next token is one of these."""


def zipf_chain(n_samples: int, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Strings in which the token of rank k is as frequent as 1/k, and half of the time is one that commonly follows the last.

    Which token has which rank, and what follows what, is random: the k-th most frequent one is not token k, since 0 and its
    neighbours often stand for padding and the like.

    Parameters
    ----------
    n_samples, length : int
    vocabulary : int
        Number of tokens.
    generator : Generator

    Returns
    -------
    Tensor of shape (n_samples, length)
        Whole numbers from 0 to `vocabulary` - 1.

    Examples
    --------
    >>> import torch
    >>> strings = zipf_chain(3, 7, 100, torch.Generator().manual_seed(0))
    >>> strings.shape, int(strings.max()) < 100
    (torch.Size([3, 7]), True)
    """
    ranks = torch.randperm(vocabulary, generator=generator)
    frequency = torch.zeros(vocabulary)
    frequency[ranks] = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float32)
    cumulative = frequency.cumsum(0)

    def drawn(*size: int) -> Tensor:
        at = torch.rand(*size, generator=generator) * cumulative[-1]
        return torch.searchsorted(cumulative, at).clamp_max(vocabulary - 1)

    followers = drawn(vocabulary, _FOLLOWERS)
    strings = drawn(n_samples, length)
    for t in range(1, length):
        follows = torch.rand(n_samples, generator=generator) < _COMMON
        choice = torch.randint(_FOLLOWERS, (n_samples,), generator=generator)
        strings[:, t] = torch.where(follows, followers[strings[:, t - 1], choice], strings[:, t])
    return strings
