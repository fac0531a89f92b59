"""Display of some of the inputs on which corrections run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_random_state
from torch import nn
from torch.utils import _pytree as pytree

from ..data.fusion_input import FusionInput
from ..discovery import plain_copy, validate_models
from ..execution import PROBES, Probe
from ..execution.parent_runner import ParentRunner
from ..execution.reading import read_as
from ..fusion.parent_factory import ParentFactory, architectures_of, models_of, normalised_weights
from ..fusion.pipeline import probe_of
from .figures import new_axes

__all__ = ["ProbeDisplay"]

_SHOWN = 12  # number of tokens that fit into a line


class ProbeDisplay:
    """Some of the inputs that a probe draws for networks.

    Parameters
    ----------
    samples : array-like of shape (n_samples, ...)
        Images (channels, height, width), signals (channels, length), sequences (length, features), tokens, or any other arrays.
    kind : {"images", "signals", "sequences", "tokens", "noise", "rows"}

    Attributes
    ----------
    axes_, figure_ : list of Axes, Figure
        The last drawing: one Axes per sample, or one for all tokens.

    Examples
    --------
    >>> from torch import nn
    >>> display = ProbeDisplay.from_models([nn.Conv2d(3, 4, 3)], example_inputs=torch.zeros(2, 3, 12, 12), n_samples=4)
    >>> display.kind, display.samples.shape
    ('images', (4, 3, 12, 12))
    """

    def __init__(self, samples: Any, kind: str):
        self.samples, self.kind = np.asarray(samples), kind

    @classmethod
    def from_models(
        cls,
        models: Sequence[nn.Module] | FusionInput,
        probe: str | Probe = "auto",
        *,
        example_inputs: Any = None,
        n_samples: int = 8,
        random_state: Any = 0,
    ) -> ProbeDisplay:
        """Draw inputs like `WassersteinFusion`, and show them; for networks with several inputs only one of them.

        Parameters
        ----------
        models : list of Module, or FusionInput
        probe, example_inputs, random_state
            See `WassersteinFusion`.
        n_samples : int, default=8
            At least 2.

        Raises
        ------
        FusionError
            If the probe cannot be drawn for the networks.
        """
        networks = validate_models(models_of(models))
        data = models.taken_by(networks[0]) if isinstance(models, FusionInput) else None
        small = clone(probe_of(probe)).set_params(n_samples=n_samples, n_mixed=0, batch_size=n_samples)
        small._validate_params()
        copied = functools.cache(plain_copy)
        architectures, weights = architectures_of(networks, data, example_inputs, copied), normalised_weights(None, len(networks))
        factory = ParentFactory(architectures[0].inputs, torch.float32)
        parents = [factory.parent(*arguments, copied) for arguments in zip(networks, architectures, weights, strict=True)]
        parent_runner = ParentRunner(parents, data, small, check_random_state(random_state))
        readings = read_as(small.kind if small.kind in PROBES else "auto", parent_runner.runner(0))
        leaf, reading = next(iter(readings.items()), (0, None))
        samples = torch.cat([pytree.tree_leaves(batch)[leaf] for batch in parent_runner.batches])[:n_samples].cpu()
        if reading is not None:
            index = reading.index[: len(samples)].cpu()
            samples = torch.where(index > 0, samples.reshape(-1)[(index - 1).clamp(0)], 0)
        return cls(samples, parent_runner.source if reading is None else reading.kind).plot()

    def plot(self, axes: Sequence[Any] | None = None) -> ProbeDisplay:
        """Draw images as pictures (averaged over channels unless there are three), tokens as numbers, and others as lines."""
        are_tokens = not np.issubdtype(self.samples.dtype, np.floating)
        n = len(self.samples)
        if axes is None:
            axes = new_axes(5.2, 0.3 + 0.22 * n) if are_tokens else new_axes(1.3 * n, 1.4, n)
        self.axes_, self.figure_ = list(axes), axes[0].figure
        if are_tokens:
            lines = [" ".join(f"{t:5}" for t in row.reshape(-1)[:_SHOWN]) for row in self.samples]
            axes[0].text(0, 0.5, "\n".join(lines), family="monospace", fontsize="small", va="center")
            axes[0].set_axis_off()
            return self
        low, high = float(self.samples.min()), float(self.samples.max())
        for ax, sample in zip(axes, self.samples, strict=True):
            if self.kind == "images":
                shades = (sample - low) / ((high - low) or 1.0)
                ax.imshow(shades.transpose(1, 2, 0) if len(sample) == 3 else shades.mean(0), cmap="gray", vmin=0, vmax=1)
                ax.set_axis_off()
            else:
                ax.plot({"signals": sample.T, "sequences": sample}.get(self.kind, sample.reshape(-1)), linewidth=0.8)
                ax.set(xticks=[], yticks=[], ylim=(low, high))
        return self
