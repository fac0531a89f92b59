"""Normalisation: by running statistics, and over units, blocks of units or space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .elementwise import combine, row_blocks
from .labels import Constraints, LabelMap, Value
from .linear import opaque
from .registry import Blocks, register_rule, register_sizes

for _module in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    register_sizes(_module, num_features=("running_mean", 0))
for _instance in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d):
    register_sizes(_instance, num_features=("weight", 0))
for _layer in (nn.LayerNorm, nn.RMSNorm):
    register_sizes(_layer, normalized_shape=lambda m: m.normalized_shape if m.weight is None else tuple(m.weight.shape))
register_sizes(nn.GroupNorm, num_channels=("weight", 0), num_groups=Blocks("weight", 0))


@register_rule("aten::_native_batch_norm_legit_no_training")
def batch_norm(
    constraints: Constraints,
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
            out = opaque(constraints, "a batch norm across units", x, *given)
        else:
            constraints.fix(*(layer for v in given for layer in v.layers))
            out = Value(x.shape, x.layers)
        return out, Value(()), Value(())
    ids = units.vector(1)
    axes = {id(v): v.layers[0].vector(0) if v.layers else None for v in given}
    if any(labels is None for labels in axes.values()):
        return opaque(constraints, "a batch norm with constant statistics", x, *given), Value(()), Value(())
    for labels in axes.values():
        assert labels is not None
        constraints.unite(ids, labels)
        constraints.produces(labels)
    constraints.rigid(units, mean.layers[0], var.layers[0])
    scaled = [axes[id(v)] for v in (weight, bias) if v is not None]
    if len(scaled) == 2:
        constraints.same_factor(*scaled)  # type: ignore[arg-type]
    out_ids: Any = scaled[0] if weight is not None else constraints.fresh(len(ids))
    if weight is None:
        constraints.unite(out_ids, ids)
        constraints.rigid(LabelMap(out_ids))
    _leave_out(constraints, mean, var)
    if not mean.shared:
        _leave_out_bias(constraints, x)
    kept = [layer for layer in x.layers if layer is not units]
    return Value(x.shape, (*kept, LabelMap.along(out_ids, 1, x.shape))), Value(()), Value(())


def _leave_out(constraints: Constraints, *statistics: Value | None) -> None:
    """Running statistics are not what neurons are compared by."""
    constraints.uncompared.update(v.name for v in statistics if v is not None and v.name)


def _leave_out_bias(constraints: Constraints, x: Value) -> None:
    """Nor is a bias in front of a norm that takes off the mean of every unit alone."""
    units = x.layer(1)
    if x.bias and units is not None and all(layer is units for layer in x.touching(range(1, len(x.shape)))):
        constraints.uncompared.add(x.bias)


@register_rule("aten::_native_batch_norm_legit")
def batch_norm_of_the_batch(constraints: Constraints, x: Value, weight: Value | None, bias: Value | None, *options: Any) -> Any:
    """By the statistics of the batch, which are computed and not kept."""
    if isinstance(options[0], Value):
        given = [v for v in (x, weight, bias, *options[:2]) if v is not None]
        return opaque(constraints, "a batch norm in training mode", *given), Value(()), Value(())
    return batch_norm_layer(constraints, x, weight, bias, None, None, True), Value(()), Value(())


@register_rule("aten::batch_norm")
def batch_norm_layer(
    constraints: Constraints,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    training: bool,
    *options: float,
) -> Value:
    """The same as one operation of the network's code, or by the statistics of the batch where none are kept."""
    if mean is not None and var is not None:
        return batch_norm(constraints, x, weight, bias, mean, var, *options[:2])[0]
    _leave_out_bias(constraints, x)
    constraints.rigid(*x.layers)
    return _affine(constraints, x, weight, bias, [1])


def _affine(constraints: Constraints, x: Value, weight: Value | None, bias: Value | None, dims: Sequence[int]) -> Value:
    """Times a weight, plus a bias, each with an axis for every one of `dims`; scales go with them."""
    for value, kind in ((weight, "product"), (bias, "sum")):
        if value is not None:
            for layer in value.layers:
                constraints.produces(layer.core.reshape(-1))
            shape = [x.shape[d] if d in dims else 1 for d in range(len(x.shape))]
            x = combine(constraints, "a norm", [x, value.map(lambda ids, shape=shape: ids.reshape(shape))], kind)  # type: ignore[misc]
    return x


@register_rule("aten::layer_norm", "aten::rms_norm", "aten::native_layer_norm")
def layer_norm(
    constraints: Constraints, x: Value, shape: Sequence[int], weight: Value | None = None, bias: Any = None, *_: Any, **__: Any
) -> Value:
    """Mean 0 (not for the root mean square) and mean square 1 over the last dimensions: a symmetric function of all units there.

    Where units lie along more dimensions (a norm of each head), they are blocks; a weight that the blocks share keeps the
    order within them.
    """
    dims = range(len(x.shape) - len(shape), len(x.shape))
    constraints.rigid(*x.layers)
    for layer in x.touching(dims):
        if not set(layer.dims) <= set(dims):
            row_blocks(constraints, layer, dims)
    return _affine(constraints, Value(x.shape, x.layers), weight, bias if isinstance(bias, Value) else None, dims)


@register_rule("aten::group_norm")
def group_norm(
    constraints: Constraints, x: Value, groups: int, weight: Value | None = None, bias: Value | None = None, *_: Any, **__: Any
) -> Value:
    """Mean 0 and variance 1 over space and the channels of a group: channels lie in blocks."""
    constraints.rigid(*x.layers)
    units = x.layer(1)
    constraints.freeze([layer for layer in x.touching(range(1, len(x.shape))) if layer is not units], "a group norm across units")
    if units is not None and groups > 1:
        constraints.enclose(units.vector(1).view(groups, -1), "blocks")
    return _affine(constraints, Value(x.shape, x.layers if units is None else (units,)), weight, bias, [1])


@register_rule("aten::instance_norm")
def instance_norm(
    constraints: Constraints,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    *options: Any,
) -> Value:
    """Mean 0 and variance 1 over space, or running statistics, for each channel."""
    if mean is not None and var is not None and not options[0]:
        return batch_norm(constraints, x, weight, bias, mean, var, options[1], options[2])[0]
    constraints.rigid(*x.layers)
    across = x.touching(range(2, len(x.shape)))
    constraints.freeze(across, "an instance norm across units")
    kept = tuple(layer for layer in x.layers if all(layer is not k for k in across))
    _leave_out(constraints, mean, var)
    _leave_out_bias(constraints, x)
    for value in (mean, var):  # kept up in training alone
        if value is not None and x.layer(1) is not None and value.layers:
            constraints.unite(x.layer(1).vector(1), value.layers[0].vector(0))  # type: ignore[union-attr]
            constraints.produces(value.layers[0].vector(0))
            constraints.rigid(value.layers[0])
    return _affine(constraints, Value(x.shape, kept), weight, bias, [1])
