"""Strings of tokens from a random Markov chain with the frequencies of Zipf's law."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["zipf_chain"]

_FOLLOWERS = 8
"""Number of tokens that commonly follow a token."""

_COMMON = 0.5
"""Probability that the next token is one of these."""


def zipf_chain(n_samples: int, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Draw strings in which the token of rank k has a frequency of 1/k, and half of the tokens commonly follow the one before.

    The ranks of tokens and their followers are random: the k-th most frequent token is not token k, since small numbers often
    are special tokens such as padding.

    Parameters
    ----------
    n_samples, length : int
    vocabulary : int
        Number of tokens.
    generator : Generator

    Returns
    -------
    Tensor of shape (n_samples, length)
        Integers from 0 to `vocabulary` - 1.

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
        mass = torch.rand(*size, generator=generator) * cumulative[-1]
        return torch.searchsorted(cumulative, mass).clamp_max(vocabulary - 1)

    followers = drawn(vocabulary, _FOLLOWERS)
    strings = drawn(n_samples, length)
    for t in range(1, length):
        follows = torch.rand(n_samples, generator=generator) < _COMMON
        choice = torch.randint(_FOLLOWERS, (n_samples,), generator=generator)
        strings[:, t] = torch.where(follows, followers[strings[:, t - 1], choice], strings[:, t])
    return strings
