"""Discovery: from modules to verified neuron groups."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..exceptions import DiscoveryError, FusionWarning, WidthError
from ..layers import declaration_of
from ..network.spec import NetworkSpec
from ..network.types import Inputs
from .check import SelfCheck
from .comparison import check_cells, check_names, check_specs
from .constants import check_same_function, constants_of
from .export import export
from .grouping import group_units
from .inputs import as_inputs, guess_inputs, why_guess_failed
from .interpreter import Interpreter
from .isolation import watched_assignments
from .modules import plain_copy, reorder_tensors
from .parameter_access import refuse_constants, refuse_views
from .parametrization_limits import drop_unrepresentable
from .ranges import returns_probabilities
from .resizing import resize
from .spec_changes import restrict
from .states import declared_states, resized_inputs, with_states
from .tensors import aliases, floating_state, tensor_shapes

__all__ = ["Architecture", "discover", "discover_all", "with_separate_networks"]


def discover(model: nn.Module, example_inputs: Any = None) -> NetworkSpec:
    """Find the neuron groups of a network and verify them.

    Parameters
    ----------
    model : Module
    example_inputs : tuple of Tensor, Tensor or mapping, optional
        Positional arguments of ``model(*inputs)``, or its keyword arguments by name, as a tokenizer returns them; guessed for
        a model that begins with a linear, recurrent or embedding layer.

    Returns
    -------
    NetworkSpec
        ``print(graph)`` shows the groups as a table.

    Raises
    ------
    DiscoveryError, SelfCheckError

    Examples
    --------
    >>> import torch
    >>> print(discover(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))))
    group  size  scale  sign  computed by             read by
    -----  ----  -----  ----  ----------------------  -------
    0      3     yes    no    0.weight[0], 0.bias[0]  2.weight[1]
    91.3% of all values belong to these neurons
    """
    return Architecture.of(model, example_inputs).spec


@dataclasses.dataclass(eq=False)
class Architecture:
    """The verified groups of one network, and what is needed to build it in other widths.

    Attributes
    ----------
    plain : Module
        A plain copy of the network.
    spec : NetworkSpec
    inputs : tuple
        Example inputs.
    check : SelfCheck
    """

    plain: nn.Module
    spec: NetworkSpec
    inputs: Inputs
    check: SelfCheck

    @classmethod
    def of(
        cls, model: nn.Module, example_inputs: Any = None, *, plain: nn.Module | None = None, warn: bool = True
    ) -> Architecture:
        """Discover one model; see `discover`.

        Parameters
        ----------
        model : Module
        example_inputs : tuple of Tensor, Tensor or mapping, optional
        plain : Module, optional
            A plain copy of the model that the architecture may own and run with other tensors; made by default. It is copied if
            it is on another device or in half precision.
        warn : bool, default=True
            Whether to warn of parameters whose neurons stay in place.
        """
        if plain is None or not _can_be_traced(plain):
            plain = plain_copy(model).to("cpu")
            plain = plain if _can_be_traced(plain) else plain.float()
        refuse_views(model)
        for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
            if tensor.is_complex():
                raise DiscoveryError(f"Networks must have real tensors only. Got complex {name!r} in {type(model).__name__}.")
        dtype = next((t.dtype for t in floating_state(plain).values()), torch.float32)
        inputs = guess_inputs(plain) if example_inputs is None else as_inputs(example_inputs, plain)
        inputs = pytree.tree_map(lambda leaf: _to_cpu(leaf, dtype), inputs)
        try:
            spec = _trace(plain, inputs)
        except DiscoveryError as error:
            raise why_guess_failed(plain, inputs, error) if example_inputs is None else error from error.__cause__
        check = SelfCheck(plain, spec, inputs)
        spec = drop_unrepresentable(model, check.verify())
        if warn and spec.frozen:
            shown = "; ".join(f"{name}: {why}" for name, why in spec.frozen[:8])
            more = f"; and {len(spec.frozen) - 8} more" if len(spec.frozen) > 8 else ""
            counted = "1 parameter has" if len(spec.frozen) == 1 else f"{len(spec.frozen)} parameters have"
            consequence = (
                "" if spec.groups else f"{type(model).__name__} has no neurons that can move: fusion is a plain average. "
            )
            warnings.warn(
                f"{consequence}{counted} neurons that stay in place: {shown}{more}. doc/adapters.md shows how "
                "to add a rule, and how to declare a state.",
                FusionWarning,
                stacklevel=3,
            )
        return cls(plain, spec, inputs, check)

    def inputs_for(self, model: nn.Module) -> Inputs:
        """Return the example inputs with declared states in the widths of another model of this architecture."""
        sizes, shapes = dict(self.spec.sizes), tensor_shapes(model)
        for name, labels in self.spec.tensors.items():
            for axis, spans in enumerate(labels.spans):
                groups = {s.group for s in spans}
                if len(groups) == 1 and not len(labels.rest(axis)):
                    sizes[groups.pop()] = shapes[name][axis] // sum(s.index.shape[1] for s in spans)
        return resized_inputs(self.inputs, self.spec, sizes)

    def resized(self, sizes: Mapping[str, int]) -> Architecture:
        """Return the same architecture with other group sizes, with its layout discovered anew.

        Raises
        ------
        WidthError
            If the resized network does not run, or has other groups.
        """
        if dict(sizes) == self.spec.sizes:
            return self
        wide, inputs = resize(self.plain, self.spec, sizes), resized_inputs(self.inputs, self.spec, sizes)
        spec = self.check_widening(sizes, wide)
        self._check_blocks(sizes)
        try:
            spec = restrict(_trace(wide, inputs), self.spec) if spec is None else spec
        except DiscoveryError as error:
            raise WidthError(f"The network does not run with widths {dict(sizes)}. {error}") from error
        spec = dataclasses.replace(spec, frozen=self.spec.frozen)
        if spec.sizes != dict(sizes):
            raise WidthError(
                f"Asked for widths {dict(sizes)}, but the resized network has {spec.sizes}: these groups depend on each other."
            )
        return Architecture(wide, spec, inputs, self.check)

    def check_widening(self, sizes: Mapping[str, int], wide: nn.Module | None = None) -> NetworkSpec | None:
        """Check that doubling the groups that change their sizes preserves the function, one factor at a time.

        Returns
        -------
        NetworkSpec or None
            That of `wide`, the network in these sizes, if they are the doubled ones, so that it was traced.

        Raises
        ------
        WidthError
            Naming the groups that cannot be widened.
        """
        by_factor: dict[frozenset[float], list[list[str]]] = {}
        for unit in self.spec.permutation_units:
            factors = frozenset(sizes[n] / self.spec.sizes[n] for n in unit) - {1.0}
            if factors:
                by_factor.setdefault(factors, []).append(unit)
        spec = None
        for units in by_factor.values():
            why, spec = self._doubled([name for unit in units for name in unit], sizes, wide)
            if why:
                wrong = [name for unit in units if self._why_doubling_fails(unit) for name in unit]
                wrong = wrong or [name for unit in units for name in unit]
                raise WidthError(
                    f"The widths of groups {wrong} can't change: with every neuron doubled, {why}. Keep their sizes, or change "
                    "widths that depend on each other together, by a float for target_widths."
                )
        return spec

    def _check_blocks(self, sizes: Mapping[str, int]) -> None:
        """Check that blocks hold equally many neurons, and other numbers than before only if they may."""
        for group in self.spec.groups.values():
            if group.block_group is None:
                continue
            block_size, remainder = divmod(sizes[group.name], sizes[group.block_group])
            previous = group.size // self.spec.sizes[group.block_group]
            why = "a block must hold a whole number of them" if remainder else ""
            if block_size != previous and not remainder:
                why = self._why_doubling_fails([group.name])
            if why:
                raise WidthError(
                    f"The {group.size} neurons of group {group.name!r} lie in {self.spec.sizes[group.block_group]} blocks "
                    f"({group.block_group!r}) of {previous}. Got {sizes[group.name]} in {sizes[group.block_group]}: {why}. "
                    "Change both in proportion, by a float for target_widths."
                )

    def _why_doubling_fails(self, names: Sequence[str]) -> str:
        """Return why the network with some groups doubled computes something else; empty if it does not."""
        return self._doubled(names, {}, None)[0]

    def _doubled(
        self, names: Sequence[str], target: Mapping[str, int], target_network: nn.Module | None
    ) -> tuple[str, NetworkSpec | None]:
        """Return why doubling some groups fails, and the spec of the network in the target's sizes if it is the doubled one."""
        sizes = {n: size * (2 if n in names else 1) for n, size in self.spec.sizes.items()}
        is_target = target_network is not None and sizes == dict(target)
        try:
            wide = target_network if target_network is not None and is_target else resize(self.plain, self.spec, sizes)
            spec = restrict(_trace(wide, resized_inputs(self.inputs, self.spec, sizes)), self.spec)
            if spec.sizes != sizes:
                return "its groups differ", None
            same = self.check.widens(wide, spec)
        except Exception as error:  # it does not run, or its blocks differ
            why = f"{error} A size may be written into the code" if isinstance(error, DiscoveryError) else str(error)
            return why, None
        why = "" if same else "the network computes something else (a softmax, norm or tie over the neurons)"
        return why, spec if is_target else None


def discover_all(
    models: Sequence[nn.Module], example_inputs: Any = None, plains: Sequence[nn.Module] | None = None
) -> list[Architecture]:
    """Discover several models that must share one architecture up to the sizes of their groups.

    Parameters
    ----------
    models : list of Module
    example_inputs : tuple of Tensor, Tensor or mapping, optional
    plains : list of Module, optional
        Plain copies of the models; made by default. Their tensors are brought into one order, and the architectures may own
        them: see `Architecture.of` and `with_separate_networks`.

    Raises
    ------
    ArchitectureMismatchError
        Naming the first difference.
    """
    plains = [plain_copy(m) for m in models] if plains is None else plains
    with watched_assignments():
        return _discover_all(models, example_inputs, plains)


def _discover_all(models: Sequence[nn.Module], example_inputs: Any, plains: Sequence[nn.Module]) -> list[Architecture]:
    architectures: list[Architecture] = []
    for position, (model, plain) in enumerate(zip(models, plains, strict=True)):
        if position:
            check_cells(plains[0], plain, position)
            check_names(plains[0], plain, position)
            reorder_tensors(plains[0], plain)
        same = next(
            (a for a in architectures if tensor_shapes(a.plain) == tensor_shapes(plain) and type(a.plain) is type(plain)), None
        )
        if same is not None:
            check_same_function(same.check, same.plain, plain, position)
            architectures.append(same)
            continue
        inputs = architectures[0].inputs_for(plain) if architectures and architectures[0].spec.states else example_inputs
        architecture = Architecture.of(plain if position else model, inputs, plain=plain, warn=not position)
        if position:
            architecture.spec = restrict(architecture.spec, architectures[0].spec)
            check_specs(architectures[0].spec, architecture.spec, position)
            check_same_function(architecture.check, plain, plain, position, constants_of(plains[0], fitting=plain))
        architectures.append(architecture)
    return architectures


def with_separate_networks(architectures: Sequence[Architecture]) -> list[Architecture]:
    """Return the same architectures with separate copies of the networks.

    Fits can share them, while each runs its own copies of the parents.
    """
    separate = {}
    for architecture in dict.fromkeys(architectures):
        check, plain = copy.copy(architecture.check), plain_copy(architecture.plain)
        check.model = plain
        separate[architecture] = dataclasses.replace(architecture, plain=plain, check=check)
    return [separate[a] for a in architectures]


def _can_be_traced(plain: nn.Module) -> bool:
    """Return whether all tensors are on the CPU and none in half precision."""
    tensors = floating_state(plain).values()
    return not any(t.dtype in (torch.float16, torch.bfloat16) or t.device.type != "cpu" for t in tensors)


def _trace(plain: nn.Module, inputs: Inputs) -> NetworkSpec:
    """Trace a plain network, and group its units."""
    floating, states = floating_state(plain), declared_states(plain, inputs)
    program = export(plain, inputs)
    interpreter = Interpreter(program, aliases(plain), floating, states)
    unused = {
        f"{path}.{leaf}".lstrip(".") for path, m in plain.named_modules() for leaf in getattr(declaration_of(m), "unused", ())
    }
    missing = sorted({n for n, _ in plain.named_parameters()}.intersection(floating) - interpreter.reached - unused)
    refuse_constants(plain, program, missing)
    if missing:
        raise DiscoveryError(
            f"The forward of {type(plain).__name__} never uses {missing}. Give example_inputs that reach them, or declare them: "
            "sklearn_wbfuse.layers.declare(ModuleClass, unused=(name, ...))."
        )
    axes = {key: ids.numpy() for key, ids in interpreter.axes.items() if key[0] in interpreter.reached}
    shapes = dict(interpreter.shapes)
    names = {key: f"state {'given' if key[0] else 'returned'} {key[1:]}" for key in states.labels}
    shapes |= {names[key]: tuple(ids.shape) for key, ids in states.labels.items()}
    state_axes = {(names[key], 0): ids.numpy() for key, ids in states.labels.items()}
    spec = group_units(interpreter.constraints, state_axes | axes, shapes, tuple(interpreter.operations), interpreter.diagonal)
    return dataclasses.replace(with_states(spec, names), ends_in_probabilities=returns_probabilities(program))


def _to_cpu(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().to("cpu")
    return leaf.to(dtype) if leaf.is_floating_point() else leaf
