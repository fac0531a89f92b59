"""Discovery: modules in, verified neuron groups out."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..exceptions import ArchitectureMismatchError, DiscoveryError, FusionWarning, WidthError
from ..layers import declaration_of
from ..network.spec import NetworkSpec
from .check import SelfCheck
from .constants import computes_the_same, constants_of
from .contexts import watched_assignments
from .export import export
from .grouping import group_units
from .inputs import as_inputs, guess_inputs, why_guess_failed
from .interpreter import Interpreter
from .limits import within_limits
from .modules import in_order_of, plain_copy, resize
from .past import refuse_constants, refuse_views
from .ranges import returns_probabilities
from .restricted import like
from .states import declared_states, resized_inputs, with_states
from .tensors import aliases, floating_state

__all__ = ["Architecture", "apart", "discover", "discover_all"]


def discover(model: nn.Module, example_inputs: Any = None) -> NetworkSpec:
    """Find the neuron groups of a network and verify them.

    Parameters
    ----------
    model : Module
    example_inputs : tuple of Tensor, Tensor or mapping, optional
        Positional arguments of ``model(*inputs)``, or its keyword arguments by name, such as a tokenizer returns; guessed for
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
    """One network's verified groups, and what is needed to build it in other widths."""

    plain: nn.Module
    spec: NetworkSpec
    inputs: tuple[Any, ...]
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
            A plain copy of the model that the architecture may have, and run with other tensors; made if not given. Of one on
            another device, or in half precision, it takes a copy.
        warn : bool, default=True
            Whether parameters whose neurons stay in place are told of.
        """
        if plain is None or not _can_be_traced(plain):
            plain = plain_copy(model).to("cpu")
            plain = plain if _can_be_traced(plain) else plain.float()
        refuse_views(model)
        for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
            if tensor.is_complex():
                raise DiscoveryError(
                    f"{name!r} of {type(model).__name__} is complex; only networks of real tensors can be fused."
                )
        dtype = next((t.dtype for t in floating_state(plain).values()), torch.float32)
        inputs = guess_inputs(plain) if example_inputs is None else as_inputs(example_inputs, plain)
        inputs = pytree.tree_map(lambda t: _like(t, dtype), inputs)
        try:
            spec = _trace(plain, inputs)
        except DiscoveryError as error:
            raise why_guess_failed(plain, inputs, error) if example_inputs is None else error from error.__cause__
        check = SelfCheck(plain, spec, inputs)
        spec = within_limits(model, check.verify())
        if warn and spec.frozen:
            shown = "; ".join(f"{name}: {why}" for name, why in spec.frozen[:8])
            more = f"; and {len(spec.frozen) - 8} more" if len(spec.frozen) > 8 else ""
            none = "" if spec.groups else f"{type(model).__name__} has no neurons that can move: fusion is a plain average. "
            warnings.warn(
                f"{none}{len(spec.frozen)} parameters have neurons that stay in place: {shown}{more}. doc/adapters.md shows how "
                "to add a rule, and how to declare a state.",
                FusionWarning,
                stacklevel=3,
            )
        return cls(plain, spec, inputs, check)

    def inputs_for(self, model: nn.Module) -> tuple[Any, ...]:
        """The example inputs with declared states in the widths of another model of this architecture."""
        sizes, shapes = dict(self.spec.sizes), _shapes(model)
        for name, labels in self.spec.tensors.items():
            for axis, spans in enumerate(labels.spans):
                groups = {s.group for s in spans}
                if len(groups) == 1 and not len(labels.rest(axis)):
                    sizes[groups.pop()] = shapes[name][axis] // sum(s.index.shape[1] for s in spans)
        return resized_inputs(self.inputs, self.spec, sizes)

    def resized(self, sizes: Mapping[str, int]) -> Architecture:
        """The same architecture with other group sizes, its own layout discovered afresh.

        Raises
        ------
        WidthError
            If the resized network does not run, or its groups come out otherwise.
        """
        if dict(sizes) == self.spec.sizes:
            return self
        wide, inputs = resize(self.plain, self.spec, sizes), resized_inputs(self.inputs, self.spec, sizes)
        spec = self.check_widening(sizes, wide)
        self._check_blocks(sizes)
        try:
            spec = like(_trace(wide, inputs), self.spec) if spec is None else spec
        except DiscoveryError as error:
            raise WidthError(f"The network does not run with widths {dict(sizes)}: {error}") from error
        spec = dataclasses.replace(spec, frozen=self.spec.frozen)
        if spec.sizes != dict(sizes):
            raise WidthError(
                f"Asked for widths {dict(sizes)}, but the resized network has {spec.sizes}: these groups depend on each other."
            )
        return Architecture(wide, spec, inputs, self.check)

    def check_widening(self, sizes: Mapping[str, int], wide: nn.Module | None = None) -> NetworkSpec | None:
        """Doubling the groups that are to have other sizes must keep the function; those of one factor at a time.

        Returns
        -------
        NetworkSpec or None
            Of `wide`, the network in these sizes, if they are the doubled ones, so that it was traced.

        Raises
        ------
        WidthError
            Naming the groups that do not widen.
        """
        by_factor: dict[frozenset[float], list[list[str]]] = {}
        for family in self.spec.permutation_units:
            factors = frozenset(sizes[n] / self.spec.sizes[n] for n in family) - {1.0}
            if factors:
                by_factor.setdefault(factors, []).append(family)
        spec = None
        for permutation_units in by_factor.values():
            why, spec = self._doubled([name for family in permutation_units for name in family], sizes, wide)
            if why:
                wrong = [name for family in permutation_units if self._doubling_fails(family) for name in family]
                wrong = wrong or [name for family in permutation_units for name in family]
                raise WidthError(
                    f"The widths of groups {wrong} can't change: with every neuron doubled, {why}. Keep their sizes; widths that "
                    "depend on each other can only change together, as a float for target_widths does."
                )
        return spec

    def _check_blocks(self, sizes: Mapping[str, int]) -> None:
        """Blocks hold equally many neurons, and others than before only if they may."""
        for group in self.spec.groups.values():
            if group.block_group is None:
                continue
            each, before = divmod(sizes[group.name], sizes[group.block_group]), group.size // self.spec.sizes[group.block_group]
            why = "" if each[1] == 0 else "a block must hold a whole number of them"
            if each != (before, 0) and not why:
                why = self._doubling_fails([group.name])
            if why:
                raise WidthError(
                    f"The {group.size} neurons of group {group.name!r} lie in {self.spec.sizes[group.block_group]} blocks "
                    f"({group.block_group!r}) of {before}. Asked for {sizes[group.name]} in {sizes[group.block_group]}: {why}. "
                    "Change both in proportion, as a float for target_widths does."
                )

    def _doubling_fails(self, names: Sequence[str]) -> str:
        """Why the network with some groups doubled computes something else; empty if it does not."""
        return self._doubled(names, {}, None)[0]

    def _doubled(
        self, names: Sequence[str], target: Mapping[str, int], given: nn.Module | None
    ) -> tuple[str, NetworkSpec | None]:
        """Why doubling some groups fails; and the graph of the network of the target's sizes, if it is the doubled one."""
        sizes = {n: size * (2 if n in names else 1) for n, size in self.spec.sizes.items()}
        is_target = given is not None and sizes == dict(target)
        try:
            wide = given if given is not None and is_target else resize(self.plain, self.spec, sizes)
            spec = like(_trace(wide, resized_inputs(self.inputs, self.spec, sizes)), self.spec)
            if spec.sizes != sizes:
                return "its groups come out otherwise", None
            same = self.check.widens(wide, spec)
        except Exception as error:  # it does not run, or its blocks come out otherwise
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
        Plain copies of the models, made if not given. Their tensors are brought into one order, and architectures may have them:
        see `Architecture.of` and `apart`.

    Raises
    ------
    ArchitectureMismatchError
        Naming the first difference.
    """
    plains = [plain_copy(m) for m in models] if plains is None else plains
    with watched_assignments():
        return _discover_all(models, example_inputs, plains)


def _discover_all(models: Sequence[nn.Module], example_inputs: Any, plains: Sequence[nn.Module]) -> list[Architecture]:
    found: list[Architecture] = []
    for position, (model, plain) in enumerate(zip(models, plains, strict=True)):
        if position:
            _compare_cells(plains[0], plain, position)
            _compare_names(plains[0], plain, position)
            in_order_of(plains[0], plain)
        twin = next((a for a in found if _shapes(a.plain) == _shapes(plain) and type(a.plain) is type(plain)), None)
        if twin is not None:
            computes_the_same(twin.check, twin.plain, plain, position)
            found.append(twin)
            continue
        inputs = found[0].inputs_for(plain) if found and found[0].spec.states else example_inputs
        architecture = Architecture.of(plain if position else model, inputs, plain=plain, warn=not position)
        if position:
            architecture.spec = like(architecture.spec, found[0].spec)
            _compare_specs(found[0].spec, architecture.spec, position)
            computes_the_same(architecture.check, plain, plain, position, constants_of(plains[0], fitting=plain))
        found.append(architecture)
    return found


def apart(architectures: Sequence[Architecture]) -> list[Architecture]:
    """The same architectures with networks of their own: for fits to share, each of which runs its own copies of the parents."""
    own = {}
    for architecture in dict.fromkeys(architectures):
        check, plain = copy.copy(architecture.check), plain_copy(architecture.plain)
        check.model = plain
        own[architecture] = dataclasses.replace(architecture, plain=plain, check=check)
    return [own[a] for a in architectures]


def _can_be_traced(plain: nn.Module) -> bool:
    tensors = floating_state(plain).values()
    return not any(t.dtype in (torch.float16, torch.bfloat16) or t.device.type != "cpu" for t in tensors)


def _trace(plain: nn.Module, inputs: tuple[Any, ...]) -> NetworkSpec:
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
            f"The forward of {type(plain).__name__} never uses {missing}; give example_inputs that reach them, or declare them: "
            "sklearn_wbfuse.layers.declare(ModuleClass, unused=(name, ...))."
        )
    axes = {key: ids.numpy() for key, ids in interpreter.axes.items() if key[0] in interpreter.reached}
    shapes = dict(interpreter.shapes)
    names = {key: f"state {'given' if key[0] else 'returned'} {key[1:]}" for key in states.labels}
    shapes |= {names[key]: tuple(ids.shape) for key, ids in states.labels.items()}
    state_axes = {(names[key], 0): ids.numpy() for key, ids in states.labels.items()}
    spec = group_units(interpreter.constraints, state_axes | axes, shapes, tuple(interpreter.operations), interpreter.diagonal)
    return dataclasses.replace(with_states(spec, names), ends_in_probabilities=returns_probabilities(program))


def _like(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().to("cpu")
    return leaf.to(dtype) if leaf.is_floating_point() else leaf


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in floating_state(model).items()}


def _compare_cells(first: nn.Module, other: nn.Module, position: int) -> None:
    cells = dict(first.named_modules())
    for path, module in other.named_modules():
        twin = cells.get(path)
        if isinstance(module, nn.RNNBase) and isinstance(twin, nn.RNNBase) and module.mode != twin.mode:
            raise ArchitectureMismatchError(
                f"Models 0 and {position} have different recurrent layers: {path!r} is {twin.mode} in the first and "
                f"{module.mode} in the other."
            )


def _compare_names(first: nn.Module, other: nn.Module, position: int) -> None:
    a, b = _shapes(first), _shapes(other)
    if set(a) != set(b):
        only = [n for n in a if n not in b][:3], [n for n in b if n not in a][:3]
        numbered = Counter(re.sub(r"\d+", "", n) for n in a) == Counter(re.sub(r"\d+", "", n) for n in b)
        hint = (
            " The names differ in numbers alone: give the layers of all models the same names (keras.utils.clear_session() "
            "before each model is built, or keras.models.clone_model)."
        )
        raise ArchitectureMismatchError(
            f"Models 0 and {position} have different parameters: only model 0 has {only[0]}, "
            f"only model {position} has {only[1]}. Only models of one architecture can be fused; "
            f"their widths may differ, their depth may not.{hint if numbered else ''}"
        )


def _compare_specs(first: NetworkSpec, other: NetworkSpec, position: int) -> None:
    if first.operations != other.operations:
        differing = ((str(a), str(b)) for a, b in zip(first.operations, other.operations, strict=False) if a != b)
        more, fewer = next(differing, ("more operations", "fewer"))
        raise ArchitectureMismatchError(f"Models 0 and {position} compute different functions: {more} against {fewer}.")
    for name, tensor in first.tensors.items():
        twin = other.tensors[name]
        for axis, (left, right) in enumerate(zip(tensor.spans, twin.spans, strict=True)):
            where = f"Models 0 and {position}, {name!r} axis {axis}"
            if [(s.group, s.role, s.index.shape[1]) for s in left] != [(s.group, s.role, s.index.shape[1]) for s in right]:
                raise ArchitectureMismatchError(f"{where}: groups {[s.group for s in left]} against {[s.group for s in right]}.")
            if len(tensor.rest(axis)) != len(twin.rest(axis)):
                raise WidthError(
                    f"{where}: sizes {tensor.shape[axis]} and {twin.shape[axis]} of neurons that can't be moved must be equal."
                )
