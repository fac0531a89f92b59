r"""The inputs on which activations are computed: rows of data, procedurally drawn inputs, or noise shaped by the parents.

Noise has the mean and standard deviation of the example inputs. Its covariance is that of :math:`W_1^\top z` for white z, summed
over the parents' first layers :math:`W_1`: directions that no parent reads do not occur. It is computed as a vector-Jacobian
product, which for a convolution is filtered noise; for a recurrent layer z is correlated over steps.
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
from ..network.types import Inputs
from ..probes import dead_leaves, occluding_steps
from .affine import NormLayer, affine_layer_of
from .cells import cells_of
from .reading import Reading, vocabularies
from .runner import Runner

__all__ = [
    "PROBES",
    "Probe",
    "coloured_noise",
    "interpolated",
    "is_drawn",
    "mixed_rows",
    "mixing_shares",
    "white_noise",
    "with_procedural",
    "with_tokens",
]

PROBES = ("images", "signals", "sequences", "tokens")
"""Kinds of inputs that are drawn procedurally."""

_MEMORY = 0.9
"""Correlation between successive steps of noise sequences."""

_WHITE = 0.1
"""Share of the noise's variance that is white."""


class Probe(HelpfulMixin, BaseEstimator):
    """The kind and number of the inputs on which costs of activations and corrections are computed.

    Parameters
    ----------
    kind : {"auto", "images", "signals", "sequences", "tokens", "noise", "data"}, default="auto"
        "auto" uses the rows of data if `fit` receives any. Otherwise the layer that reads an input determines what is drawn:

        - a two-dimensional convolution: "images", dead leaves, that is ellipses and rectangles that occlude each other, with
          the contrast between neighbours, the correlation of channels and the spectrum of photographs;
        - a one-dimensional convolution: "signals", occluding steps, ramps and bursts with 1/f noise and correlated channels;
        - a recurrent layer: "sequences", half of them like signals, half of them noise;
        - an embedding: "tokens", strings of a Markov chain with the frequencies of Zipf's law;
        - any other layer, such as a linear one: "noise" in the directions that the parents' first layers read.

        Drawn inputs have the mean, standard deviation and range of the example inputs. Any other kind is drawn whatever layer
        reads the input, if its shape allows it: (n, channels, height, width), (n, channels, length) or (n, length, features).
        "data" requires rows.
    n_samples : int, default=2000
        Number of samples to draw, and largest number of rows of data; more rows are subsampled. Memory grows with this number,
        not with the number of rows: the activations of a layer are held for all samples at once, so use fewer for large images.
    n_mixed : int, default=2000
        Largest number of mixed rows to add if a regression has fewer than `n_samples` rows and all inputs are floating-point:
        mixtures of a row and drawn dead leaves for images, of two rows otherwise.
    n_steps : int, default=0
        Number of gradient steps of every other image towards a random class of the parents, since random images leave deep
        neurons inactive. The networks are not modified. In our trials more than 5 steps were worse than none.
    batch_size : int, default=500
        Largest number of samples that a network processes at once.
    working_memory : float, optional
        Memory limit of activations in mebibytes; activations beyond it are kept in temporary files. The default is that of
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
        """The memory limit of activations in bytes."""
        return 2**20 * float(get_config()["working_memory"] if self.working_memory is None else self.working_memory)


def white_noise(examples: Sequence[Any], size: int, generator: torch.Generator) -> Inputs:
    """Return a batch of white noise in place of floating-point inputs and repeated rows of all others.

    The batch is the first dimension of the first tensor, and of all tensors whose first dimension has the same size.
    """
    leaves, tree = pytree.tree_flatten(tuple(examples))
    batch = next((t.shape[0] for t in leaves if isinstance(t, Tensor) and t.dim()), 0)
    noise = []
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == batch and batch:
            leaf = leaf[torch.arange(size) % batch]
        if is_drawn(leaf):
            leaf = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        noise.append(leaf)
    return pytree.tree_unflatten(noise, tree)


def mixed_rows(rows: Sequence[Tensor], number: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return `number` convex combinations of two rows."""
    n = len(rows[0])
    first, second = (torch.randint(n, (number,), generator=generator) for _ in range(2))
    shares = mixing_shares(number, generator)
    return tuple(interpolated(t[first], t[second], shares) for t in rows)


def mixing_shares(number: int, generator: torch.Generator) -> Tensor:
    """Draw the shares of the second samples of mixtures, at most a half."""
    return 0.5 * torch.rand(number, generator=generator)


def interpolated(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Mix samples with the given shares of the second ones."""
    return torch.lerp(first, second.to(first), shares.to(first).view(-1, *[1] * (first.dim() - 1)))


def with_tokens(
    runner: Runner, inputs: Sequence[Any], generator: torch.Generator, strings: Callable[..., Tensor] | None = None
) -> Inputs:
    """Replace tokens, the integers that an embedding reads, by random strings.

    ``strings(n_samples, length, vocabulary, generator)`` draws them; by default all tokens have the same frequency.
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


def with_procedural(
    readings: Mapping[int, Reading], batches: Sequence[Inputs], examples: Sequence[Any], generator: torch.Generator
) -> list[Inputs]:
    """Replace inputs that are read as images, signals or sequences by drawn ones with the moments and range of the examples.

    Every other sequence is unchanged, since noise that the first layer reads shows its features.
    """
    example_leaves = pytree.tree_leaves(tuple(examples))
    drawn = []
    for batch in batches:
        leaves, tree = pytree.tree_flatten(batch)
        for leaf, reading in readings.items():
            example = example_leaves[leaf].double()
            standard_deviation = float(example.std(correction=0))
            content = _content(reading, generator) * (standard_deviation or 1.0) + float(example.mean())
            value = reading.placed(content, leaves[leaf], every=2 if reading.kind == "sequences" else 1)
            leaves[leaf] = value.clamp(float(example.min()), float(example.max())) if standard_deviation else value
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


def coloured_noise(
    networks: Sequence[Runner], weights: Sequence[float], examples: Sequence[Any], generator: torch.Generator
) -> list[Inputs]:
    """Return noise in the directions that the first layers of networks read, for each of their batches.

    Parameters
    ----------
    networks : list of Runner
        Runners of the parents on white noise; they are consumed.
    weights : list of float
        The weights of the parents.
    examples : tuple
        Inputs whose mean and standard deviation the noise takes.
    generator : Generator
    """
    first, batches = networks[0], []
    leaves, tree = pytree.tree_flatten(tuple(examples))
    white = [first.values[node] for node in first.inputs]
    read = [_noise_read_by(runner, generator) for runner in networks]
    for batch in range(first.n_batches):
        noise = list(leaves)
        for leaf, values in enumerate(white):
            noise[leaf] = value = values[batch]
            if not is_drawn(value):
                continue
            terms = [(w, by_leaf[leaf][batch]) for w, by_leaf in zip(weights, read, strict=True) if w and leaf in by_leaf]
            if terms:
                total = sum((w**0.5 * term / term.std() for w, term in terms), torch.zeros_like(value))
                value = (1 - _WHITE) ** 0.5 * total / total.std() + _WHITE**0.5 * value
            standard_deviation = float(leaves[leaf].double().std(correction=0))
            noise[leaf] = float(leaves[leaf].double().mean()) + (standard_deviation or 1.0) * value
        batches.append(pytree.tree_unflatten(noise, tree))
    return batches


def _noise_read_by(runner: Runner, generator: torch.Generator) -> dict[int, list[Tensor]]:
    """Return, for each floating-point input of a first layer, noise in the directions that the layer reads."""
    inputs = {leaf: node for leaf, node in enumerate(runner.inputs) if is_drawn(runner.values[node][0])}
    variables = {leaf: [v.detach().clone().requires_grad_() for v in runner.values[node]] for leaf, node in inputs.items()}
    runner.values.update({node: variables[leaf] for leaf, node in inputs.items()})
    noise: dict[int, list[Tensor]] = {}
    with torch.enable_grad():
        for k, node in enumerate(runner.nodes):
            if len(noise) == len(inputs):
                break
            runner.run(node)
            outputs = _layer_outputs(node, runner)
            if outputs is not None:
                for batch, (value, memory) in enumerate(outputs):
                    if not value.requires_grad:
                        continue
                    z = _white(value, memory, generator)
                    of_batch = [variables[leaf][batch] for leaf in inputs]
                    for leaf, g in zip(inputs, torch.autograd.grad(value, of_batch, z, allow_unused=True), strict=True):
                        if g is not None and float(g.std()) > 0:
                            noise.setdefault(leaf, []).append(g)
            if outputs is not None and node in runner.values:
                values = list(runner.values[node])
                runner.values[node] = pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, values)
            runner.forget(k)
    return {leaf: of_batches for leaf, of_batches in noise.items() if len(of_batches) == runner.n_batches}


def _layer_outputs(node: Node, runner: Runner) -> list[tuple[Tensor, int | None]] | None:
    """Return the outputs of a layer with weights, batch by batch, and the dimension of steps; None for other operations."""
    layer, cells = affine_layer_of(node, runner.parameters), cells_of(node, runner.parameters)
    if layer is not None and not isinstance(layer, NormLayer):
        return [(value, None) for value in runner.values[node]]
    if cells:
        inputs = [runner.read(node.args[0], batch) for batch in range(runner.n_batches)]
        return [(x @ runner.state[cells[0].w_ih].T, int(bool(node.args[-1]) and x.dim() == 3)) for x in inputs]
    return None


def _white(value: Tensor, memory: int | None, generator: torch.Generator) -> Tensor:
    """Return noise of the shape of a value, correlated along the dimension `memory` if it is given."""
    z = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
    if memory is None:
        return z
    steps = list(z.unbind(memory))
    for t in range(1, len(steps)):
        steps[t] = _MEMORY * steps[t - 1] + (1 - _MEMORY**2) ** 0.5 * steps[t]
    return torch.stack(steps, memory)


def is_drawn(value: Any) -> bool:
    """Return whether an input is drawn: floating-point tensors are, unless they are a single number."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0
