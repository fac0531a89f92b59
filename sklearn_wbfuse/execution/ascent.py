r"""Inputs that mean something to the parents: a few steps along the gradient of what they say.

Random images leave most deep neurons silent. Each input x moves towards an output c that is drawn for it, as
:math:`x \leftarrow x - \eta \, \sigma \, g / \operatorname{rms}(g)` with the gradient g of
:math:`-\sum_i \log \operatorname{softmax}(f_i(x))_c` over the parents :math:`f_i`, smoothed in space, and the deviation
:math:`\sigma` of the inputs. The networks stay as they are. Images that are inverted from networks go back to Yin et al.,
"Dreaming to Distill", CVPR 2020; here few steps from images that look natural do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..discovery import cast_inputs, device_of
from ..discovery.isolation import isolated_random_state, untouched_modules

__all__ = ["ascended"]

log = logging.getLogger("sklearn_wbfuse")

_STEP = 0.1
"""The root mean square of one step, where the deviation of the inputs is 1."""


def ascended(
    models: Sequence[nn.Module], inputs: tuple[Any, ...], leaves: Sequence[int], n_steps: int, generator: torch.Generator
) -> tuple[Any, ...]:
    """Every other sample after some steps; all as they are where networks return no row of scores per sample, or no gradient.

    Parameters
    ----------
    models : list of Module
        Plain networks in eval mode.
    inputs : tuple
        One batch.
    leaves : list of int
        The positions of the inputs that may move.
    n_steps : int
    generator : Generator
    """
    whole = next((pytree.tree_leaves(inputs)[k] for k in leaves), None)
    if whole is None or not n_steps:
        return inputs
    try:
        with (
            isolated_random_state(*map(device_of, models)),
            torch.backends.cudnn.flags(enabled=False),
            contextlib.ExitStack() as stack,
        ):
            for model in models:
                stack.enter_context(untouched_modules(model))
            return _moved(models, inputs, leaves, n_steps, generator)
    except Exception as error:  # a network may have no gradient, or run on whole batches alone
        log.info("the inputs of the probe stay as they are, since the networks have no gradient there: %s", error)
        return inputs


def _moved(
    models: Sequence[nn.Module], inputs: tuple[Any, ...], leaves: Sequence[int], n_steps: int, generator: torch.Generator
) -> tuple[Any, ...]:
    values, tree = pytree.tree_flatten(inputs)
    n = len(values[leaves[0]])
    if not all(len(values[k]) == n for k in leaves):
        return inputs
    deviation = {k: float(values[k].std()) for k in leaves}
    bounds = {k: (float(values[k].min()), float(values[k].max())) for k in leaves}
    moved, classes = {k: values[k][::2].clone() for k in leaves}, None
    for _ in range(n_steps):
        own = {k: v.detach().requires_grad_() for k, v in moved.items()}
        half = [own[k] if k in own else _every_other(v, n) for k, v in enumerate(values)]
        with torch.enable_grad():
            scores = [_scores(_run(m, pytree.tree_unflatten(half, tree)), len(half[leaves[0]])) for m in models]
            if any(s is None or not s.requires_grad for s in scores):
                return inputs
            if classes is None:
                classes = torch.randint(scores[0].shape[1], (len(scores[0]),), generator=generator)
            loss = torch.stack([F.cross_entropy(s.cpu().float(), classes, reduction="sum") for s in scores]).sum()
            gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
        for k, gradient in zip(own, gradients, strict=True):
            if gradient is not None:
                step = _smoothed(gradient.nan_to_num(0, 0, 0)).flatten(1)
                size = step.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
                moved[k] = (own[k].detach() - _STEP * deviation[k] * (step / size).view(gradient.shape)).clamp(*bounds[k])
    for k, value in moved.items():
        values[k] = values[k].clone()
        values[k][::2] = value.detach()
    return pytree.tree_unflatten(values, tree)


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """What a network says; it may write into its inputs."""
    copies = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)
    return model(*cast_inputs(copies, model))


def _every_other(value: Any, n: int) -> Any:
    return value[::2] if isinstance(value, Tensor) and value.dim() and len(value) == n else value


def _scores(outputs: Any, n: int) -> Any:
    """The first floating output of shape (n, scores), if there are several scores."""
    found = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    return found[0] if found and found[0].dim() == 2 and len(found[0]) == n and found[0].shape[1] > 1 else None


def _smoothed(gradient: Tensor) -> Tensor:
    """The mean over neighbours in space; a step of single pixels would make patterns that no image has."""
    if gradient.dim() == 4 and min(gradient.shape[2:]) > 2:
        return F.avg_pool2d(F.pad(gradient, (1, 1, 1, 1), mode="replicate"), 3, 1)
    if gradient.dim() == 3 and gradient.shape[2] > 2:
        return F.avg_pool1d(F.pad(gradient, (1, 1), mode="replicate"), 3, 1)
    return gradient
