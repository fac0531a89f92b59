"""`save` and `load` of fitted estimators."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ..exceptions import FusionError, PersistenceError
from .files import DESCRIPTION, check_writable, read_folder, write_folder
from .networks import checked_template, stored_state
from .values import ESTIMATORS, Decoder, Encoder

__all__ = ["PersistenceMixin", "decoded", "load"]


_ROUTING = ("_metadata_request", "_sklearn_output_config")  # what scikit-learn keeps on estimators; not stored


class PersistenceMixin:
    """Estimators that can be saved to a folder, to be read by `load`.

    A subclass is registered by its name, under which files know it. Its attributes are stored as they are, fitted estimators
    among them; a subclass whose attributes are not what to store has `_stored` and `_restore` of its own.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ESTIMATORS[cls.__name__] = cls

    def save(self, folder: str | os.PathLike) -> None:
        """Save the fitted estimator to a folder: safetensors and JSON, nothing that runs when it is read.

        - ``model.safetensors``: the state dict of the fused network, for any program; tied tensors once.
        - ``couplings.safetensors``: couplings, scales, and example inputs: noise if `fit` saw rows.
        - ``fusion.json``: parameters, widths, energies, versions and checksums, to be read by people too.

        The network's code is not stored: `load` takes a network to build it from.

        Parameters
        ----------
        folder : path
            Made if need be, all of it or nothing. A save takes the place of an earlier one; a README.md stays unless it is the
            card that the command line wrote for that one.

        Raises
        ------
        NotFittedError
        PersistenceError
            The folder is a file or holds other things, or something can't be stored: the message names it.

        Warns
        -----
        FusionWarning
            If a parameter is a network, such as `init`: it loads as its default; and if rows are stored, since the network does
            not run on noise.

        See Also
        --------
        sklearn_wbfuse.load : The way back.

        Examples
        --------
        >>> import tempfile, torch
        >>> from sklearn_wbfuse import WassersteinFusion, load
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, n), torch.nn.ReLU(), torch.nn.Linear(n, 2)) for n in (5, 8))
        >>> fusion = WassersteinFusion().fit([a, b])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fusion.save(folder)
        ...     again = load(folder, model=a)  # of the same architecture; its widths do not matter
        >>> again.graph_.sizes == fusion.graph_.sizes == {"0": 8}
        True
        >>> x = torch.randn(3, 4)
        >>> torch.equal(again.fused_model_(x), fusion.fused_model_(x))
        True
        """
        check_is_fitted(self)
        where = _path(folder)
        check_writable(where)  # before anything is computed
        encoder = Encoder()
        content = encoder.estimator(self, fitted=True)
        state, ties = ({}, {}) if encoder.network is None else stored_state(encoder.network)
        write_folder(where, {"torch_version": str(torch.__version__), **content}, state, ties, encoder.tensors)

    def _stored(self) -> dict[str, Any]:
        """What the fitted estimator holds beside its parameters."""
        given = {*self.get_params(deep=False), *_ROUTING}  # type: ignore[attr-defined]
        return {name: value for name, value in vars(self).items() if name not in given}

    def _restore(self, stored: Mapping[str, Any], model: nn.Module) -> None:
        """Take back what `_stored` gave; `model` is the template, and a network comes back as its state dict."""
        for name, value in stored.items():
            setattr(self, name, value)


def load(folder: str | os.PathLike, model: Any = None) -> Any:
    """A fitted estimator from the folder that its `save` wrote.

    Nothing in the folder is executed, and no pickle is read. The neuron groups are found again on the template and must be those
    of the saved network.

    Parameters
    ----------
    folder : path
    model : Module
        A template: a network of the saved architecture, in any widths, with any values. It is not changed. What a state dict
        does not hold comes from it: code, hooks, ``requires_grad``, buffers that are not persistent.

    Returns
    -------
    estimator
        `fused_model_` is in eval mode, in the dtypes of the saved network and on the template's device.

    Raises
    ------
    PersistenceError
        The folder is missing, incomplete, damaged, of a newer version or of an estimator that is not known.
    InvalidModelError
        The template is missing or no network.
    ArchitectureMismatchError, WidthError
        The template is of another architecture, or can't have the saved widths.

    See Also
    --------
    WassersteinFusion.save : With an example.
    """
    where = _path(folder)
    content, network, tensors = read_folder(where)
    template = checked_template(model)
    try:
        return Decoder(tensors, network, template).estimator(content)
    except FusionError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise PersistenceError(
            f"{where / DESCRIPTION} lacks something or holds what can't be ({type(error).__name__}: {error}); it is not what "
            "save wrote. Copy the folder again, or save anew."
        ) from error


def decoded(body: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Values in a description that need no template: parents, with their couplings."""
    return Decoder(tensors, {}, nn.Identity()).value(body)


def _path(folder: Any) -> Path:
    try:
        return Path(folder)
    except TypeError as error:
        raise PersistenceError(f"folder must be a path. Got {type(folder).__name__}.") from error
