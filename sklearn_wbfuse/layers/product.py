"""Products of two values along labelled dimensions: batched matrix products, attention, einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .constraints import Constraints
from .elementwise import combine, row_blocks, varies
from .labels import LabelMap, Value
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
    """Contract two operands, as an einsum does.

    Units that are summed over are the same in both operands. Where they also vary along a batch dimension of both (the heads of
    an attention), each of its positions is a block: its units move within it or with it.

    Parameters
    ----------
    constraints : Constraints
    a, b : Value
    letters : (str, str, str)
        One letter per dimension of `a`, of `b` and of the result; dimensions of size 1 broadcast.
    name : str
        Name of these blocks.
    """
    letters_a, letters_b, out = letters
    sides = [(a, letters_a), (b, letters_b)]
    summed = list(dict.fromkeys(c for c in letters_a + letters_b if c not in out))
    inner = [v.maps_along([own_letters.index(c) for c in summed if c in own_letters]) for v, own_letters in sides]
    partners = _partners(sides, inner, summed)
    batch = [c for c in out if c in letters_a and c in letters_b]
    blocks: list[LabelMap] = []
    for pair in partners:
        operands = [(*side, label_map) for side, label_map in zip(sides, pair, strict=True)]
        blocks += _unite_summed(constraints, operands, batch, summed, out, name)
    paired = [label_map for pair in partners for label_map in pair]
    remaining: list[list[LabelMap]] = [[], []]
    for side, other, label_maps, rest in zip(sides, reversed(sides), inner, remaining, strict=True):
        for label_map in label_maps:
            if all(label_map is not m for m in paired):
                rest += _unpaired(constraints, side, label_map, other, summed)
    block_dims = {d for label_map in blocks for d in label_map.dims}
    factors = []
    for (value, own_letters), label_maps, new, rest in zip(sides, inner, (blocks, []), remaining, strict=True):
        free = [label_map for label_map in value.label_maps if all(label_map is not m for m in label_maps)]
        for label_map in free if value.is_weight else ():
            constraints.produces(label_map.compact.reshape(-1))
        factors.append(_factor(value, own_letters, out, [*free, *rest], new, block_dims))
    return combine(constraints, "a product", factors, "product")


def _partners(
    sides: Sequence[tuple[Value, str]], inner: Sequence[Sequence[LabelMap]], summed: Sequence[str]
) -> list[tuple[LabelMap, LabelMap]]:
    """Return pairs of label maps of both operands that are summed together: the only ones, or those along the same dimensions."""
    (_, letters_a), (_, letters_b) = sides
    if not all(c in letters_a and c in letters_b for c in summed):
        return []
    if len(inner[0]) == len(inner[1]) == 1:
        return [(inner[0][0], inner[1][0])]
    first, second = (
        {frozenset(letters[d] for d in m.dims): m for m in label_maps}
        for (_, letters), label_maps in zip(sides, inner, strict=True)
    )
    return [(first[letters], second[letters]) for letters in first if letters in second]


def _factor(
    value: Value, letters: str, out: str, free: Sequence[LabelMap], new: Sequence[LabelMap], block_dims: set[int]
) -> Value:
    """Return one operand after the sum, with its dimensions in the order of the result."""
    shape = tuple(value.shape[letters.index(c)] if c in letters else 1 for c in out)
    label_maps = [LabelMap(_arranged(label_map.ids, letters, out)) for label_map in free]
    uniform = {d for d, c in enumerate(out) if c in letters and not varies([value], [letters.index(c)], value.shape)}
    wide = tuple(max(n, *(label_map.ids.shape[d] for label_map in new)) if new else n for d, n in enumerate(shape))
    label_maps = [*(label_map.broadcast(wide) for label_map in label_maps), *(label_map.broadcast(wide) for label_map in new)]
    return Value(wide, tuple(label_maps), is_weight=value.is_weight, uniform=tuple(uniform | block_dims))


def _arranged(ids: Tensor, letters: str, order: Sequence[str]) -> Tensor:
    """Return labels with one dimension per letter of `order`, of size 1 if they lack it; they must not vary along others."""
    for dim in reversed(range(ids.dim())):
        if letters[dim] not in order:
            ids = ids.select(dim, 0)
    remaining = [c for c in letters if c in order]
    ids = ids.permute([remaining.index(c) for c in order if c in remaining])
    for position, c in enumerate(order):
        if c not in remaining:
            ids = ids.unsqueeze(position)
    return ids


def _unite_summed(
    constraints: Constraints,
    operands: Sequence[tuple[Value, str, LabelMap]],
    batch: list[str],
    summed: list[str],
    out: str,
    name: str,
) -> list[LabelMap]:
    """Unite the units that are summed over, and return the blocks of a batch dimension along which both operands have units."""
    arranged = []
    for value, letters, label_map in operands:
        label_map = constraints.unite_along(label_map, [d for d in label_map.dims if letters[d] not in batch + summed])
        ids = _arranged(label_map.ids, letters, batch + summed)
        if value.is_weight:
            constraints.consumes(ids)
        arranged.append(LabelMap(ids))
    constraints.unite(arranged[0].compact, arranged[1].compact)
    constraints.opposite_factor(arranged[0].compact, arranged[1].compact)
    inner = range(len(batch), len(batch) + len(summed))
    if not all(set(label_map.dims) - set(inner) for label_map in arranged):
        return []
    blocks = row_blocks(constraints, arranged[0], inner, name)
    return [LabelMap(_arranged(blocks.ids, "".join(batch + summed), out))]


def _unpaired(
    constraints: Constraints, side: tuple[Value, str], label_map: LabelMap, other_side: tuple[Value, str], summed: Sequence[str]
) -> list[LabelMap]:
    """Constrain units that are summed over without a partner in the other operand.

    Returns their label map along the dimensions that are not summed over, if any: units with their parts in a fixed order.
    """
    (value, letters), (other, other_letters) = side, other_side
    dims = [d for d in label_map.dims if letters[d] in summed]
    other_dims = [other_letters.index(letters[d]) for d in dims if letters[d] in other_letters]
    if value.is_weight:
        constraints.fix(label_map)
    elif len(dims) < len(label_map.dims):
        return [constraints.unite_along(label_map, dims)]
    elif varies([other], other_dims, other.shape):
        constraints.freeze([label_map], "a product with a value that varies along its units")
    else:
        constraints.rigid(label_map)  # a plain sum over all units
    return []


def product(constraints: Constraints, a: Value, b: Value) -> Value:
    """Multiply two computed values as ``torch.matmul``, with batch dimensions in front."""
    batch = "ABCDEFGH"
    letters_a, letters_b = [
        batch[len(batch) + 2 - len(v.shape) :] + matrix if len(v.shape) > 1 else "k" for v, matrix in ((a, "ik"), (b, "kj"))
    ]
    out = max(letters_a[:-2], letters_b[:-2], key=len) + "i" * (len(a.shape) > 1) + "j" * (len(b.shape) > 1)
    return contraction(constraints, a, b, (letters_a, letters_b, out))


@register_rule("aten::baddbmm")
def baddbmm(constraints: Constraints, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """Compute B + A_k B_k for each k."""
    return combine(constraints, "baddbmm", [product(constraints, a, b), bias], "sum")


@register_rule("aten::addbmm")
def addbmm(constraints: Constraints, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """Compute B + sum_k A_k B_k."""
    return combine(constraints, "addbmm", [contraction(constraints, a, b, ("bik", "bkj", "ij")), bias], "sum")


@register_rule("aten::_cdist_forward", "aten::_euclidean_dist")
def cdist(constraints: Constraints, a: Value, b: Value, *_: Any) -> Value:
    """Compute the distances of all rows of two values: units along the rows are the same, and do not scale."""
    constraints.rigid(*a.label_maps, *b.label_maps)
    return product(constraints, a, b.map(lambda ids: ids.transpose(-2, -1)))


@register_rule("aten::einsum")
def einsum(constraints: Constraints, equation: str, operands: Sequence[Value], **_: Any) -> Value | None:
    """Sum over letters, two operands at a time; units stay in place if a letter repeats within an operand."""
    letters, out = _letters(equation.replace(" ", ""), [len(v.shape) for v in operands])
    if any(len(set(operand_letters)) < len(operand_letters) for operand_letters in letters):
        constraints.freeze([label_map for v in operands for label_map in v.label_maps], "an einsum of this form")
        return None
    value, value_letters, rest = operands[0], letters[0], list(zip(operands[1:], letters[1:], strict=True))
    while rest:
        other, other_letters = rest.pop(0)
        later = out + "".join(operand_letters for _, operand_letters in rest)
        product_letters = "".join(c for c in dict.fromkeys(value_letters + other_letters) if c in later) if rest else out
        value = contraction(constraints, value, other, (value_letters, other_letters, product_letters))
        value_letters = product_letters
    remaining = "".join(c for c in value_letters if c in out)
    value = reduced(constraints, value, tuple(d for d, c in enumerate(value_letters) if c not in out), False, "linear")
    return value.map(lambda ids: ids.permute([remaining.index(c) for c in out]))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of the operands and of the result, including those implied by an ellipsis or a missing result."""
    inputs, arrow, out = equation.partition("->")
    spare = [c for c in string.ascii_letters if c not in equation]
    letters, widest = [], 0
    for operand_letters, rank in zip(inputs.split(","), ranks, strict=True):
        hidden = rank - len(operand_letters.replace("...", ""))
        letters.append(
            operand_letters.replace("...", "".join(spare[:hidden][::-1]))
        )  # dimensions of an ellipsis are aligned at the right
        widest = max(widest, hidden)
    batch = "".join(spare[:widest][::-1])
    free = sorted(c for c in set(inputs) - set(".,") if inputs.count(c) == 1)
    return letters, out.replace("...", batch) if arrow else batch + "".join(free)


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
    """Compute softmax(Q K^T) V for each head: heads move as a whole, and within a head Q with K, and V with its readers."""
    if enable_gqa:
        key, value = (_repeat_heads(v, query.shape[-3] // v.shape[-3]) for v in (key, value))
    scores = product(constraints, query, key.map(lambda ids: ids.transpose(-2, -1)))
    if mask is not None:
        scores = combine(constraints, "an attention mask", [scores, mask], "sum")
    constraints.rigid(*scores.label_maps)
    return product(constraints, scores, value)


def _repeat_heads(x: Value, times: int) -> Value:
    return x.map(lambda ids: ids.repeat_interleave(times, -3))
