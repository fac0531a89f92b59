r"""Inputs that activate the parents more strongly, by a few steps along the gradient of their outputs.

Random images leave most deep neurons inactive. Each input x moves towards a randomly drawn class c,
:math:`x \leftarrow x - \eta \, \sigma \, g / \operatorname{rms}(g)`, with the spatially smoothed gradient g of
:math:`-\sum_i \log \operatorname{softmax}(f_i(x))_c` over the parents :math:`f_i` and the standard deviation :math:`\sigma` of
the inputs. The networks are not modified. Inverting networks to images goes back to Yin et al., "Dreaming to Distill", CVPR 2020;
here few steps from natural-looking images are enough.
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
from ..network.types import Inputs

__all__ = ["gradient_ascent"]

log = logging.getLogger("sklearn_wbfuse")

_STEP = 0.1
"""The root mean square of one step, relative to the standard deviation of the inputs."""


def gradient_ascent(
    models: Sequence[nn.Module], inputs: Inputs, leaves: Sequence[int], n_steps: int, generator: torch.Generator
) -> Inputs:
    """Move every other sample by some steps; return the inputs unchanged if networks have no scores per sample or no gradient.

    Parameters
    ----------
    models : list of Module
        Plain networks in eval mode.
    inputs : tuple
        One batch.
    leaves : list of int
        The positions of the inputs to move.
    n_steps : int
    generator : Generator
    """
    if not leaves or not n_steps:
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
    except Exception as error:  # a network may have no gradient, or only run on whole batches
        log.info("the inputs of the probe are unchanged, since the networks have no gradient there: %s", error)
        return inputs


def _moved(
    models: Sequence[nn.Module], inputs: Inputs, leaves: Sequence[int], n_steps: int, generator: torch.Generator
) -> Inputs:
    values, tree = pytree.tree_flatten(inputs)
    n = len(values[leaves[0]])
    if not all(len(values[k]) == n for k in leaves):
        return inputs
    standard_deviation = {k: float(values[k].std()) for k in leaves}
    bounds = {k: (float(values[k].min()), float(values[k].max())) for k in leaves}
    moved, classes = {k: values[k][::2].clone() for k in leaves}, None
    for _ in range(n_steps):
        variables = {k: v.detach().requires_grad_() for k, v in moved.items()}
        half = [variables[k] if k in variables else _every_other(v, n) for k, v in enumerate(values)]
        with torch.enable_grad():
            scores = [_scores(_run(m, pytree.tree_unflatten(half, tree)), len(half[leaves[0]])) for m in models]
            if any(s is None or not s.requires_grad for s in scores):
                return inputs
            if classes is None:
                classes = torch.randint(scores[0].shape[1], (len(scores[0]),), generator=generator)
            loss = torch.stack([F.cross_entropy(s.cpu().float(), classes, reduction="sum") for s in scores]).sum()
            gradients = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
        for k, gradient in zip(variables, gradients, strict=True):
            if gradient is not None:
                step = _smoothed(gradient.nan_to_num(0, 0, 0)).flatten(1)
                size = step.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
                moved[k] = (variables[k].detach() - _STEP * standard_deviation[k] * (step / size).view(gradient.shape)).clamp(
                    *bounds[k]
                )
    for k, value in moved.items():
        values[k] = values[k].clone()
        values[k][::2] = value.detach()
    return pytree.tree_unflatten(values, tree)


def _run(model: nn.Module, inputs: Inputs) -> Any:
    """Run a network on copies of its inputs, since it may write into them."""
    copies = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)
    return model(*cast_inputs(copies, model))


def _every_other(value: Any, n: int) -> Any:
    return value[::2] if isinstance(value, Tensor) and value.dim() and len(value) == n else value


def _scores(outputs: Any, n: int) -> Any:
    """Return the first floating-point output if it has shape (n, scores) with several scores."""
    output = next((t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()), None)
    return output if output is not None and output.dim() == 2 and len(output) == n and output.shape[1] > 1 else None


def _smoothed(gradient: Tensor) -> Tensor:
    """Average a gradient over neighbouring positions: steps of single pixels would make patterns unlike any image."""
    if gradient.dim() == 4 and min(gradient.shape[2:]) > 2:
        return F.avg_pool2d(F.pad(gradient, (1, 1, 1, 1), mode="replicate"), 3, 1)
    if gradient.dim() == 3 and gradient.shape[2] > 2:
        return F.avg_pool1d(F.pad(gradient, (1, 1), mode="replicate"), 3, 1)
    return gradient
