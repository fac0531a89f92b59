"""What matching compares: the tensors of a network, freed of gauges, as blocks of neuron groups.

A norm by running statistics is an affine map; it is folded into the weights that compute its input, or stands as a scale
and a shift of its own. Blocks of tensors without any group carry nothing to match and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..groups import Graph, LabelledTensor, Span, take

__all__ = ["Feature", "features", "matching_view"]


@dataclass(frozen=True, eq=False)
class Feature:
    r"""One block of one tensor: what its axes are, the same for every model.

    Attributes
    ----------
    name : str
    groups : tuple of str
        The group of each axis of the array; a last axis holds everything fixed.
    roles : tuple of {"out", "in"}
    exponents : tuple of float
        Scale exponent of each axis.
    alpha : float
        Weight in the energy, :math:`\alpha_p`.
    """

    name: str
    groups: tuple[str, ...]
    roles: tuple[str, ...]
    exponents: tuple[float, ...]
    alpha: float = 1.0


def matching_view(graph: Graph, state: Mapping[str, Tensor]) -> list[tuple[LabelledTensor, Tensor]]:
    """The labelled tensors that matching sees, norms folded."""
    tensors = dict(graph.tensors)
    values = dict(state)
    for norm in graph.norms:
        var, mean = values.pop(norm.var), values.pop(norm.mean)
        labels = tensors.pop(norm.mean)
        tensors.pop(norm.var)
        scale = (var + norm.eps).rsqrt()
        shift = -mean * scale
        if norm.weight is not None:
            gain = values.pop(norm.weight)
            labels = replace(tensors.pop(norm.weight), name=norm.weight)
            scale, shift = scale * gain, shift * gain
        if norm.bias is not None:
            shift = shift + values.pop(norm.bias)
            tensors.pop(norm.bias)
        if norm.input_weight in values:
            if norm.input_bias in values:
                shift = shift + values.pop(norm.input_bias) * scale
                tensors.pop(norm.input_bias)
            weight = values[norm.input_weight]
            values[norm.input_weight] = weight * scale.view(-1, *[1] * (weight.dim() - 1))
            before = tensors[norm.input_weight]
            tensors[norm.input_weight] = replace(
                before, spans=(_scaled_alike(before.spans[0], labels.spans[0]), *before.spans[1:])
            )
        else:
            tensors[f"{labels.name}.scale"], values[f"{labels.name}.scale"] = labels, scale
        tensors[f"{labels.name}.shift"], values[f"{labels.name}.shift"] = labels, shift
    return [(tensors[name], values[name]) for name in tensors]


def _scaled_alike(spans: tuple[Span, ...], norm: tuple[Span, ...]) -> tuple[Span, ...]:
    """A folded weight scales as the norm does."""
    exponents = {s.group: s.exponent for s in norm}
    return tuple(replace(s, exponent=exponents.get(s.group, 0.0)) for s in spans)


def features(graph: Graph, state: Mapping[str, Tensor], alpha_h: float) -> tuple[list[Feature], list[Tensor]]:
    """Descriptions and arrays of all blocks in which a group stands."""
    described, arrays = [], []
    for labels, value in matching_view(graph, state):
        for block in labels.blocks():
            axes = block.axes
            if axes:
                alpha = alpha_h if labels.recurrent else 1.0
                described.append(
                    Feature(
                        labels.name,
                        tuple(s.group for s in axes),
                        tuple(s.role for s in axes),
                        tuple(s.exponent for s in axes),
                        alpha,
                    )
                )
                arrays.append(take(value, block))
    return described, arrays
