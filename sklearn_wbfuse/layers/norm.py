"""Norms: by running statistics, and over units, blocks of units or space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .constraints import Constraints
from .elementwise import combine, row_blocks
from .labels import LabelMap, Value
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
    """Compute (x - mean) / sqrt(var + eps) * weight + bias, along dimension 1.

    The input does not scale (because of `eps`); the output scales with the weight and the bias.
    """
    parameters = [v for v in (weight, bias, mean, var) if v is not None]
    units = x.label_map(1)
    if units is None or any(label_map is not units for label_map in x.maps_along(range(1, len(x.shape)))):
        if x.maps_along([1]):
            out = opaque(constraints, "a batch norm across units", x, *parameters)
        else:
            constraints.fix(*(label_map for v in parameters for label_map in v.label_maps))
            out = Value(x.shape, x.label_maps)
        return out, Value(()), Value(())
    unit_ids = units.vector(1)
    labels_of = {id(v): v.label_maps[0].vector(0) if v.label_maps else None for v in parameters}
    if any(ids is None for ids in labels_of.values()):
        return opaque(constraints, "a batch norm with constant statistics", x, *parameters), Value(()), Value(())
    for ids in labels_of.values():
        assert ids is not None
        constraints.unite(unit_ids, ids)
        constraints.produces(ids)
    constraints.rigid(units, mean.label_maps[0], var.label_maps[0])
    affine = [labels_of[id(v)] for v in (weight, bias) if v is not None]
    if len(affine) == 2:
        constraints.same_factor(*affine)  # type: ignore[arg-type]
    out_ids: Any = affine[0] if weight is not None else constraints.fresh(len(unit_ids))
    if weight is None:
        constraints.unite(out_ids, unit_ids)
        constraints.rigid(LabelMap(out_ids))
    _leave_out(constraints, mean, var)
    if not mean.shared:
        _leave_out_bias(constraints, x)
    remaining = [label_map for label_map in x.label_maps if label_map is not units]
    return Value(x.shape, (*remaining, LabelMap.along(out_ids, 1, x.shape))), Value(()), Value(())


def _leave_out(constraints: Constraints, *statistics: Value | None) -> None:
    """Leave running statistics out of the comparison of neurons."""
    constraints.uncompared.update(v.name for v in statistics if v is not None and v.name)


def _leave_out_bias(constraints: Constraints, x: Value) -> None:
    """Leave out a bias before a norm that subtracts the mean of each unit, which cancels the bias."""
    units = x.label_map(1)
    if x.bias and units is not None and all(label_map is units for label_map in x.maps_along(range(1, len(x.shape)))):
        constraints.uncompared.add(x.bias)


@register_rule("aten::_native_batch_norm_legit")
def batch_norm_of_the_batch(constraints: Constraints, x: Value, weight: Value | None, bias: Value | None, *options: Any) -> Any:
    """Normalise by the statistics of the batch, which are computed and not stored."""
    if isinstance(options[0], Value):
        tensors = [v for v in (x, weight, bias, *options[:2]) if v is not None]
        return opaque(constraints, "a batch norm in training mode", *tensors), Value(()), Value(())
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
    """Normalise by running statistics, or by those of the batch if there are none, as one operation of the network's code."""
    if mean is not None and var is not None:
        return batch_norm(constraints, x, weight, bias, mean, var, *options[:2])[0]
    _leave_out_bias(constraints, x)
    constraints.rigid(*x.label_maps)
    return _affine(constraints, x, weight, bias, [1])


def _affine(constraints: Constraints, x: Value, weight: Value | None, bias: Value | None, dims: Sequence[int]) -> Value:
    """Multiply by a weight and add a bias, each with an axis for every one of `dims`; scales pass with them."""
    for value, kind in ((weight, "product"), (bias, "sum")):
        if value is not None:
            for label_map in value.label_maps:
                constraints.produces(label_map.compact.reshape(-1))
            shape = [x.shape[d] if d in dims else 1 for d in range(len(x.shape))]
            x = combine(constraints, "a norm", [x, value.map(lambda ids, shape=shape: ids.reshape(shape))], kind)  # type: ignore[misc]
    return x


@register_rule("aten::layer_norm", "aten::rms_norm", "aten::native_layer_norm")
def layer_norm(
    constraints: Constraints, x: Value, shape: Sequence[int], weight: Value | None = None, bias: Any = None, *_: Any, **__: Any
) -> Value:
    """Normalise the last dimensions to mean 0 (except for RMSNorm) and mean square 1, a symmetric function of their units.

    Where units lie along more dimensions (a norm of each head), they form blocks; a weight that the blocks share fixes the order
    within them.
    """
    dims = range(len(x.shape) - len(shape), len(x.shape))
    constraints.rigid(*x.label_maps)
    for label_map in x.maps_along(dims):
        if not set(label_map.dims) <= set(dims):
            row_blocks(constraints, label_map, dims)
    return _affine(constraints, Value(x.shape, x.label_maps), weight, bias if isinstance(bias, Value) else None, dims)


@register_rule("aten::group_norm")
def group_norm(
    constraints: Constraints, x: Value, groups: int, weight: Value | None = None, bias: Value | None = None, *_: Any, **__: Any
) -> Value:
    """Normalise over space and the channels of each group to mean 0 and variance 1: channels lie in blocks."""
    constraints.rigid(*x.label_maps)
    units = x.label_map(1)
    constraints.freeze(
        [label_map for label_map in x.maps_along(range(1, len(x.shape))) if label_map is not units], "a group norm across units"
    )
    if units is not None and groups > 1:
        constraints.enclose(units.vector(1).view(groups, -1), "blocks")
    return _affine(constraints, Value(x.shape, x.label_maps if units is None else (units,)), weight, bias, [1])


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
    """Normalise each channel over space to mean 0 and variance 1, or by running statistics."""
    if mean is not None and var is not None and not options[0]:
        return batch_norm(constraints, x, weight, bias, mean, var, options[1], options[2])[0]
    constraints.rigid(*x.label_maps)
    spatial_maps = x.maps_along(range(2, len(x.shape)))
    constraints.freeze(spatial_maps, "an instance norm across units")
    remaining = tuple(label_map for label_map in x.label_maps if all(label_map is not k for k in spatial_maps))
    _leave_out(constraints, mean, var)
    _leave_out_bias(constraints, x)
    for value in (mean, var):  # updated in training only
        if value is not None and x.label_map(1) is not None and value.label_maps:
            constraints.unite(x.label_map(1).vector(1), value.label_maps[0].vector(0))  # type: ignore[union-attr]
            constraints.produces(value.label_maps[0].vector(0))
            constraints.rigid(value.label_maps[0])
    return _affine(constraints, Value(x.shape, remaining), weight, bias, [1])
