r"""The inputs that activations are computed on: rows of data, what procedures draw, or noise that knows what parents look at.

Noise has the mean and deviation of the example inputs. Its covariance is that of :math:`W_1^\top z` for white z, summed over the
parents' first layers :math:`W_1`: directions that no parent looks at do not occur. It is computed as a vector-Jacobian product,
so that it is filtered noise for a convolution; for a recurrent layer z is correlated from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from ..base import HelpfulMixin
from ..probes import dead_leaves, occluding_steps
from .affine import NormLayer, affine_layer_of
from .cells import cells_of
from .reading import Reading, vocabularies
from .runner import Runner

__all__ = ["PROBES", "Probe", "between", "coloured", "is_drawn", "mixed", "procedural", "repeated", "shares", "with_tokens"]

PROBES = ("images", "signals", "sequences", "tokens")
"""Kinds of inputs that are drawn from a procedure."""

_MEMORY = 0.9
"""Correlation of the noise of a sequence from step to step."""

_WHITE = 0.1
"""Share of the noise's variance that is white."""


class Probe(HelpfulMixin, BaseEstimator):
    """Which inputs, and how many, costs of activations and corrections are computed on.

    Parameters
    ----------
    kind : {"auto", "images", "signals", "sequences", "tokens", "noise", "data"}, default="auto"
        "auto" takes rows of the data if `fit` was given some. Else the layer that reads an input decides what is drawn for it:

        - a two-dimensional convolution: "images", dead leaves, which are ellipses and rectangles that occlude each other, with
          the contrast between neighbours, the correlation of channels and the spectrum of photographs;
        - a one-dimensional convolution: "signals", occluding steps, ramps and bursts with 1/f noise, channels correlated;
        - a recurrent layer: "sequences", half of them the same with steps in the place of positions, half of them noise;
        - an embedding: "tokens", strings of a Markov chain with frequencies as by Zipf's law;
        - anything else, such as a linear layer: "noise" that knows what the parents' first layers look at.

        They have the mean, deviation and range of the example inputs. A kind that is named is drawn whatever layer reads the
        input, if its dimensions allow it: (n, channels, height, width), (n, channels, length) or (n, length, features). With
        "data" `fit` raises unless it was given rows.
    n_samples : int, default=2000
        Number of samples that are drawn, and largest number of rows of data; of more rows so many are drawn. Memory grows with
        this number, not with that of the rows: of every network the activations of a layer are held for all samples at once, so
        large images want fewer.
    n_mixed : int, default=2000
        Largest number of mixtures that make up for rows where a regression has fewer than `n_samples` and all inputs are
        floating: of a row and drawn dead leaves where images are read, else of two rows.
    n_steps : int, default=0
        Every other image takes so many gradient steps towards an output of the parents that is drawn at random, since random
        images leave deep neurons silent. The networks stay as they are. More than 5 were worse than none where tried.
    batch_size : int, default=500
        Largest number of samples that a network sees at once.
    working_memory : float, optional
        Mebibytes that activations may take; what is over that waits in temporary files. By default that of
        `sklearn.set_config`, 1024 unless it was changed.

    Examples
    --------
    >>> from sklearn_wbfuse import WassersteinFusion
    >>> fusion = WassersteinFusion(probe=Probe("images", n_samples=500))
    """

    _documented_in = "correction"

    _parameter_constraints: ClassVar[dict] = {
        "kind": [StrOptions({"auto", "noise", "data", *PROBES})],
        "n_samples": [Interval(Integral, 2, None, closed="left")],
        "n_mixed": [Interval(Integral, 0, None, closed="left")],
        "n_steps": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "working_memory": [Interval(Real, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        kind: str = "auto",
        *,
        n_samples: int = 2000,
        n_mixed: int = 2000,
        n_steps: int = 0,
        batch_size: int = 500,
        working_memory: float | None = None,
    ):
        self.kind = kind
        self.n_samples = n_samples
        self.n_mixed = n_mixed
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.working_memory = working_memory

    @property
    def budget(self) -> float:
        """Bytes that activations may take."""
        return 2**20 * float(get_config()["working_memory"] if self.working_memory is None else self.working_memory)


def repeated(examples: Sequence[Any], size: int, generator: torch.Generator) -> tuple[Any, ...]:
    """White noise in the place of floating inputs and copies of all others, for a batch of a size.

    The first dimension of the first tensor is the batch, and of all tensors that share its size.
    """
    leaves, tree = pytree.tree_flatten(tuple(examples))
    batch = next((t.shape[0] for t in leaves if isinstance(t, Tensor) and t.dim()), 0)
    found = []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == batch and batch:
            leaf = leaf[torch.arange(size) % batch]
        if is_drawn(leaf):
            leaf = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        found.append(leaf)
    return pytree.tree_unflatten(found, tree)


def mixed(rows: Sequence[Tensor], number: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A number of convex combinations of two rows."""
    n = len(rows[0])
    first, second = (torch.randint(n, (number,), generator=generator) for _ in range(2))
    share = shares(number, generator)
    return tuple(between(t[first], t[second], share) for t in rows)


def shares(number: int, generator: torch.Generator) -> Tensor:
    """The shares of second samples in mixtures, at most a half."""
    return 0.5 * torch.rand(number, generator=generator)


def between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Mixtures of samples with these shares of the second ones."""
    return torch.lerp(first, second.to(first), share.to(first).view(-1, *[1] * (first.dim() - 1)))


def with_tokens(
    runner: Runner, inputs: Sequence[Any], generator: torch.Generator, strings: Callable[..., Tensor] | None = None
) -> tuple[Any, ...]:
    """The inputs with random strings in the place of tokens, the integers that an embedding reads.

    ``strings(n_samples, length, vocabulary, generator)`` draws them; by default every token is as frequent.
    """
    leaves, tree = pytree.tree_flatten(tuple(inputs))
    for leaf, node in enumerate(runner.inputs):
        sizes, tokens = vocabularies(node, runner), leaves[leaf]
        if sizes and isinstance(tokens, Tensor) and not tokens.is_floating_point():
            if strings is None or not tokens.dim():
                drawn = torch.randint(min(sizes), tokens.shape, generator=generator)
            else:
                flat = tokens.reshape(-1, tokens.shape[-1])
                drawn = strings(*flat.shape, min(sizes), generator).view(tokens.shape)
            leaves[leaf] = drawn.to(tokens)
    return pytree.tree_unflatten(leaves, tree)


def procedural(
    found: Mapping[int, Reading], batches: Sequence[tuple[Any, ...]], examples: Sequence[Any], generator: torch.Generator
) -> list[tuple[Any, ...]]:
    """Inputs as images, signals or sequences where `found` says that they are read so, in mean, deviation and range like the
    examples; others stay, and so does every other sequence: noise that the first layer sees tells of its features.
    """
    shown = pytree.tree_leaves(tuple(examples))
    drawn = []
    for batch in batches:
        leaves, tree = pytree.tree_flatten(batch)
        for leaf, reading in found.items():
            example = shown[leaf].double()
            deviation = float(example.std(correction=0))
            content = _content(reading, generator) * (deviation or 1.0) + float(example.mean())
            value = reading.placed(content, leaves[leaf], every=2 if reading.kind == "sequences" else 1)
            leaves[leaf] = value.clamp(float(example.min()), float(example.max())) if deviation else value
        drawn.append(pytree.tree_unflatten(leaves, tree))
    return drawn


def _content(reading: Reading, generator: torch.Generator) -> Tensor:
    if reading.kind == "images":
        n, channels, height, width = reading.shape
        return dead_leaves(n, channels, height, width, generator)
    if reading.kind == "signals":
        n, channels, length = reading.shape
        return occluding_steps(n, channels, length, generator)
    n, length, features = reading.shape
    return occluding_steps(n, features, length, generator).mT


def coloured(
    networks: Sequence[Runner], weights: Sequence[float], examples: Sequence[Any], generator: torch.Generator
) -> list[tuple[Any, ...]]:
    """The noise for each batch that networks hold.

    Parameters
    ----------
    networks : list of Runner
        Parents on white noise, at their start; they are consumed.
    weights : list of float
        Their proportions.
    examples : tuple
        Floating ones give mean and deviation.
    generator : Generator
    """
    first, batches = networks[0], []
    leaves, tree = pytree.tree_flatten(tuple(examples))
    white = [first.values[node] for node in first.inputs]
    seen = [_seen(runner, generator) for runner in networks]
    for batch in range(first.n_batches):
        found = list(leaves)
        for leaf, values in enumerate(white):
            found[leaf] = value = values[batch]
            if not is_drawn(value):
                continue
            parts = [(w, own[leaf][batch]) for w, own in zip(weights, seen, strict=True) if w and leaf in own]
            if parts:
                mixed = sum((w**0.5 * part / part.std() for w, part in parts), torch.zeros_like(value))
                value = (1 - _WHITE) ** 0.5 * mixed / mixed.std() + _WHITE**0.5 * value
            deviation = float(leaves[leaf].double().std(correction=0))
            found[leaf] = float(leaves[leaf].double().mean()) + (deviation or 1.0) * value
        batches.append(pytree.tree_unflatten(found, tree))
    return batches


def _seen(runner: Runner, generator: torch.Generator) -> dict[int, list[Tensor]]:
    """For each floating input that a first layer reads, noise in the directions that the layer sees."""
    waiting = {leaf: node for leaf, node in enumerate(runner.inputs) if is_drawn(runner.values[node][0])}
    variables = {leaf: [v.detach().clone().requires_grad_() for v in runner.values[node]] for leaf, node in waiting.items()}
    runner.values.update({node: variables[leaf] for leaf, node in waiting.items()})
    found: dict[int, list[Tensor]] = {}
    with torch.enable_grad():
        for k, node in enumerate(runner.nodes):
            if len(found) == len(waiting):
                break
            runner.run(node)
            read = _first_layer(node, runner)
            if read is not None:
                for batch, (value, memory) in enumerate(read):
                    if not value.requires_grad:
                        continue
                    z = _white(value, memory, generator)
                    own = [variables[leaf][batch] for leaf in waiting]
                    for leaf, g in zip(waiting, torch.autograd.grad(value, own, z, allow_unused=True), strict=True):
                        if g is not None and float(g.std()) > 0:
                            found.setdefault(leaf, []).append(g)
            if read is not None and node in runner.values:
                values = list(runner.values[node])
                runner.values[node] = pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, values)
            runner.forget(k)
    return {leaf: parts for leaf, parts in found.items() if len(parts) == runner.n_batches}


def _first_layer(node: Node, runner: Runner) -> list[tuple[Tensor, int | None]] | None:
    """What a layer with weights computes of its input, batch by batch, and the dimension that holds steps."""
    layer, cells = affine_layer_of(node, runner.parameters), cells_of(node, runner.parameters)
    if layer is not None and not isinstance(layer, NormLayer):
        return [(value, None) for value in runner.values[node]]
    if cells:
        inputs = [runner.read(node.args[0], batch) for batch in range(runner.n_batches)]
        return [(x @ runner.state[cells[0].w_ih].T, int(bool(node.args[-1]) and x.dim() == 3)) for x in inputs]
    return None


def _white(value: Tensor, memory: int | None, generator: torch.Generator) -> Tensor:
    """Noise like a value, correlated along a dimension if one is given."""
    z = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
    if memory is None:
        return z
    runner = list(z.unbind(memory))
    for t in range(1, len(runner)):
        runner[t] = _MEMORY * runner[t - 1] + (1 - _MEMORY**2) ** 0.5 * runner[t]
    return torch.stack(runner, memory)


def is_drawn(value: Any) -> bool:
    """Whether an input is noise unless something says more: a floating tensor; a single number stays."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0
