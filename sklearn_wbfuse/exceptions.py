"""Errors and warnings. Each message says which model, layer, group or shape is meant, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "ArchitectureMismatchError",
    "DiscoveryError",
    "FusionError",
    "FusionWarning",
    "GroupNameError",
    "InvalidModelError",
    "NonFiniteError",
    "PersistenceError",
    "PoorFusionWarning",
    "SelfCheckError",
    "TransportError",
    "WidthError",
    "did_you_mean",
]


class FusionError(ValueError):
    """Base of all errors that sklearn_wbfuse raises about models, widths and data."""


class InvalidModelError(FusionError, TypeError):
    """What was given is not a list of ordinary, copyable ``torch.nn.Module`` objects on one device."""


class NonFiniteError(FusionError):
    """A model has NaN or infinite values in a parameter or buffer."""


class ArchitectureMismatchError(FusionError):
    """The models differ in more than the sizes of their neuron groups."""


class WidthError(FusionError):
    """Sizes were asked for, or are needed, that the architecture can't have."""


class GroupNameError(FusionError, KeyError):
    """A neuron group was named that the network does not have."""

    __str__ = ValueError.__str__  # KeyError would show the repr of the message


class DiscoveryError(FusionError):
    """The neuron groups of a network could not be found."""


class SelfCheckError(FusionError):
    """A neuron group was found, but permuting, scaling or duplicating it changes what the network computes."""


class TransportError(FusionError):
    """A transport problem has no valid solution: costs that are not finite, or a plan without its mass."""


class PersistenceError(FusionError):
    """A saved estimator can't be written or read: a folder, a file in it, or a value that can't be stored."""


class FusionWarning(UserWarning):
    """Something was left out on purpose, and the result is still valid: frozen units, dropped symmetries."""


class PoorFusionWarning(FusionWarning):
    """The fused network agrees less with its parents than they do among themselves; the message says what helps."""


def did_you_mean(name: Any, names: Iterable[str]) -> str:
    """A hint at the name that is closest to a misspelt one, to be put behind an error message; empty if there is none.

    Examples
    --------
    >>> did_you_mean("rn.l0", ["rnn.l0", "fc"])
    " Did you mean 'rnn.l0'?"
    >>> did_you_mean("rge", ["merge", "reg"])
    " Did you mean 'reg'?"
    >>> did_you_mean("RESNETT", ["VGG", "ResNet"])
    " Did you mean 'ResNet'?"
    >>> did_you_mean("conv", ["rnn.l0", "fc"])
    ''
    """
    given, folded = str(name).casefold(), {n.casefold(): n for n in names}
    swapped = [n for n in folded if sorted(n) == sorted(given)]
    near = swapped or difflib.get_close_matches(given, folded, 1)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""
