"""Errors and warnings. Each message says which model, layer, group or shape is concerned, and what to do."""

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
    """The argument is not a list of ordinary, copyable ``torch.nn.Module`` objects on one device."""


class NonFiniteError(FusionError):
    """A model has NaN or infinite values in a parameter or buffer."""


class ArchitectureMismatchError(FusionError):
    """The models differ in more than the sizes of their neuron groups."""


class WidthError(FusionError):
    """The architecture cannot have the requested or required sizes."""


class GroupNameError(FusionError, KeyError):
    """The network has no neuron group of this name."""

    __str__ = ValueError.__str__  # KeyError shows the repr of the message


class DiscoveryError(FusionError):
    """The neuron groups of a network could not be found."""


class SelfCheckError(FusionError):
    """Permuting, scaling or duplicating a discovered neuron group changes the function of the network."""


class TransportError(FusionError):
    """A transport problem has no valid solution: costs are not finite, or the plan violates its marginals."""


class PersistenceError(FusionError):
    """An estimator cannot be saved or loaded: because of a folder, a file in it, or a value that cannot be stored."""


class FusionWarning(UserWarning):
    """The result is valid, but something was left out on purpose, such as frozen units or dropped symmetries."""


class PoorFusionWarning(FusionWarning):
    """The fused network agrees less with its parents than they do among themselves; the message names remedies."""


def did_you_mean(name: Any, names: Iterable[str]) -> str:
    """Return a hint at the name closest to a misspelt one, to append to an error message; empty if there is none.

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
    misspelt, folded = str(name).casefold(), {n.casefold(): n for n in names}
    transposed = [n for n in folded if sorted(n) == sorted(misspelt)]
    closest = transposed or difflib.get_close_matches(misspelt, folded, 1)
    return f" Did you mean {folded[closest[0]]!r}?" if closest else ""
