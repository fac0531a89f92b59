"""Normalisation by running statistics."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..groups import Norm
from .labels import Layer, Record, Value
from .linear import opaque
from .registry import register_rule, register_sizes

for _module in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    register_sizes(_module, num_features=("running_mean", 0))


@register_rule("aten::_native_batch_norm_legit_no_training")
def batch_norm(
    record: Record,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    var: Value,
    momentum: float,
    eps: float,
) -> tuple[Value, Value, Value]:
    """(x - mean) / sqrt(var + eps) * weight + bias, along dimension 1.

    The input does not scale (`eps` would notice); the output scales with the weight and bias.
    """
    given = [v for v in (weight, bias, mean, var) if v is not None]
    units = x.layer(1)
    if units is None or any(layer is not units for layer in x.touching(range(1, len(x.shape)))):
        if x.touching([1]):
            out = opaque(record, "a batch norm across units", x, *given)
        else:
            record.fix(*(layer for v in given for layer in v.layers))
            out = Value(x.shape, x.layers)
        return out, Value(()), Value(())
    ids = units.vector(1)
    axes = {id(v): v.layers[0].vector(0) if v.layers else None for v in given}
    if any(labels is None for labels in axes.values()):
        return opaque(record, "a batch norm with constant statistics", x, *given), Value(()), Value(())
    for labels in axes.values():
        assert labels is not None
        record.unite(ids, labels)
        record.computes(labels)
    record.rigid(units, mean.layers[0], var.layers[0])
    scaled = [axes[id(v)] for v in (weight, bias) if v is not None]
    if len(scaled) == 2:
        record.same_factor(*scaled)  # type: ignore[arg-type]
    out_ids: Any = scaled[0] if weight is not None else record.fresh(len(ids))
    if weight is None:
        record.unite(out_ids, ids)
        record.rigid(Layer(out_ids))
    if mean.name and var.name and not any(v.shared for v in given):
        names = [v.name if v is not None else None for v in (weight, bias)]
        record.norms.append(Norm(mean.name, var.name, names[0], names[1], eps, x.bias))
    kept = [layer for layer in x.layers if layer is not units]
    return Value(x.shape, (*kept, Layer.along(out_ids, 1, x.shape))), Value(()), Value(())
