"""Networks whose neurons lie in blocks."""

import torch
import torch.nn.functional as F
from conformance.adapters import Case
from torch import nn


class Attention(nn.Module):
    """linear(5 -> 8), self-attention with two heads, linear(8 -> 3)."""

    def __init__(self, weights=False, **options):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.a, self.weights = nn.MultiheadAttention(8, 2, **options), weights

    def forward(self, x):
        x = self.first(x)
        return self.last(self.a(x, x, x, need_weights=self.weights)[0])


class Heads(nn.Module):
    """Attention written out: queries of `heads` heads, keys and values of `shared` heads, an option at the scores."""

    def __init__(self, kind="fused", heads=2, shared=2, gain=False, rotary=False, norm=False, bias_table=False, slopes=False):
        super().__init__()
        self.kind, self.h, self.s, self.rotary, self.slopes = kind, heads, shared, rotary, slopes
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.q, self.k, self.v = nn.Linear(8, 4 * heads), nn.Linear(8, 4 * shared), nn.Linear(8, 3 * shared)
        self.out = nn.Linear(3 * heads, 8)
        self.gain = nn.Parameter(torch.randn(heads, 1, 1)) if gain else None
        self.norm = nn.LayerNorm(4) if norm else None
        self.table = nn.Embedding(16, heads) if bias_table else None

    def split(self, x, heads):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def turn(self, x):
        angle = torch.arange(x.shape[2]).to(x)[:, None] * torch.tensor([1.0, 0.3]).to(x).repeat(2)
        return x * angle.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angle.sin()

    def forward(self, x):
        x = self.first(x)
        q, k, v = self.split(self.q(x), self.h), self.split(self.k(x), self.s), self.split(self.v(x), self.s)
        if self.norm is not None:
            q, k = self.norm(q), self.norm(k)
        if self.rotary:
            q, k = self.turn(q), self.turn(k)
        if self.kind == "fused":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.h != self.s)
        elif self.kind == "einsum":
            y = torch.einsum("bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1), v)
        else:
            k, v = (t.repeat_interleave(self.h // self.s, 1) if self.s > 1 else t for t in (k, v))
            scores = q @ k.transpose(-2, -1) / 2
            if self.slopes:
                scores = scores + torch.arange(1.0, 1.0 + self.h).to(x)[:, None, None] * torch.arange(x.shape[1]).to(x)
            if self.gain is not None:
                scores = scores * self.gain
            if self.table is not None:
                steps = torch.arange(x.shape[1], device=x.device)
                scores = scores + self.table((steps[:, None] - steps).abs()).permute(2, 0, 1)
            y = scores.softmax(-1) @ v
        return self.last(self.out(y.transpose(1, 2).flatten(2)))


def attention(build, heads="a.heads", qk=("a.0", 8), v=("a.1", 8), out=("a.out_proj", 8), blocks=2, extra=None, **options):
    groups = {"first": 8, **(extra or {}), heads: blocks, qk[0]: qk[1], v[0]: v[1], out[0]: out[1]}
    free = set(groups) - {heads}
    return Case(build, (2, 4, 5), groups, free, set(free), {qk[0]: heads, v[0]: heads}, **options)
