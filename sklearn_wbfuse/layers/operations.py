"""The table of operations: the kind of each, and the few other facts that readers of a trace need.

The rule of an operation (`register_rule`) defines what it does to units; everything else that depends on the operation is read
from this table. Names are those of ATen without overloads. An operation that is not in the table, such as one of another
library, is of kind "unknown".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["KINDS", "ROWS", "TABLE", "Facts", "Operation", "facts_of", "operation", "operation_names", "passes_on", "schema_name"]

KINDS = {
    # elementwise: one value of the result for each value of the operands
    "identity": "the first operand unchanged",
    "sum": "linear: f(c x) = c f(x), with the same c for all operands",
    "homogeneous": "f(c x) = c f(x) for c > 0",
    "odd": "f(-x) = -f(x)",
    "product": "f(c x, y) = f(x, c y) = c f(x, y)",
    "quotient": "f(c x, y) = c f(x, y) = f(x, y / c)",
    "general": "elementwise, with no other known property",
    "gates": "one half of the operand times a function of the other half",
    # movement: the operands' values at other positions
    "reshapes": "all values in another shape or order of dimensions",
    "expands": "the values repeated along dimensions of size 1 or new leading dimensions",
    "repeats": "the values repeated",
    "moves": "all or some of the values in another order",
    "splits": "a list of pieces",
    "picks": "values at the positions in a second operand",
    "joins": "several operands side by side",
    "pads": "the values with padding around them",
    "writes": "the values with others written or added at some positions",
    # everything else
    "checks": "no value",
    "fills": "values that do not depend on those of the operands",
    "reduces": "one number for all along some dimensions",
    "orders": "order statistics along a dimension, and their positions",
    "accumulates": "sums, products or extremes up to each position of a dimension",
    "softmax": "nonnegative numbers that sum to 1 along a dimension",
    "log_softmax": "the logarithm of a softmax",
    "transforms": "a Fourier transform, or a conversion between complex and real numbers",
    "normalises": "values shifted or scaled by statistics",
    "contracts": "a product summed over dimensions",
    "embeds": "rows of a table at the positions in a second operand",
    "convolves": "a convolution over space",
    "windows": "the same function of neighbours in space for every channel",
    "space": "anything else over space: patches, values at computed positions",
    "recurs": "a recurrent layer or cell",
}
_ALL_VALUES = ("reshapes", "expands", "repeats")
_SOME_VALUES = (*_ALL_VALUES, "moves", "splits", "picks", "joins")
_MOVEMENT = (*_SOME_VALUES, "pads", "writes")


@dataclass(frozen=True)
class Facts:
    """Properties of an operation.

    Attributes
    ----------
    kind : str
        One of `KINDS`, or "unknown".
    operands : int or None
        Of an elementwise operation, how many of the first operands the common rule of its kind unites; None for all operands, 0
        if the operation has its own rule.
    training : int or None
        The position of the argument that switches a dropout on.
    sizes : bool
        Whether integers among its options may be sizes, which differ between networks of one architecture.
    same_as : str
        An operation that computes the same (of several results the first) for any memory layout of the operands.
    weight, bias : int or None
        Positions of the parameters of a layer that computes units by an affine map.
    channel : int
        The dimension of that layer's output that holds units.
    space : int
        Number of spatial dimensions of the first operand.
    transposed : bool
        Whether it is a transposed convolution.
    within_range : bool
        Whether each value of the result is one of the first operand's or a mean of several, where the kind does not imply it.
    maxima : bool
        Whether it takes the largest of neighbouring values, so that signs do not pass.
    positions : bool
        Whether the second result holds positions.
    bounds : (float, float) or None
        Bounds of all values of the result for any operands.
    unset : bool
        Whether the result is uninitialised memory.
    """

    kind: str
    operands: int | None = 0
    training: int | None = None
    sizes: bool = False
    same_as: str = ""
    weight: int | None = None
    bias: int | None = None
    channel: int = 1
    space: int = 0
    transposed: bool = False
    within_range: bool = False
    maxima: bool = False
    positions: bool = False
    bounds: tuple[float, float] | None = None
    unset: bool = False

    @property
    def moves(self) -> bool:
        """True for an operation that moves values and computes none."""
        return self.kind in _MOVEMENT

    @property
    def averages(self) -> bool:
        """True if each value of the result is one of the first operand's, or a mean of several."""
        return self.within_range or self.kind in _SOME_VALUES

    @property
    def keeps_all_values(self) -> bool:
        """True if only the shape or the order of dimensions changes, or values repeat."""
        return self.kind in _ALL_VALUES

    @property
    def computes(self) -> bool:
        """True if the result is computed from the values that are read."""
        return not self.moves and self.kind != "checks"

    @property
    def is_nonlinearity(self) -> bool:
        """True for a nonlinear function of each value, unless there is a second operand."""
        return self.kind in ("odd", "general", "homogeneous") and self.operands in (1, None)


_UNKNOWN = Facts("unknown")
_UNIT, _SIGNED = (0.0, 1.0), (-1.0, 1.0)


def _over_space(names: str, *dimensions: int, kind: str = "windows", **facts: Any) -> Iterator[tuple[str, Facts]]:
    """Yield table rows for several numbers of spatial dimensions, which replace ``#`` in the names."""
    for space in dimensions:
        yield names.replace("#", str(space)), Facts(kind, space=space, channel=-space - 1, **facts)


ROWS: tuple[tuple[str, Facts], ...] = (
    ("alias alias_copy clone contiguous detach lift_fresh lift_fresh_copy to _to_copy", Facts("identity", 1)),
    ("dropout feature_dropout alpha_dropout", Facts("identity", 1, training=2)),
    ("neg native_dropout", Facts("sum", 1)),
    ("add sub rsub", Facts("sum", 2)),
    ("relu leaky_relu abs", Facts("homogeneous", 1)),
    ("maximum minimum fmax fmin hypot", Facts("homogeneous", 2)),
    ("prelu", Facts("homogeneous")),
    ("tanh sin erf sign sgn frac", Facts("odd", 1, bounds=_SIGNED)),
    ("tan atan asin sinh asinh atanh erfinv trunc", Facts("odd", 1)),
    ("mul", Facts("product", 2)),
    ("div", Facts("quotient", 2)),
    ("sigmoid hardsigmoid ne eq lt gt le ge", Facts("general", None, bounds=_UNIT)),
    ("logical_not logical_and logical_or logical_xor isnan isfinite isinf signbit", Facts("general", None, bounds=_UNIT)),
    ("cos", Facts("general", None, bounds=_SIGNED)),
    ("log_sigmoid special_log_ndtr", Facts("general", None, bounds=(-math.inf, 0.0))),
    ("softplus", Facts("general", None, bounds=(0.0, math.inf))),
    ("gelu silu elu selu celu hardtanh hardswish hardshrink softshrink mish relu6 threshold rrelu", Facts("general", None)),
    ("exp exp2 expm1 log log2 log10 log1p logaddexp logaddexp2 xlogy sqrt rsqrt reciprocal square pow", Facts("general", None)),
    ("acos cosh acosh atan2 sinc floor ceil round clamp clamp_min clamp_max nan_to_num logit", Facts("general", None)),
    ("bitwise_not bitwise_and bitwise_or bitwise_xor fmod remainder floor_divide copysign heaviside", Facts("general", None)),
    (
        "erfc lgamma digamma i0 special_erfcx special_i0e special_i1 special_i1e special_ndtri special_entr",
        Facts("general", None),
    ),
    ("where masked_fill bucketize lerp", Facts("general")),
    ("glu", Facts("gates")),
    # movement
    ("flatten permute transpose t numpy_T squeeze unsqueeze movedim swapaxes swapdims", Facts("reshapes")),
    ("permute_copy transpose_copy squeeze_copy unsqueeze_copy", Facts("reshapes")),
    ("reshape unflatten", Facts("reshapes", sizes=True)),
    ("view _unsafe_view view_copy", Facts("reshapes", sizes=True, same_as="reshape")),
    ("expand expand_copy", Facts("expands", sizes=True)),
    ("repeat tile repeat_interleave", Facts("repeats", sizes=True)),
    ("roll flip select select_copy unfold diagonal pixel_shuffle pixel_unshuffle channel_shuffle", Facts("moves")),
    ("slice slice_copy narrow", Facts("moves", sizes=True)),
    ("chunk unsafe_chunk unbind unbind_copy", Facts("splits")),
    ("split split_with_sizes tensor_split split_copy split_with_sizes_copy", Facts("splits", sizes=True)),
    ("unsafe_split unsafe_split_with_sizes", Facts("splits", sizes=True)),
    ("index_select gather index", Facts("picks")),
    ("cat concat stack", Facts("joins")),
    ("constant_pad_nd pad", Facts("pads")),
    ("copy select_scatter scatter scatter_add scatter_reduce index_put _unsafe_index_put", Facts("writes")),
    ("slice_scatter", Facts("writes", sizes=True)),
    ("index_add index_copy index_fill index_reduce", Facts("writes")),
    ("_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range", Facts("checks")),
    # new values
    ("zeros zeros_like new_zeros", Facts("fills", sizes=True, bounds=(0.0, 0.0))),
    ("ones ones_like new_ones", Facts("fills", sizes=True, bounds=(1.0, 1.0))),
    ("full full_like new_full arange", Facts("fills", sizes=True)),
    ("empty empty_like new_empty empty_strided new_empty_strided empty_permuted", Facts("fills", sizes=True, unset=True)),
    ("scalar_tensor", Facts("fills")),
    # along dimensions
    ("mean nanmean amax amin aminmax", Facts("reduces", within_range=True)),
    ("all any", Facts("reduces", bounds=_UNIT)),
    ("sum nansum prod std var std_mean var_mean logsumexp count_nonzero argmax argmin", Facts("reduces")),
    ("linalg_vector_norm norm dist segment_reduce", Facts("reduces")),
    ("max min", Facts("orders", positions=True)),
    ("median nanmedian mode kthvalue sort topk", Facts("orders", within_range=True, positions=True)),
    ("cummax cummin", Facts("accumulates", within_range=True, positions=True)),
    ("cumsum cumprod logcumsumexp", Facts("accumulates")),
    ("softmax _softmax _safe_softmax", Facts("softmax", bounds=_UNIT)),
    ("log_softmax _log_softmax", Facts("log_softmax", bounds=(-math.inf, 0.0))),
    ("_fft_r2c _fft_c2c _fft_c2r view_as_complex view_as_real", Facts("transforms")),
    # layers
    ("batch_norm instance_norm", Facts("normalises", weight=1, bias=2)),
    ("group_norm", Facts("normalises", weight=2, bias=3, sizes=True)),
    ("layer_norm", Facts("normalises", weight=2, bias=3, sizes=True, channel=-1)),
    ("rms_norm", Facts("normalises", weight=2, sizes=True, channel=-1)),
    ("native_layer_norm", Facts("normalises", sizes=True)),
    ("_native_batch_norm_legit _native_batch_norm_legit_no_training", Facts("normalises", same_as="batch_norm")),
    ("_weight_norm _weight_norm_interface", Facts("normalises")),
    ("linear", Facts("contracts", weight=1, bias=2, channel=-1)),
    ("matmul mm bmm mv dot addmm addmv baddbmm addbmm einsum bilinear _sparse_mm _sparse_addmm", Facts("contracts")),
    ("_cdist_forward _euclidean_dist scaled_dot_product_attention", Facts("contracts")),
    ("embedding embedding_bag _embedding_bag", Facts("embeds")),
    ("rnn_tanh rnn_relu lstm gru rnn_tanh_cell rnn_relu_cell lstm_cell gru_cell", Facts("recurs")),
    # over space
    *_over_space("conv#d", 1, 2, 3, kind="convolves", weight=1, bias=2),
    *_over_space("conv_transpose#d", 1, 2, 3, kind="convolves", weight=1, bias=2, transposed=True),
    *_over_space("avg_pool#d adaptive_avg_pool#d", 1, 2, 3, within_range=True),
    *_over_space("_adaptive_avg_pool#d", 2, 3, within_range=True),
    *_over_space("max_pool#d", 1, 2, 3, within_range=True, maxima=True),
    *_over_space("adaptive_max_pool#d max_pool#d_with_indices", 1, 2, 3, within_range=True, maxima=True, positions=True),
    *_over_space("upsample_nearest#d _upsample_nearest_exact#d reflection_pad#d replication_pad#d", 1, 2, 3, within_range=True),
    *_over_space("upsample_linear#d", 1, within_range=True),
    *_over_space("upsample_bilinear#d _upsample_bilinear#d_aa", 2, within_range=True),
    *_over_space("upsample_bicubic#d _upsample_bicubic#d_aa", 2),
    *_over_space("upsample_trilinear#d", 3, within_range=True),
    *_over_space("max_unpool#d grid_sampler_#d", 2, 3, kind="space"),
    ("im2col", Facts("space", space=2)),
    ("col2im grid_sampler", Facts("space")),
)
"""The table as it is written: names, separated by spaces, and their properties."""

TABLE: dict[str, Facts] = {name: facts for names, facts in ROWS for name in names.split()}
"""The properties of every operation by its name."""


class Operation(NamedTuple):
    """One operation of a traced network; networks of one architecture have equal operations.

    Attributes
    ----------
    name : str
        With its library: "aten::linear".
    path : str
        The module that contains it.
    options : tuple of str
        Its arguments as text: values by the position of the operation that computes them, and options that belong to the
        architecture; sizes are left out.
    """

    name: str
    path: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, self.path, f"({', '.join(self.options)})") if part)


def schema_name(target: Any) -> str:
    """Return the name of an operation with its library and without its overload; empty for a Python function."""
    schema = getattr(target, "_schema", None)
    return schema.name if schema is not None else ""


def operation(node: Any) -> str:
    """Return the name of a traced node's operation as in the table; empty if the node is not an operation."""
    return schema_name(getattr(node, "target", None)).removeprefix("aten::")


def facts_of(node: Any) -> Facts:
    """Return the properties of a traced node's operation."""
    return TABLE.get(operation(node), _UNKNOWN)


def operation_names(*kinds: str, **facts: Any) -> tuple[str, ...]:
    """Return the names of all operations of some kinds (of any kind by default) with the given properties."""
    return tuple(
        name
        for name, known in TABLE.items()
        if (not kinds or known.kind in kinds) and all(getattr(known, key) == value for key, value in facts.items())
    )


def passes_on(node: Any) -> bool:
    """Return whether a traced node returns its first operand unchanged: an identity, or a dropout that is switched off."""
    facts = facts_of(node)
    return facts.kind == "identity" and not (facts.training is not None and node.args[facts.training])
