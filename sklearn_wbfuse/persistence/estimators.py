"""`save` and `load` of fitted estimators."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..exceptions import FusionError, PersistenceError
from ..network.types import State
from .files import DESCRIPTION, check_writable, read_folder, write_folder
from .networks import checked_template, stored_state
from .values import ESTIMATORS, Decoder, Encoder

__all__ = ["PersistenceMixin", "decode", "load"]

_ROUTING = ("_metadata_request", "_sklearn_output_config")  # attributes that scikit-learn sets itself; not stored


class PersistenceMixin:
    """Estimators that `save` writes to a folder and `load` restores.

    Each subclass is registered under its name, by which saved files refer to it. By default all fitted attributes are stored,
    including fitted estimators; a subclass that stores something else overrides `_stored` and `_restore`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ESTIMATORS[cls.__name__] = cls

    def save(self, folder: str | os.PathLike) -> None:
        """Save the fitted estimator to a folder, as safetensors and JSON; reading them executes no code.

        - ``model.safetensors``: the state dict of the fused network, for any program; each group of tied tensors once.
        - ``couplings.safetensors``: couplings, scales, and example inputs, which are noise if `fit` received rows.
        - ``fusion.json``: parameters, widths, energies, versions and checksums, also readable by people.

        The network's code is not stored: `load` takes a template, a network of the same architecture.

        Parameters
        ----------
        folder : path
            Created if it does not exist, completely or not at all. A save replaces an earlier one. A README.md remains, unless it
            is the card that the command line wrote for the earlier save.

        Raises
        ------
        NotFittedError
        PersistenceError
            If the folder is a file or contains other files, or a value cannot be stored; the message names it.

        Warns
        -----
        FusionWarning
            If a parameter is a network, such as `init`: it loads as its default. Also if rows are stored, because the network
            does not run on noise.

        See Also
        --------
        sklearn_wbfuse.load : Restore a saved estimator.

        Examples
        --------
        >>> import tempfile, torch
        >>> from sklearn_wbfuse import WassersteinFusion, load
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, n), torch.nn.ReLU(), torch.nn.Linear(n, 2)) for n in (5, 8))
        >>> fusion = WassersteinFusion().fit([a, b])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fusion.save(folder)
        ...     loaded = load(folder, model=a)  # of the same architecture; its widths do not matter
        >>> loaded.graph_.sizes == fusion.graph_.sizes == {"0": 8}
        True
        >>> x = torch.randn(3, 4)
        >>> torch.equal(loaded.fused_model_(x), fusion.fused_model_(x))
        True
        """
        check_is_fitted(self)
        path = _as_path(folder)
        check_writable(path)  # before any computation
        encoder = Encoder()
        content = encoder.estimator(self, fitted=True)
        state, ties = ({}, {}) if encoder.network is None else stored_state(encoder.network)
        write_folder(path, {"torch_version": str(torch.__version__), **content}, state, ties, encoder.tensors)

    def _stored(self) -> dict[str, Any]:
        """Return the attributes of the fitted estimator, without its parameters."""
        excluded = {*self.get_params(deep=False), *_ROUTING}  # type: ignore[attr-defined]
        return {name: value for name, value in vars(self).items() if name not in excluded}

    def _restore(self, stored: Mapping[str, Any], model: nn.Module) -> None:
        """Restore the attributes that `_stored` returned; `model` is the template, and a network is given as its state dict."""
        for name, value in stored.items():
            setattr(self, name, value)


def load(folder: str | os.PathLike, model: Any = None) -> Any:
    """Load a fitted estimator from the folder that its `save` wrote.

    No code in the folder is executed, and no pickle is read. The neuron groups are discovered again on the template and must
    equal those of the saved network.

    Parameters
    ----------
    folder : path
    model : Module
        A template: a network of the saved architecture, of any widths, with any values. It is not modified. It provides what a
        state dict does not contain: code, hooks, ``requires_grad`` and non-persistent buffers.

    Returns
    -------
    estimator
        Its `fused_model_` is in eval mode, has the dtypes of the saved network and is on the template's device.

    Raises
    ------
    PersistenceError
        If the folder is missing, incomplete, damaged or of a newer version, or its estimator is unknown.
    InvalidModelError
        If the template is missing or not a network.
    ArchitectureMismatchError, WidthError
        If the template has another architecture, or cannot have the saved widths.

    See Also
    --------
    WassersteinFusion.save : Save a fitted estimator; contains an example.
    """
    path = _as_path(folder)
    content, network, tensors = read_folder(path)
    template = checked_template(model)
    try:
        return Decoder(tensors, network, template).estimator(content)
    except FusionError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise PersistenceError(
            f"{path / DESCRIPTION} must be as save wrote it. Got missing or invalid entries ({type(error).__name__}: {error}). "
            "Copy the folder again, or save the estimator again."
        ) from error


def decode(body: Any, tensors: State) -> Any:
    """Decode values of a description that need no template, such as the parents with their couplings."""
    return Decoder(tensors, {}, nn.Identity()).value(body)


def _as_path(folder: Any) -> Path:
    try:
        return Path(folder)
    except TypeError as error:
        raise PersistenceError(f"folder must be a path. Got {type(folder).__name__}.") from error
