"""What fusion needs of an ``nn.Module`` beside its graph: wrappers off, plain tensors, other widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..exceptions import InvalidModelError, NonFiniteError, WidthError
from ..layers import Blocks, sizes_of
from ..network.groups import LabelledTensor, Span
from ..network.spec import NetworkSpec
from .mistakes import hint_for_list, hint_for_model, is_rows
from .parametrized import materialise, parametrized_names, prune_again, pruned_names, write_parametrized
from .tensors import LENDING, floating_state

__all__ = [
    "device_of",
    "in_order_of",
    "is_finite",
    "plain_copy",
    "plain_state",
    "resize",
    "sizes_in",
    "unwrap",
    "validate_models",
    "write_back",
]


def unwrap(model: nn.Module) -> nn.Module:
    """Take off DataParallel and ``torch.compile`` wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def validate_models(models: Any) -> list[nn.Module]:
    """A list of unwrapped modules that can be fused as far as one can tell without running them.

    Raises
    ------
    InvalidModelError
        Not a list, empty, an element that is no ordinary module, lazy parameters, or two devices.
    NonFiniteError
        NaN or infinity in a parameter or buffer.
    """
    no_list = isinstance(models, (nn.Module, str, bytes, Mapping)) or not isinstance(models, (Sequence, Iterable))
    if no_list or is_rows(models):
        raise InvalidModelError(f"Expected a list of torch.nn.Module objects. {hint_for_list(models)}")
    given = list(models)
    if not given:
        raise InvalidModelError("Expected at least one model. Got an empty list.")
    checked = []
    for position, model in enumerate(given):
        hint = hint_for_model(model)
        if hint or not isinstance(model, nn.Module):
            raise InvalidModelError(f"Model {position} must be an ordinary torch.nn.Module. Got {type(model).__name__}{hint}.")
        plain = unwrap(model)
        for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
            if isinstance(tensor, (nn.UninitializedParameter, nn.parameter.UninitializedBuffer)):
                raise InvalidModelError(
                    f"Model {position}: parameter {name!r} is lazy and has no shape yet; run the model once first."
                )
        checked.append(plain)
    devices = {position: device_of(m) for position, m in enumerate(checked)}
    if len(set(devices.values())) > 1:
        shown = ", ".join(f"model {p} on {d}" for p, d in devices.items())
        raise InvalidModelError(f"All models must be on one device. Got {shown}; move them with .to(device).")
    masks = dict(checked[0].named_buffers())
    for position, model in enumerate(checked):
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not _may_be(tensor, masks.get(name)):
                raise NonFiniteError(f"Model {position}: {name!r} of shape {tuple(tensor.shape)} has NaN or infinite values.")
    return checked


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are: their sum tells at a tenth of the cost, unless it overflows."""
    return bool(tensor.detach().sum().isfinite()) or bool(tensor.isfinite().all())


def _may_be(tensor: Tensor, mask: Tensor | None) -> bool:
    """Whether the values are finite, or infinite in a buffer that is the same in all models (a mask of attention)."""
    if not tensor.is_floating_point() or is_finite(tensor):
        return True
    return mask is not None and not bool(tensor.isnan().any()) and torch.equal(mask, tensor)


def device_of(model: nn.Module) -> torch.device:
    """The one device of a model's tensors.

    Raises
    ------
    InvalidModelError
        If its tensors are on several devices.
    """
    devices = {t.device for t in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise InvalidModelError(
            f"{type(model).__name__} has tensors on several devices {sorted(map(str, devices))}; move it to one."
        )
    return devices.pop() if devices else torch.device("cpu")


def _attributes(model: nn.Module) -> Iterable[Any]:
    """What the modules of a network hold, one by one; most is empty, and looking into it costs as much as the copy."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                yield from value.values()
            elif name != "_modules" and not (value is None or (isinstance(value, (dict, int, str, float)) and not value)):
                yield from pytree.tree_leaves(value)


def _copy(model: nn.Module) -> nn.Module:
    try:
        try:
            twin = copy.deepcopy(model)
        except RuntimeError:  # tensors with a history are refused
            computed = [t for t in _attributes(model) if isinstance(t, Tensor) and not t.is_leaf]
            twin = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    except Exception as error:
        raise InvalidModelError(
            f"{type(model).__name__} can't be deep-copied ({error}); fusion needs copies, since it never changes your models. "
            "Detach tensors that are kept as attributes, or define __deepcopy__."
        ) from error
    for parameter in twin.parameters():
        parameter.grad = None
    return twin.eval()


def plain_copy(model: nn.Module, *, plain: bool = True) -> nn.Module:
    """An eval-mode deep copy without gradients; parametrized tensors become plain ones if `plain`."""
    twin = _copy(model)
    if plain:
        materialise(twin)
        _flatten(twin)
    return twin


def in_order_of(first: nn.Module, other: nn.Module) -> None:
    """Bring tensors that a plain network registers in another order (pruning, say, puts them last) into that of the first."""
    twins = dict(first.named_modules())
    for path, module in other.named_modules():
        twin = twins.get(path, module)
        for own, theirs in ((module._parameters, twin._parameters), (module._buffers, twin._buffers)):
            if own.keys() == theirs.keys():
                for name in list(theirs):
                    own[name] = own.pop(name)


def plain_state(model: nn.Module, plain: Callable[[nn.Module], nn.Module] = plain_copy) -> dict[str, Tensor]:
    """The floating tensors of a plain copy, to be read only.

    They are the model's own where nothing is parametrized, and no class says how it is copied: copies of Keras networks, say,
    have other names.
    """
    return floating_state(plain(model) if parametrized_names(model) or _is_copied_its_own_way(model) else model)


def _is_copied_its_own_way(model: nn.Module) -> bool:
    kinds = {type(module) for module in model.modules()}
    return any(hasattr(k, "__deepcopy__") or k.__reduce__ is not object.__reduce__ for k in kinds)


def resize(model: nn.Module, spec: NetworkSpec, sizes: Mapping[str, int]) -> nn.Module:
    """A copy of a plain model whose groups have other sizes; the new tensors hold zeros."""
    with LENDING:
        twin = plain_copy(model)
    if dict(sizes) == spec.sizes:
        return twin
    for labels in spec.tensors.values():
        shape = resized_shape(labels, spec, sizes)
        owner, _, leaf = labels.name.rpartition(".")
        tensor = getattr(twin.get_submodule(owner), leaf)
        if shape != tuple(tensor.shape):
            tensor.data = tensor.new_zeros(shape)  # it stays itself, wherever else the network holds it
    for path, module in twin.named_modules():
        _renumber(module, path, spec, sizes)
    _flatten(twin)
    for path, module in twin.named_modules():
        if isinstance(module, nn.RNNBase):
            gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
            asked = {name: len(p) // gates for name, p in module.named_parameters() if name.startswith("weight_hh")}
            if len(set(asked.values())) > 1:
                raise WidthError(
                    f"All levels and directions of the {type(module).__name__} {path!r} have one hidden size, but the widths "
                    f"asked for give {asked}. Give its groups the same width."
                )
    return twin


def resized_shape(labels: LabelledTensor, spec: NetworkSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a parameter in other group sizes."""
    shape = list(labels.shape)
    for axis, spans in enumerate(labels.spans):
        shape[axis] += _grown(spans, sizes)
    if labels.diagonal > 1:
        blocks = _multiplied(labels.diagonal, [s for spans in labels.spans for s in spans], spec, sizes)
        shape[1] //= blocks
    return tuple(shape)


def sizes_in(shapes: Mapping[str, Sequence[int]], spec: NetworkSpec) -> dict[str, int]:
    """Group sizes of a network of the same architecture, read off the shapes of its tensors.

    An axis has its fixed positions and, of each group on it, so many for every neuron. How many heads or groups of a norm there
    are is in no shape.

    Raises
    ------
    WidthError
        Naming the tensor whose shape no sizes give, or the group whose size can't be read.
    """
    axes = []
    for name, labels in spec.tensors.items():
        for axis, spans in enumerate(labels.spans[: 1 if labels.diagonal > 1 else None]):
            each: dict[str, int] = {}
            for span in spans:
                each[span.group] = each.get(span.group, 0) + span.index.shape[1]
            axes.append((shapes[name][axis] - len(labels.rest(axis)), each))
    sizes: dict[str, int] = {}
    for _ in spec.groups:  # each round reads one more group off a concatenation, at least
        for free, each in axes:
            unknown = [g for g in each if g not in sizes]
            if len(unknown) == 1:
                known = sum(sizes[g] * copies for g, copies in each.items() if g in sizes)
                sizes[unknown[0]] = max((free - known) // each[unknown[0]], 1)
    for name, size in spec.sizes.items():
        same = all(sizes.get(g.name, g.size) == g.size for g in spec.groups.values() if g.block_group == name)
        if name not in sizes and not same and name not in spec.fixed_count_blocks:
            raise WidthError(
                f"How many of the blocks {name!r} there are can't be read off the shapes; give a network of these widths."
            )
        sizes.setdefault(name, size)
    for name, labels in spec.tensors.items():
        wanted = resized_shape(labels, spec, sizes)
        if tuple(shapes[name]) != wanted:
            raise WidthError(
                f"{name!r} has the shape {tuple(shapes[name])}, which does not fit to the others: they ask for {wanted}."
            )
    return {name: sizes[name] for name in spec.groups}


def _renumber(module: nn.Module, path: str, spec: NetworkSpec, sizes: Mapping[str, int]) -> None:
    """Set the attributes of a module that repeat sizes."""
    for attribute, entry in sorted(sizes_of(module).items(), key=lambda item: callable(item[1])):
        if isinstance(entry, Blocks):
            setattr(module, attribute, _blocks(getattr(module, attribute), entry, path, spec, sizes))
        elif callable(entry):
            setattr(module, attribute, entry(module))
        else:
            name, axis, *divisor = entry
            tensor = _tensor(module, name)
            if tensor is not None:
                setattr(module, attribute, tensor.shape[axis] // (divisor[0] if divisor else 1))


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module if isinstance(module, Tensor) else None


def _blocks(number: int, entry: Blocks, path: str, spec: NetworkSpec, sizes: Mapping[str, int]) -> int:
    """How many blocks there are in other group sizes: each keeps its share, and a block of one unit is that unit."""
    labels = spec.tensors.get(f"{path}.{entry.parameter}".lstrip("."))
    if labels is None or number == 1:
        return number
    spans = labels.spans[entry.axis]
    if number == labels.shape[entry.axis]:
        return number + _grown(spans, sizes)
    return _multiplied(number, spans, spec, sizes)


def _grown(spans: Sequence[Span], sizes: Mapping[str, int]) -> int:
    """By how many positions an axis grows."""
    return sum((sizes[s.group] - len(s.index)) * s.index.shape[1] for s in spans)


def _multiplied(number: int, spans: Sequence[Span], spec: NetworkSpec, sizes: Mapping[str, int]) -> int:
    """A number of blocks, as many times as there are more of the blocks in which the units of an axis lie."""
    within = {spec.groups[s.group].block_group for s in spans} - {None}
    return number * sum(sizes[str(b)] for b in within) // sum(spec.sizes[str(b)] for b in within) if within else number


def _flatten(model: nn.Module) -> None:
    """Recurrent layers keep a second list of their weights, and for CUDA one block of memory."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
            module.flatten_parameters()


@torch.no_grad()
def write_back(
    template: nn.Module,
    state: Mapping[str, Tensor],
    *,
    sized: nn.Module,
    exact: bool = False,
    takes: bool = False,
    own: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A copy of `template` (wrapping, hooks, ``requires_grad``, ties, parametrizations) that holds `state`.

    Parameters
    ----------
    template : Module
        The first parent, unwrapped.
    state : mapping of str to Tensor
        Values by name, as in `floating_state` of a plain copy.
    sized : Module
        A plain copy with the right shapes.
    exact : bool
        Whether spectral norms hold values of a norm above 1, or bring them to norm 1; see `write_parametrized`.
    takes : bool
        Whether `sized` itself may become the result, in place of a copy.
    own : mapping of str to Tensor, optional
        The `plain_state` of the template, where it is known; shapes and dtypes are read of it.
    """
    parametrized = parametrized_names(template)
    own = plain_state(template) if own is None else own
    same = {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in floating_state(sized).items()}
    rigid = parametrized - pruned_names(template)
    if not same and rigid:
        raise WidthError(f"Parametrized tensors {sorted(rigid)} can't change their sizes; remove the parametrizations first.")
    result = plain_copy(template, plain=False) if same else sized if takes else plain_copy(sized)
    if not same:
        for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
            tensor.data = tensor.data.to(own[name].dtype if name in own else tensor.dtype)
        prune_again(result, template)
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        module = result.get_submodule(owner)
        if name in parametrized:
            write_parametrized(module, leaf, value, name, exact=exact)
        else:
            target = getattr(module, leaf)
            target.copy_(value)
    _flatten(result)
    return result
