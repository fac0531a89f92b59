"""Networks in other widths: copies, shapes of tensors, and sizes read from shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..exceptions import WidthError
from ..layers import Blocks, sizes_of
from ..network.groups import LabelledTensor, Span
from ..network.spec import NetworkSpec
from .modules import plain_copy, rebuild_flat_weights
from .tensors import LENDING

__all__ = ["resize", "resized_shape", "sizes_in"]


def resize(model: nn.Module, spec: NetworkSpec, sizes: Mapping[str, int]) -> nn.Module:
    """Return a copy of a plain model whose groups have other sizes; the new tensors hold zeros."""
    with LENDING:
        resized = plain_copy(model)
    if dict(sizes) == spec.sizes:
        return resized
    for labels in spec.tensors.values():
        shape = resized_shape(labels, spec, sizes)
        owner, _, leaf = labels.name.rpartition(".")
        tensor = getattr(resized.get_submodule(owner), leaf)
        if shape != tuple(tensor.shape):
            tensor.data = tensor.new_zeros(shape)  # the same object, since the network may also hold it elsewhere
    for path, module in resized.named_modules():
        _renumber(module, path, spec, sizes)
    rebuild_flat_weights(resized)
    for path, module in resized.named_modules():
        if isinstance(module, nn.RNNBase):
            gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
            hidden_sizes = {name: len(p) // gates for name, p in module.named_parameters() if name.startswith("weight_hh")}
            if len(set(hidden_sizes.values())) > 1:
                raise WidthError(
                    f"All levels and directions of a recurrent layer must have one hidden size. Got {hidden_sizes} in the "
                    f"{type(module).__name__} {path!r}. Give its groups the same width."
                )
    return resized


def resized_shape(labels: LabelledTensor, spec: NetworkSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of a parameter in other group sizes."""
    shape = list(labels.shape)
    for axis, spans in enumerate(labels.spans):
        shape[axis] += _grown(spans, sizes)
    if labels.diagonal > 1:
        blocks = _multiplied(labels.diagonal, [s for spans in labels.spans for s in spans], spec, sizes)
        shape[1] //= blocks
    return tuple(shape)


def sizes_in(shapes: Mapping[str, Sequence[int]], spec: NetworkSpec) -> dict[str, int]:
    """Return the group sizes of a network of the same architecture, read from the shapes of its tensors.

    An axis consists of its fixed positions and, for each group on it, a number of positions per neuron. The number of heads, or
    of the groups of a norm, appears in no shape.

    Raises
    ------
    WidthError
        Naming the tensor whose shape no sizes produce, or the group whose size cannot be read.
    """
    axes = []
    for name, labels in spec.tensors.items():
        for axis, spans in enumerate(labels.spans[: 1 if labels.diagonal > 1 else None]):
            copies_of: dict[str, int] = {}
            for span in spans:
                copies_of[span.group] = copies_of.get(span.group, 0) + span.index.shape[1]
            axes.append((shapes[name][axis] - len(labels.rest(axis)), copies_of))
    sizes: dict[str, int] = {}
    for _ in spec.groups:  # each round determines at least one more group of a concatenation
        for free, copies_of in axes:
            unknown = [g for g in copies_of if g not in sizes]
            if len(unknown) == 1:
                known_positions = sum(sizes[g] * copies for g, copies in copies_of.items() if g in sizes)
                sizes[unknown[0]] = max((free - known_positions) // copies_of[unknown[0]], 1)
    for name, size in spec.sizes.items():
        unchanged = all(sizes.get(g.name, g.size) == g.size for g in spec.groups.values() if g.block_group == name)
        if name not in sizes and not unchanged and name not in spec.fixed_count_blocks:
            raise WidthError(
                f"The number of blocks {name!r} must follow from the shapes of tensors. Got sizes {sizes} of other groups, which "
                "do not determine it. Give a network of these widths."
            )
        sizes.setdefault(name, size)
    for name, labels in spec.tensors.items():
        expected = resized_shape(labels, spec, sizes)
        if tuple(shapes[name]) != expected:
            raise WidthError(
                f"The shapes of all tensors must fit together. Got {name!r} of shape {tuple(shapes[name])}, but the others imply "
                f"{expected}."
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
    """Return the tensor at a dotted path in a module, or None."""
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module if isinstance(module, Tensor) else None


def _blocks(number: int, entry: Blocks, path: str, spec: NetworkSpec, sizes: Mapping[str, int]) -> int:
    """Return the number of blocks in other group sizes: each retains its share, and a block of one unit is that unit."""
    labels = spec.tensors.get(f"{path}.{entry.parameter}".lstrip("."))
    if labels is None or number == 1:
        return number
    spans = labels.spans[entry.axis]
    if number == labels.shape[entry.axis]:
        return number + _grown(spans, sizes)
    return _multiplied(number, spans, spec, sizes)


def _grown(spans: Sequence[Span], sizes: Mapping[str, int]) -> int:
    """Return by how many positions an axis grows."""
    return sum((sizes[s.group] - len(s.index)) * s.index.shape[1] for s in spans)


def _multiplied(number: int, spans: Sequence[Span], spec: NetworkSpec, sizes: Mapping[str, int]) -> int:
    """Return a number of blocks, multiplied in proportion to the blocks in which the units of an axis lie."""
    block_groups = {spec.groups[s.group].block_group for s in spans} - {None}
    if not block_groups:
        return number
    return number * sum(sizes[str(b)] for b in block_groups) // sum(spec.sizes[str(b)] for b in block_groups)
