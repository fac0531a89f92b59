"""Checks that networks share one architecture: recurrent cells, names of parameters, operations and groups."""

from __future__ import annotations

import re
from collections import Counter

from torch import nn

from ..exceptions import ArchitectureMismatchError, WidthError
from ..network.spec import NetworkSpec
from .tensors import tensor_shapes

__all__ = ["check_cells", "check_names", "check_specs"]


def check_cells(first: nn.Module, other: nn.Module, position: int) -> None:
    """Check that recurrent layers are of the same kind."""
    cells = dict(first.named_modules())
    for path, module in other.named_modules():
        cell = cells.get(path)
        if isinstance(module, nn.RNNBase) and isinstance(cell, nn.RNNBase) and module.mode != cell.mode:
            raise ArchitectureMismatchError(
                f"Models 0 and {position} have different recurrent layers: {path!r} is {cell.mode} in the first and "
                f"{module.mode} in the other."
            )


def check_names(first: nn.Module, other: nn.Module, position: int) -> None:
    """Check that parameters have the same names."""
    first_shapes, other_shapes = tensor_shapes(first), tensor_shapes(other)
    if set(first_shapes) != set(other_shapes):
        extra = [n for n in first_shapes if n not in other_shapes][:3], [n for n in other_shapes if n not in first_shapes][:3]
        without_numbers = [Counter(re.sub(r"\d+", "", n) for n in shapes) for shapes in (first_shapes, other_shapes)]
        hint = (
            " The names differ in numbers alone: give the layers of all models the same names (keras.utils.clear_session() "
            "before each model is built, or keras.models.clone_model)."
        )
        raise ArchitectureMismatchError(
            f"Models 0 and {position} have different parameters: only model 0 has {extra[0]}, "
            f"only model {position} has {extra[1]}. Only models of one architecture can be fused; "
            f"their widths may differ, their depth may not.{hint if without_numbers[0] == without_numbers[1] else ''}"
        )


def check_specs(first: NetworkSpec, other: NetworkSpec, position: int) -> None:
    """Check that operations are the same, and that the same groups occur on the axes of tensors."""
    if first.operations != other.operations:
        differing = ((str(a), str(b)) for a, b in zip(first.operations, other.operations, strict=False) if a != b)
        operation, other_operation = next(differing, ("more operations", "fewer"))
        raise ArchitectureMismatchError(
            f"Models 0 and {position} compute different functions: {operation} against {other_operation}."
        )
    for name, tensor in first.tensors.items():
        other_tensor = other.tensors[name]
        for axis, (left, right) in enumerate(zip(tensor.spans, other_tensor.spans, strict=True)):
            place = f"Models 0 and {position}, {name!r} axis {axis}"
            if [(s.group, s.role, s.index.shape[1]) for s in left] != [(s.group, s.role, s.index.shape[1]) for s in right]:
                raise ArchitectureMismatchError(f"{place}: groups {[s.group for s in left]} against {[s.group for s in right]}.")
            if len(tensor.rest(axis)) != len(other_tensor.rest(axis)):
                raise WidthError(
                    f"{place}: sizes {tensor.shape[axis]} and {other_tensor.shape[axis]} of neurons that can't be moved must be "
                    "equal."
                )
