"""The self-check: random permutations and scales of every group must not change what the network computes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..exceptions import ArchitectureMismatchError, DiscoveryError, FusionWarning, SelfCheckError
from ..network.groups import LabelledTensor, Span, put, relabel, take
from ..network.spec import NetworkSpec
from .contexts import untouched_modules
from .restricted import drop_symmetry, without_groups
from .states import on_states
from .tensors import floating_state, lent

__all__ = ["SelfCheck"]

Change = Callable[[Tensor, LabelledTensor], Tensor]
Place = tuple[LabelledTensor, int, Span]

_CONTROLS = 32  # groups that the negative control tries out
_SMALL = 0.3  # gain of weights that keep what a network computes in the range where it is nearly linear
_ROUNDING = 1e-12  # of an output that is the same but for the order of sums
_DRAWS = 3  # further draws of parameters for those of which the output seemed not to depend


class _Precision(TorchDispatchMode):
    """Sees whether code leaves double precision on its way."""

    is_lowered = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.is_lowered and _has(out, torch.float32, torch.bfloat16, torch.float16):
            self.is_lowered = _has((args, kwargs), torch.float64)
        return out


def _has(tree: Any, *dtypes: torch.dtype) -> bool:
    return any(isinstance(t, Tensor) and t.dtype in dtypes and t.dim() > 0 for t in pytree.tree_leaves(tree))


class SelfCheck:
    """One network with random parameters, random inputs and its output, in float64 where the network allows it.

    What it can't see: branches that the trace did not take, losses of widening (see `widens`), and units that were
    frozen without need.

    Parameters
    ----------
    model : Module
        A plain copy in eval mode, on the CPU. It lends its place to random tensors while it runs, and has its own in between.
    graph : Graph
    inputs : tuple
        Example inputs: shapes, dtypes and the range of integers are taken from them.
    """

    inputs: list[tuple[Any, ...]]

    def __init__(self, model: nn.Module, spec: NetworkSpec, inputs: Sequence[Any]):
        self.rng, self.generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        self.model, self.spec = model, spec
        self._choose_precision(tuple(inputs))

    def _finite(self) -> bool:
        return all(map(_are_finite, self.expected))

    def _choose_precision(self, inputs: tuple[Any, ...]) -> None:
        """Parameters in a precision, inputs of one or two batch sizes, and what the network computes of them.

        In single precision where code creates such tensors itself, or has numbers that only these can hold (a mask of
        ``finfo.min`` that a softmax in single precision reads).
        """
        for dtype in (torch.float64, torch.float32):
            self.dtype = dtype
            self.state = self._random_state()
            with contextlib.suppress(RuntimeError) if dtype == torch.float64 else contextlib.nullcontext(), _Precision() as used:
                self._compute_expected(inputs, dtype)
                self.tol = 1e-3 if dtype == torch.float32 else 1e-4 if used.is_lowered else 1e-8
                if self._finite():
                    return

    def _compute_expected(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> None:
        """Of random inputs; whole numbers and masks of the examples, where random ones do not fit together or hide all."""
        self.inputs = [self._random_inputs(inputs, dtype, 0)]
        try:
            self.expected = [self._run(self.model, self.state, self.inputs[0])]
        except (IndexError, ValueError):
            self.expected = []
        if not self.expected or not self._finite():
            self.inputs = [pytree.tree_map(_kept, self.inputs[0], inputs)]
            self.expected = [self._run(self.model, self.state, self.inputs[0])]
            return
        larger = self._random_inputs(inputs, dtype, 1)
        with contextlib.suppress(Exception):  # the batch size may be written into the code
            expected = self._run(self.model, self.state, larger)
            if _are_finite(expected):
                self.expected.append(expected)
                self.inputs.append(larger)

    def _random_inputs(self, inputs: Sequence[Any], dtype: torch.dtype, extra: int) -> tuple[Any, ...]:
        tensors = [t for t in pytree.tree_leaves(tuple(inputs)) if isinstance(t, Tensor) and t.dim()]
        batch = tensors[0].shape[0] if tensors else 0

        def draw(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            shape = list(leaf.shape)
            if shape and shape[0] == batch:
                shape[0] += extra
            if leaf.is_floating_point():
                return torch.as_tensor(self.rng.normal(size=shape), dtype=dtype)
            if leaf.dtype == torch.bool:
                return torch.as_tensor(self.rng.random(shape) < 0.5)
            if leaf.is_complex():
                raise DiscoveryError(f"An input of shape {tuple(leaf.shape)} is complex; only real ones can be checked.")
            low, high = int(leaf.min()), int(leaf.max())
            drawn = torch.as_tensor(self.rng.integers(low, high + 1, shape), dtype=leaf.dtype)
            falling = leaf.dim() == 1 and bool((leaf.diff() <= 0).all())  # lengths of sequences that are to be packed
            return drawn.sort(descending=True).values if falling else drawn

        return pytree.tree_map(draw, tuple(inputs))

    def _random_state(self, gain: float = 1.5) -> dict[str, Tensor]:
        """Random values for every tensor: defaults such as zeros and ones hide errors."""
        state = {}
        with lent(self.model):  # as it is, also where another thread runs it
            own = floating_state(self.model)
        for name, tensor in own.items():
            if not bool(torch.isfinite(tensor).all()):
                state[name] = tensor.to(self.dtype)  # a mask
                continue
            fan_in = max(int(np.prod(tensor.shape[1:])), 1)
            drawn = torch.empty(tensor.shape)  # single precision is drawn four times as fast
            if tensor.dim() <= 1 and bool((tensor >= 0).all()) and bool((tensor > 0).any()):
                drawn.uniform_(0.5, 1.5, generator=self.generator)  # variances and gains
            elif tensor.dim() <= 1:
                drawn.normal_(0.4 * tensor.dim(), 0.5, generator=self.generator)  # positive biases keep most ReLUs alive
            else:
                drawn.normal_(0, gain / fan_in**0.5, generator=self.generator)
            state[name] = drawn.to(self.dtype)
        return state

    @torch.no_grad()
    def _run(self, model: nn.Module, state: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> list[Tensor]:
        with lent(model, state, self.dtype):
            return _outputs(model, inputs)

    def outputs_with(self, changed: Mapping[str, Tensor]) -> list[Tensor]:
        """What the network computes of the first random inputs with some of its random tensors replaced."""
        return self._run(self.model, {**self.state, **changed}, self.inputs[0])

    def _same(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        moved: Change = lambda tensor, labels: tensor,
        tol: float | None = None,
    ) -> bool:
        """Whether a model computes what it should of the inputs; `moved` is done to states that are given and returned."""
        tol = self.tol if tol is None else tol
        for x, expected in zip(self.inputs, self.expected, strict=True):
            leaves, tree = pytree.tree_flatten(x)
            given = pytree.tree_unflatten(on_states(leaves, self.spec, True, moved), tree)
            outputs = zip(self._run(model, state, given), on_states(expected, self.spec, False, moved), strict=True)
            if not all(_close(a, b, tol) for a, b in outputs):
                return False
        return True

    def _invariant(self, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> bool:
        """Whether the network keeps its function when units are moved and multiplied."""
        return self._same(self.model, self._moved(order, factor), lambda tensor, labels: relabel(tensor, labels, order, factor))

    def _moved(self, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: relabel(t, self.spec.tensors[name], order, factor) for name, t in self.state.items()}

    def verify(self) -> NetworkSpec:
        """The graph, less the scales and signs that the check refutes.

        Raises
        ------
        SelfCheckError
            If permuting a group changes the output, if no permutation could, or if outputs are not finite.
        """
        if not self._finite():
            raise SelfCheckError("The network's outputs are not finite for random parameters, so its groups can't be verified.")
        groups = self.spec.groups.values()
        order = self.spec.orders(self._cycle)
        scale = {g.name: np.exp(self.rng.uniform(-0.7, 0.7, g.size)) for g in groups if g.scalable}
        sign = {g.name: self._signs(g.size) for g in groups if g.signable}
        both = {n: scale.get(n, 1.0) * sign.get(n, np.ones(len(order[n]))) for n in {**scale, **sign}}
        if not self._invariant(order, both):
            for family in self.spec.permutation_units:
                if not self._invariant({name: order[name] for name in family}, {}):
                    sizes = ", ".join(f"{name!r} (size {len(order[name])})" for name in family)
                    tensors = sorted({t.name for name in family for t, _, _ in self.spec.axes(name)})
                    raise SelfCheckError(
                        f"Permuting neuron group {sizes} changes the network's output. A rule or declaration of {tensors} is "
                        "wrong, or the forward depends on values."
                    )
            for kind, factors in (("scales", scale), ("signs", sign)):
                refuted = [n for n in factors if not self._invariant({}, {n: factors[n]})]
                if refuted:
                    warnings.warn(
                        f"The {kind} of groups {refuted} change the output and are not used.", FusionWarning, stacklevel=2
                    )
                    self.spec = drop_symmetry(self.spec, kind, refuted)
        self._negative_control(order)
        return self.spec

    def _cycle(self, size: int) -> np.ndarray:
        """A random permutation that is one cycle: it maps no proper subset to itself, so no wrong pooling of units survives."""
        around, order = self.rng.permutation(size), np.empty(size, dtype=int)
        order[around] = np.roll(around, 1)
        return order

    def _signs(self, size: int) -> np.ndarray:
        """Random signs, both of which occur where they can."""
        signs = self.rng.choice([-1.0, 1.0], size)
        signs[self.rng.integers(size)] = -1.0
        return signs

    def _negative_control(self, order: Mapping[str, np.ndarray]) -> None:
        """Leaving a claimed axis in place must change the output, or the check proves nothing.

        It does where the output has a gradient there; groups of which it has none are tried out. Those that show no effect on
        any axis stay in place.
        """
        names = self._without_gradient([n for n, p in order.items() if len(p) > 1 and any(self.spec.axes(n))])
        dead = {name: [self._largest(name)] for name in self.rng.permutation(names)[:_CONTROLS].tolist()}
        dead = {name: places for name, places in dead.items() if self._ignores(name, places)}
        state, expected = self.state, self.expected
        for _ in range(_DRAWS):  # units may be dead for the parameters that were drawn
            if not dead:
                break
            self.state = self._random_state()
            self.expected = [self._run(self.model, self.state, x) for x in self.inputs]
            dead = {name: places for name, places in dead.items() if self._ignores(name, places)}
        without_effect = {name for name in dead if self._ignores(name, list(self.spec.axes(name)))}
        self.state, self.expected = state, expected
        permutation_units = [f for f in self.spec.permutation_units if set(f) & without_effect]
        stay = {n for f in permutation_units if all(n in without_effect for n in f if any(self.spec.axes(n))) for n in f}
        for name, (tensor, axis, _) in ((n, places[0]) for n, places in dead.items() if n not in stay):
            warnings.warn(
                f"The output does not depend on axis {axis} of {tensor.name!r}, so group {name!r} could not be verified."
                + (" Sequences need at least 3 steps: give longer example_inputs." if tensor.recurrent else ""),
                FusionWarning,
                stacklevel=2,
            )
        self.spec = without_groups(self.spec, stay, "on the example inputs the output does not depend on them")

    def _largest(self, name: str) -> Place:
        return max(self.spec.axes(name), key=lambda entry: int(np.prod(entry[0].shape)))

    def _without_gradient(self, names: Sequence[str]) -> list[str]:
        """Groups on whose positions in their largest tensor the output has no gradient beyond rounding."""
        places = {name: self._largest(name) for name in names}
        named = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        leaves, learnt = {t.name: named[t.name] for t, _, _ in places.values()}, {n: t.requires_grad for n, t in named.items()}
        try:
            with lent(self.model, self.state, self.dtype), torch.enable_grad():
                for name, tensor in named.items():
                    tensor.requires_grad_(name in leaves)
                outputs = _outputs(self.model, self.inputs[0])
                weighted = [(t * torch.randn(t.shape, generator=self.generator).to(t)).sum() for t in outputs if t.requires_grad]
                total = torch.stack(weighted).sum()
                found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except Exception:
            return list(names)  # nothing to differentiate, or code that can't be
        finally:
            for name, tensor in named.items():
                tensor.requires_grad_(learnt[name])
        gradient = dict(zip(leaves, found, strict=True))

        def is_seen(tensor: LabelledTensor, axis: int, span: Span) -> bool:
            g = gradient[tensor.name]
            if g is None:
                return False
            if span.index.size < tensor.shape[axis]:
                g = tensor.unfold(g).index_select(axis, torch.as_tensor(span.index.ravel()))
            return float(torch.linalg.vector_norm(g, ord=float("inf"))) > _ROUNDING * (1 + abs(float(total.detach())))

        return [name for name, place in places.items() if not is_seen(*place)]

    def _ignores(self, name: str, places: Sequence[Place]) -> bool:
        """Whether leaving a group in place on any one of some axes, while it moves on the others, changes nothing."""
        rolled = self.spec.orders(lambda n: np.roll(np.arange(n), 1))
        own = {n: rolled[n] for family in self.spec.permutation_units if name in family for n in family}
        everywhere = self._moved(own, {})
        tol = min(self.tol, _ROUNDING) if self.tol < 1e-4 else self.tol  # deep attention hardly depends on its scores
        for tensor, axis in dict.fromkeys((t, a) for t, a, _ in places):
            spans = tuple(() if a == axis else s for a, s in enumerate(tensor.spans))
            here = relabel(self.state[tensor.name], dataclasses.replace(tensor, spans=spans), own, {})
            moved = {**everywhere, tensor.name: here}
            if not self._same(self.model, moved, lambda t, labels: relabel(t, labels, own, {}), tol):
                return False
        return True

    def computes_the_same(self, model: nn.Module, position: int, constants: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Another plain model with the same random parameters, and with some constants replaced, must compute the same.

        Raises
        ------
        ArchitectureMismatchError
            If it does not.
        """
        kept = {n: t.to("cpu", self.dtype if t.is_floating_point() else t.dtype, copy=True) for n, t in constants.items()}
        try:
            same = self._same(model, {**self.state, **kept})
        except Exception:
            same = False
        if not same:
            raise ArchitectureMismatchError(
                f"Models 0 and {position} have parameters of the same names and shapes but compute different functions of them; "
                "only models of one architecture can be fused (activations, strides and the order of layers included)."
            )

    def widens(self, wide: nn.Module, spec: NetworkSpec) -> bool:
        """Whether repeating every unit, with its readers' weights split, gives a wider network of the same function.

        Parameters
        ----------
        wide : Module
            The network resized to multiples of its widths.
        graph : Graph
            Of `wide`.
        """
        copies = self.spec.copies(spec)
        wider = {id(old.labels): new.labels for old, new in zip(self.spec.states, spec.states, strict=True)}
        small = copy.copy(self)  # other threads may share this check
        small.state = self._random_state(_SMALL)  # a softmax that is one-hot hides its temperature
        small.expected = [self._run(self.model, small.state, x) for x in self.inputs]
        for check in (self, small):
            larger = {n: repeated(t, self.spec.tensors[n], spec.tensors[n], copies) for n, t in check.state.items()}
            same = check._same(wide, larger, lambda t, labels: _repeated_rows(t, labels, wider[id(labels)], copies))
            del larger  # before the next are made
            if not same:
                return False
        return True


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]), untouched_modules(model):
        out = model(*pytree.tree_map(_clone, inputs))
    return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def repeated(tensor: Tensor, labels: LabelledTensor, wide: LabelledTensor, copies: Mapping[str, np.ndarray]) -> Tensor:
    """One tensor of a network in which every unit stands several times; input axes share the weight among the copies."""
    tensor = labels.unfold(tensor)
    result = torch.zeros(wide.shape, dtype=tensor.dtype)
    for before, after in zip(labels.blocks(), wide.blocks(), strict=True):
        array = take(tensor, before)
        for axis, (span, wider) in enumerate(zip(before.axes, after.axes, strict=True)):
            array = array.index_select(axis, torch.as_tensor(copies[span.group]))
            if span.role == "in":
                array = array * (len(span.index) / len(wider.index)) * (wide.diagonal / labels.diagonal)
        put(result, after, array)
    return wide.fold(result)


def _repeated_rows(tensor: Tensor, labels: LabelledTensor, wide: LabelledTensor, copies: Mapping[str, np.ndarray]) -> Tensor:
    """A state, its units first, with every unit as often as the wider network has it."""
    flat = tensor.flatten(1)
    before, after = (dataclasses.replace(t, shape=(t.shape[0], flat.shape[1]), spans=(t.spans[0], ())) for t in (labels, wide))
    return repeated(flat, before, after, copies).reshape(-1, *tensor.shape[1:])


def _are_finite(outputs: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point())


def _kept(drawn: Any, example: Any) -> Any:
    """Random numbers, but integers and truth values of the example."""
    return drawn if not isinstance(example, Tensor) or example.is_floating_point() else example


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _close(a: Tensor, b: Tensor, tol: float) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    return bool((a - b).abs().max() <= tol * (1 + b.abs().max())) if a.numel() else True
