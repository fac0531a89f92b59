"""The self-check: random permutations and scales of every group must not change the network's outputs."""

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

from ..exceptions import ArchitectureMismatchError, DiscoveryError, FusionWarning, SelfCheckError
from ..network.groups import LabelledTensor, Span, relabel
from ..network.spec import NetworkSpec
from ..network.types import Inputs, State
from .outputs import PrecisionMode, are_close, are_finite, outputs_of
from .spec_changes import drop_groups, drop_symmetry
from .states import change_states
from .tensors import floating_state, lent
from .widening import repeat_state_units, repeat_units

__all__ = ["SelfCheck"]

Change = Callable[[Tensor, LabelledTensor], Tensor]
"""A change of the units of a tensor."""

Place = tuple[LabelledTensor, int, Span]
"""A tensor, an axis, and the span of a group on it."""

_N_CONTROLS = 32  # groups that the negative control tests by permuting them
_SMALL_GAIN = 0.3  # gain of weights with which a network is nearly linear
_ROUNDING = 1e-12  # relative difference of outputs that are equal except for the order of sums
_N_DRAWS = 3  # further draws of parameters for groups on which the output seems not to depend


class SelfCheck:
    """One network with random parameters, random inputs and its output, in float64 where the network allows it.

    It cannot detect branches that the trace did not take, failures of widening (see `widens`), and units that were frozen
    unnecessarily.

    Parameters
    ----------
    model : Module
        A plain copy in eval mode, on the CPU. It runs on random tensors, and holds its own otherwise.
    spec : NetworkSpec
    inputs : tuple
        Example inputs, whose shapes, dtypes and ranges of integers the random inputs share.
    """

    inputs: list[Inputs]

    def __init__(self, model: nn.Module, spec: NetworkSpec, inputs: Sequence[Any]):
        self.rng, self.generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        self.model, self.spec = model, spec
        self._choose_precision(tuple(inputs))

    def _finite(self) -> bool:
        return all(map(are_finite, self.expected))

    def _choose_precision(self, inputs: Inputs) -> None:
        """Choose the precision of parameters, draw inputs of one or two batch sizes, and compute the outputs.

        Single precision is used if code creates such tensors, or has values that require it (a mask of ``finfo.min`` that a
        softmax in single precision reads).
        """
        for dtype in (torch.float64, torch.float32):
            self.dtype = dtype
            self.state = self._random_state()
            with (
                contextlib.suppress(RuntimeError) if dtype == torch.float64 else contextlib.nullcontext(),
                PrecisionMode() as used,
            ):
                self._compute_expected(inputs, dtype)
                self.tol = 1e-3 if dtype == torch.float32 else 1e-4 if used.is_lowered else 1e-8
                if self._finite():
                    return

    def _compute_expected(self, inputs: Inputs, dtype: torch.dtype) -> None:
        """Compute the outputs for random inputs.

        Integers and masks are those of the example inputs if random ones do not fit together or hide everything.
        """
        self.inputs = [self._random_inputs(inputs, dtype, 0)]
        try:
            self.expected = [self._run(self.model, self.state, self.inputs[0])]
        except (IndexError, ValueError):
            self.expected = []
        if not self.expected or not self._finite():
            self.inputs = [pytree.tree_map(_with_example_integers, self.inputs[0], inputs)]
            self.expected = [self._run(self.model, self.state, self.inputs[0])]
            return
        larger = self._random_inputs(inputs, dtype, 1)
        with contextlib.suppress(Exception):  # the code may depend on the batch size
            expected = self._run(self.model, self.state, larger)
            if are_finite(expected):
                self.expected.append(expected)
                self.inputs.append(larger)

    def _random_inputs(self, inputs: Sequence[Any], dtype: torch.dtype, extra: int) -> Inputs:
        """Draw inputs like the example inputs, with an enlarged batch."""
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
                raise DiscoveryError(f"Inputs must be real. Got a complex input of shape {tuple(leaf.shape)}.")
            low, high = int(leaf.min()), int(leaf.max())
            drawn = torch.as_tensor(self.rng.integers(low, high + 1, shape), dtype=leaf.dtype)
            falling = leaf.dim() == 1 and bool((leaf.diff() <= 0).all())  # lengths of sequences to be packed
            return drawn.sort(descending=True).values if falling else drawn

        return pytree.tree_map(draw, tuple(inputs))

    def _random_state(self, gain: float = 1.5) -> dict[str, Tensor]:
        """Draw random values for every tensor, since defaults such as zeros and ones hide errors."""
        state = {}
        with lent(self.model):  # its own tensors, even if another thread runs it
            original = floating_state(self.model)
        for name, tensor in original.items():
            if not bool(torch.isfinite(tensor).all()):
                state[name] = tensor.to(self.dtype)  # a mask
                continue
            fan_in = max(int(np.prod(tensor.shape[1:])), 1)
            drawn = torch.empty(tensor.shape)  # drawing in single precision is four times as fast
            if tensor.dim() <= 1 and bool((tensor >= 0).all()) and bool((tensor > 0).any()):
                drawn.uniform_(0.5, 1.5, generator=self.generator)  # variances and gains
            elif tensor.dim() <= 1:
                drawn.normal_(0.4 * tensor.dim(), 0.5, generator=self.generator)  # positive biases keep most ReLUs alive
            else:
                drawn.normal_(0, gain / fan_in**0.5, generator=self.generator)
            state[name] = drawn.to(self.dtype)
        return state

    @torch.no_grad()
    def _run(self, model: nn.Module, state: State, inputs: Inputs) -> list[Tensor]:
        """Run a model on a state."""
        with lent(model, state, self.dtype):
            return outputs_of(model, inputs)

    def outputs_with(self, changed: State) -> list[Tensor]:
        """Return the network's outputs for the first random inputs with some of its random tensors replaced."""
        return self._run(self.model, {**self.state, **changed}, self.inputs[0])

    def _same(
        self,
        model: nn.Module,
        state: State,
        change: Change = lambda tensor, labels: tensor,
        tol: float | None = None,
    ) -> bool:
        """Return whether a model computes the expected outputs; `change` is applied to states among inputs and outputs."""
        tol = self.tol if tol is None else tol
        for inputs, expected in zip(self.inputs, self.expected, strict=True):
            leaves, tree = pytree.tree_flatten(inputs)
            changed_inputs = pytree.tree_unflatten(change_states(leaves, self.spec, True, change), tree)
            outputs = zip(self._run(model, state, changed_inputs), change_states(expected, self.spec, False, change), strict=True)
            if not all(are_close(a, b, tol) for a, b in outputs):
                return False
        return True

    def _invariant(self, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> bool:
        """Return whether the network preserves its function when units are moved and multiplied."""
        return self._same(
            self.model, self._relabelled(order, factor), lambda tensor, labels: relabel(tensor, labels, order, factor)
        )

    def _relabelled(self, order: Mapping[str, np.ndarray], factor: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Return the random tensors with units moved and multiplied."""
        return {name: relabel(t, self.spec.tensors[name], order, factor) for name, t in self.state.items()}

    def verify(self) -> NetworkSpec:
        """Return the spec without the scales and signs that the check refutes.

        Raises
        ------
        SelfCheckError
            If permuting a group changes the output, or if outputs are not finite.
        """
        if not self._finite():
            raise SelfCheckError(
                "The network's outputs must be finite for random parameters. Got NaN or infinity: its groups can't be verified."
            )
        groups = self.spec.groups.values()
        order = self.spec.orders(self._cycle)
        scale = {g.name: np.exp(self.rng.uniform(-0.7, 0.7, g.size)) for g in groups if g.scalable}
        sign = {g.name: self._signs(g.size) for g in groups if g.signable}
        factor = {n: scale.get(n, 1.0) * sign.get(n, np.ones(len(order[n]))) for n in {**scale, **sign}}
        if not self._invariant(order, factor):
            for unit in self.spec.permutation_units:
                if not self._invariant({name: order[name] for name in unit}, {}):
                    sizes = ", ".join(f"{name!r} (size {len(order[name])})" for name in unit)
                    tensors = sorted({t.name for name in unit for t, _, _ in self.spec.axes(name)})
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
        """Draw a permutation of one cycle, which maps no proper subset to itself, so that wrongly pooled units are detected."""
        cycle, order = self.rng.permutation(size), np.empty(size, dtype=int)
        order[cycle] = np.roll(cycle, 1)
        return order

    def _signs(self, size: int) -> np.ndarray:
        """Draw random signs, at least one of them negative."""
        signs = self.rng.choice([-1.0, 1.0], size)
        signs[self.rng.integers(size)] = -1.0
        return signs

    def _negative_control(self, order: Mapping[str, np.ndarray]) -> None:
        """Check that leaving an axis of a group in place changes the output; otherwise the check proves nothing.

        It changes if the output has a gradient there; other groups are tested by permutations. Groups without effect on any axis
        stay in place.
        """
        names = self._without_gradient([n for n, p in order.items() if len(p) > 1 and any(self.spec.axes(n))])
        without_evidence = {name: [self._largest(name)] for name in self.rng.permutation(names)[:_N_CONTROLS].tolist()}
        without_evidence = {name: places for name, places in without_evidence.items() if self._ignores(name, places)}
        state, expected = self.state, self.expected
        for _ in range(_N_DRAWS):  # units may be dead with the first parameters
            if not without_evidence:
                break
            self.state = self._random_state()
            self.expected = [self._run(self.model, self.state, x) for x in self.inputs]
            without_evidence = {name: places for name, places in without_evidence.items() if self._ignores(name, places)}
        without_effect = {name for name in without_evidence if self._ignores(name, list(self.spec.axes(name)))}
        self.state, self.expected = state, expected
        affected = [unit for unit in self.spec.permutation_units if set(unit) & without_effect]
        frozen = {n for unit in affected if all(n in without_effect for n in unit if any(self.spec.axes(n))) for n in unit}
        for name, (tensor, axis, _) in ((n, places[0]) for n, places in without_evidence.items() if n not in frozen):
            warnings.warn(
                f"The output does not depend on axis {axis} of {tensor.name!r}, so group {name!r} could not be verified."
                + (" Sequences need at least 3 steps: give longer example_inputs." if tensor.recurrent else ""),
                FusionWarning,
                stacklevel=2,
            )
        self.spec = drop_groups(self.spec, frozen, "on the example inputs the output does not depend on them")

    def _largest(self, name: str) -> Place:
        """Return the place of a group in its largest tensor."""
        return max(self.spec.axes(name), key=lambda entry: int(np.prod(entry[0].shape)))

    def _without_gradient(self, names: Sequence[str]) -> list[str]:
        """Return groups without a gradient of the output, beyond rounding, at their positions in their largest tensor."""
        places = {name: self._largest(name) for name in names}
        tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        leaves = {t.name: tensors[t.name] for t, _, _ in places.values()}
        required_grad = {name: tensor.requires_grad for name, tensor in tensors.items()}
        try:
            with lent(self.model, self.state, self.dtype), torch.enable_grad():
                for name, tensor in tensors.items():
                    tensor.requires_grad_(name in leaves)
                outputs = outputs_of(self.model, self.inputs[0])
                weighted = [(t * torch.randn(t.shape, generator=self.generator).to(t)).sum() for t in outputs if t.requires_grad]
                total = torch.stack(weighted).sum()
                gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except Exception:
            return list(names)  # nothing to differentiate, or code that can't be
        finally:
            for name, tensor in tensors.items():
                tensor.requires_grad_(required_grad[name])
        gradient = dict(zip(leaves, gradients, strict=True))

        def has_gradient(tensor: LabelledTensor, axis: int, span: Span) -> bool:
            g = gradient[tensor.name]
            if g is None:
                return False
            if span.index.size < tensor.shape[axis]:
                g = tensor.unfold(g).index_select(axis, torch.as_tensor(span.index.ravel()))
            return float(torch.linalg.vector_norm(g, ord=float("inf"))) > _ROUNDING * (1 + abs(float(total.detach())))

        return [name for name, place in places.items() if not has_gradient(*place)]

    def _ignores(self, name: str, places: Sequence[Place]) -> bool:
        """Return whether leaving a group in place on any one of some axes, while it moves on the others, changes nothing."""
        rolled = self.spec.orders(lambda n: np.roll(np.arange(n), 1))
        order = {n: rolled[n] for unit in self.spec.permutation_units if name in unit for n in unit}
        all_moved = self._relabelled(order, {})
        tol = min(self.tol, _ROUNDING) if self.tol < 1e-4 else self.tol  # deep attention hardly depends on its scores
        for tensor, axis in dict.fromkeys((t, a) for t, a, _ in places):
            spans = tuple(() if a == axis else s for a, s in enumerate(tensor.spans))
            moved_elsewhere = relabel(self.state[tensor.name], dataclasses.replace(tensor, spans=spans), order, {})
            state = {**all_moved, tensor.name: moved_elsewhere}
            if not self._same(self.model, state, lambda t, labels: relabel(t, labels, order, {}), tol):
                return False
        return True

    def check_same_function(self, model: nn.Module, position: int, constants: State = MappingProxyType({})) -> None:
        """Check that another plain model computes the same with the same random parameters.

        Parameters
        ----------
        model : Module
        position : int
            Position of the model, for messages.
        constants : mapping of str to Tensor
            Constants of the model that are replaced.

        Raises
        ------
        ArchitectureMismatchError
            If it does not.
        """
        replaced = {n: t.to("cpu", self.dtype if t.is_floating_point() else t.dtype, copy=True) for n, t in constants.items()}
        try:
            same = self._same(model, {**self.state, **replaced})
        except Exception:
            same = False
        if not same:
            raise ArchitectureMismatchError(
                f"Models 0 and {position} have parameters of the same names and shapes but compute different functions of them. "
                "Only models of one architecture can be fused (activations, strides and the order of layers included)."
            )

    def widens(self, wide: nn.Module, spec: NetworkSpec) -> bool:
        """Return whether repeating every unit, and dividing the weights of its readers, preserves the function.

        Parameters
        ----------
        wide : Module
            The network resized to multiples of its widths.
        spec : NetworkSpec
            That of `wide`.
        """
        copies = self.spec.copies(spec)
        wide_labels = {id(old.labels): new.labels for old, new in zip(self.spec.states, spec.states, strict=True)}
        small = copy.copy(self)  # other threads may share this check
        small.state = self._random_state(_SMALL_GAIN)  # a one-hot softmax hides its temperature
        small.expected = [self._run(self.model, small.state, x) for x in self.inputs]
        for check in (self, small):
            wide_state = {n: repeat_units(t, self.spec.tensors[n], spec.tensors[n], copies) for n, t in check.state.items()}
            same = check._same(wide, wide_state, lambda t, labels: repeat_state_units(t, labels, wide_labels[id(labels)], copies))
            del wide_state  # frees memory before the next
            if not same:
                return False
        return True


def _with_example_integers(drawn: Any, example: Any) -> Any:
    """Return random real numbers, but integers and booleans of the example."""
    return drawn if not isinstance(example, Tensor) or example.is_floating_point() else example
