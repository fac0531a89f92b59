"""Products of two values along labelled dimensions: batched matrix products, attention, einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .elementwise import combine, row_blocks, varies
from .labels import Constraints, LabelMap, Value
from .reduction import reduced
from .registry import Blocks, register_rule, register_sizes

__all__ = ["contraction", "product"]

register_sizes(nn.Transformer, d_model=lambda m: next(p.shape[1] for p in m.parameters() if p.dim() == 2))
register_sizes(
    nn.MultiheadAttention,
    embed_dim=("out_proj.weight", 0),
    num_heads=Blocks("out_proj.weight", 1),
    head_dim=lambda m: m.embed_dim // m.num_heads,
    kdim=lambda m: m.embed_dim if m.k_proj_weight is None else m.k_proj_weight.shape[1],
    vdim=lambda m: m.embed_dim if m.v_proj_weight is None else m.v_proj_weight.shape[1],
)


def contraction(constraints: Constraints, a: Value, b: Value, letters: tuple[str, str, str], name: str = "heads") -> Value:
    """What an einsum of two operands says about units.

    Units that are summed over are the same in both operands. Where they also vary along a batch dimension of both (the heads
    of an attention), each position of it is a block: its units move within it or with it.

    Parameters
    ----------
    a, b : Value
    letters : (str, str, str)
        One letter per dimension of `a`, of `b` and of the result; dimensions of size 1 broadcast.
    name : str
        What such blocks are called.
    """
    of_a, of_b, out = letters
    sides = [(a, of_a), (b, of_b)]
    summed = list(dict.fromkeys(c for c in of_a + of_b if c not in out))
    inner = [v.touching([own.index(c) for c in summed if c in own]) for v, own in sides]
    partners = _partners(sides, inner, summed)
    batch = [c for c in out if c in of_a and c in of_b]
    blocks: list[LabelMap] = []
    for pair in partners:
        laid = [(v, own, layer) for (v, own), layer in zip(sides, pair, strict=True)]
        blocks += _summed(constraints, laid, batch, summed, out, name)
    paired = [layer for pair in partners for layer in pair]
    outer: list[list[LabelMap]] = [[], []]
    for (value, own), (other, others), layers, left in zip(sides, reversed(sides), inner, outer, strict=True):
        for layer in layers:
            rest = None if any(layer is k for k in paired) else _alone(constraints, value, layer, own, other, others, summed)
            left += [] if rest is None else [rest]
    known = {d for layer in blocks for d in layer.dims}
    factors = []
    for (value, own), layers, extra, left in zip(sides, inner, (blocks, []), outer, strict=True):
        free = [layer for layer in value.layers if all(layer is not k for k in layers)]
        for layer in free if value.is_weight else ():
            constraints.produces(layer.core.reshape(-1))
        factors.append(_factor(value, own, out, [*free, *left], extra, known))
    return combine(constraints, "a product", factors, "product")


def _partners(
    sides: Sequence[tuple[Value, str]], inner: Sequence[Sequence[LabelMap]], summed: Sequence[str]
) -> list[tuple[LabelMap, LabelMap]]:
    """Layers of both operands that are summed over together: one of each, or those along the same dimensions."""
    (_, of_a), (_, of_b) = sides
    if not all(c in of_a and c in of_b for c in summed):
        return []
    if len(inner[0]) == len(inner[1]) == 1:
        return [(inner[0][0], inner[1][0])]
    first, second = (
        {frozenset(own[d] for d in k.dims): k for k in layers} for (_, own), layers in zip(sides, inner, strict=True)
    )
    return [(first[k], second[k]) for k in first if k in second]


def _factor(value: Value, own: str, out: str, free: Sequence[LabelMap], extra: Sequence[LabelMap], known: set[int]) -> Value:
    """One operand after the sum, its dimensions in the order of the result."""
    shape = tuple(value.shape[own.index(c)] if c in own else 1 for c in out)
    layers = [LabelMap(_arranged(layer.ids, own, out)) for layer in free]
    uniform = {d for d, c in enumerate(out) if c in own and not varies([value], [own.index(c)], value.shape)}
    wide = tuple(max(n, *(layer.ids.shape[d] for layer in extra)) if extra else n for d, n in enumerate(shape))
    layers = [*(layer.broadcast(wide) for layer in layers), *(layer.broadcast(wide) for layer in extra)]
    return Value(wide, tuple(layers), is_weight=value.is_weight, uniform=tuple(uniform | known))


def _arranged(ids: Tensor, own: str, order: Sequence[str]) -> Tensor:
    """Labels with one dimension per letter of `order`, of size 1 where they have none; they must not vary along the others."""
    for dim in reversed(range(ids.dim())):
        if own[dim] not in order:
            ids = ids.select(dim, 0)
    kept = [c for c in own if c in order]
    ids = ids.permute([kept.index(c) for c in order if c in kept])
    for position, c in enumerate(order):
        if c not in kept:
            ids = ids.unsqueeze(position)
    return ids


def _summed(
    constraints: Constraints,
    sides: Sequence[tuple[Value, str, LabelMap]],
    batch: list[str],
    summed: list[str],
    out: str,
    name: str,
) -> list[LabelMap]:
    """Unite the units that are summed over; returns the blocks of a batch dimension along which both sides have units."""
    laid = []
    for value, own, layer in sides:
        layer = layer.united(constraints, [d for d in layer.dims if own[d] not in batch + summed])
        ids = _arranged(layer.ids, own, batch + summed)
        if value.is_weight:
            constraints.consumes(ids)
        laid.append(LabelMap(ids))
    constraints.unite(laid[0].core, laid[1].core)
    constraints.opposite_factor(laid[0].core, laid[1].core)
    inner = range(len(batch), len(batch) + len(summed))
    if not all(set(side.dims) - set(inner) for side in laid):
        return []
    blocks = row_blocks(constraints, laid[0], inner, name)
    return [LabelMap(_arranged(blocks.ids, "".join(batch + summed), out))]


def _alone(
    constraints: Constraints, value: Value, layer: LabelMap, own: str, other: Value, others: str, summed: Sequence[str]
) -> LabelMap | None:
    """Units that are summed over and have no partner in the other operand.

    Returns what they are along the dimensions that are not summed over: units with their parts in a fixed order.
    """
    dims = [d for d in layer.dims if own[d] in summed]
    against = [others.index(own[d]) for d in dims if own[d] in others]
    if value.is_weight:
        constraints.fix(layer)
    elif len(dims) < len(layer.dims):
        return layer.united(constraints, dims)
    elif varies([other], against, other.shape):
        constraints.freeze([layer], "a product with a value that varies along its units")
    else:
        constraints.rigid(layer)  # a plain sum over all units
    return None


def product(constraints: Constraints, a: Value, b: Value) -> Value:
    """The matrix product of two computed values, batch dimensions in front, as ``torch.matmul``."""
    batch = "ABCDEFGH"
    of_a, of_b = [
        batch[len(batch) + 2 - len(v.shape) :] + matrix if len(v.shape) > 1 else "k" for v, matrix in ((a, "ik"), (b, "kj"))
    ]
    leading = max(of_a[:-2], of_b[:-2], key=len)
    return contraction(constraints, a, b, (of_a, of_b, leading + "i" * (len(a.shape) > 1) + "j" * (len(b.shape) > 1)))


@register_rule("aten::baddbmm")
def baddbmm(constraints: Constraints, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """B + A_k B_k for each k."""
    return combine(constraints, "baddbmm", [product(constraints, a, b), bias], "sum")


@register_rule("aten::addbmm")
def addbmm(constraints: Constraints, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """B + sum_k A_k B_k."""
    return combine(constraints, "addbmm", [contraction(constraints, a, b, ("bik", "bkj", "ij")), bias], "sum")


@register_rule("aten::_cdist_forward", "aten::_euclidean_dist")
def cdist(constraints: Constraints, a: Value, b: Value, *_: Any) -> Value:
    """Distances of all rows of two values: units along the rows are the same, and do not scale."""
    constraints.rigid(*a.layers, *b.layers)
    return product(constraints, a, b.map(lambda ids: ids.transpose(-2, -1)))


@register_rule("aten::einsum")
def einsum(constraints: Constraints, equation: str, operands: Sequence[Value], **_: Any) -> Value | None:
    """A sum over letters, of two operands at a time; units that the letters of one operand lay out twice stay in place."""
    letters, out = _letters(equation.replace(" ", ""), [len(v.shape) for v in operands])
    if any(len(set(own)) < len(own) for own in letters):
        constraints.freeze([layer for v in operands for layer in v.layers], "an einsum of this form")
        return None
    value, own, rest = operands[0], letters[0], list(zip(operands[1:], letters[1:], strict=True))
    while rest:
        other, others = rest.pop(0)
        later = out + "".join(mine for _, mine in rest)
        both = out if not rest else "".join(c for c in dict.fromkeys(own + others) if c in later)
        value, own = contraction(constraints, value, other, (own, others, both)), both
    kept = "".join(c for c in own if c in out)
    value = reduced(constraints, value, tuple(d for d, c in enumerate(own) if c not in out), False, "linear")
    return value.map(lambda ids: ids.permute([kept.index(c) for c in out]))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of the operands and of the result, with those that an ellipsis or a missing result stand for."""
    inputs, arrow, out = equation.partition("->")
    spare = [c for c in string.ascii_letters if c not in equation]
    letters, widest = [], 0
    for own, rank in zip(inputs.split(","), ranks, strict=True):
        hidden = rank - len(own.replace("...", ""))
        letters.append(own.replace("...", "".join(spare[:hidden][::-1])))  # dimensions of an ellipsis are aligned at the right
        widest = max(widest, hidden)
    batch = "".join(spare[:widest][::-1])
    named = sorted(c for c in set(inputs) - set(".,") if inputs.count(c) == 1)
    return letters, out.replace("...", batch) if arrow else batch + "".join(named)


@register_rule("aten::scaled_dot_product_attention")
def attention(
    constraints: Constraints,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Value:
    """softmax(Q K^T) V for each head: heads move as a whole; q with k, and v with what reads the result, within them."""
    if enable_gqa:
        key, value = (_repeated(v, query.shape[-3] // v.shape[-3]) for v in (key, value))
    scores = product(constraints, query, key.map(lambda ids: ids.transpose(-2, -1)))
    if mask is not None:
        scores = combine(constraints, "an attention mask", [scores, mask], "sum")
    constraints.rigid(*scores.layers)
    return product(constraints, scores, value)


def _repeated(x: Value, times: int) -> Value:
    return x.map(lambda ids: ids.repeat_interleave(times, -3))
