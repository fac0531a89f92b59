"""A survey of operations between two layers: the neurons of the first stay free, or a warning names what holds them."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_wbfuse import discover
from sklearn_wbfuse.exceptions import FusionWarning

E = torch.tensor([[0, 1, 2, 3, 4, 5, 1, 2], [1, 2, 3, 4, 5, 0, 0, 0]])  # edges between six rows
PERM = torch.tensor([2, 0, 1, 3, 5, 4])
GRID = torch.linspace(-0.9, 0.8, 72).reshape(1, 6, 6, 2)


def written(base, key, value):
    base[key] = value
    return base


ROWS = {
    "multiply": lambda h: torch.multiply(h, torch.sigmoid(h)),
    "divide": lambda h: torch.divide(h, 1 + h * h),
    "true_divide": lambda h: torch.true_divide(h, 1 + h * h),
    "subtract": lambda h: torch.subtract(h, 0.5 * h),
    "negative": lambda h: torch.negative(h),
    "absolute": lambda h: torch.absolute(h),
    "clip": lambda h: torch.clip(h, -1, 1),
    "clamp tensor": lambda h: torch.clamp(h, torch.tensor(-1.0), torch.tensor(1.0)),
    "greater": lambda h: torch.where(torch.greater(h, 0), h, 0.1 * h),
    "fix": lambda h: torch.fix(3 * h),
    "arctan": lambda h: torch.arctan(h),
    "arcsinh": lambda h: torch.arcsinh(h),
    "arctanh": lambda h: torch.arctanh(0.1 * torch.tanh(h)),
    "special.expit": lambda h: torch.special.expit(h) * h,
    "special.erf": lambda h: torch.special.erf(h),
    "erfc": lambda h: torch.erfc(h),
    "erfcx": lambda h: torch.special.erfcx(h.abs()),
    "exp2": lambda h: torch.exp2(h),
    "log2": lambda h: torch.log2(h.abs() + 1),
    "sgn": lambda h: torch.sgn(h) * h,
    "signbit": lambda h: torch.where(torch.signbit(h), h, 2 * h),
    "float_power": lambda h: torch.float_power(h.abs() + 0.1, 1.5).to(h.dtype),
    "lgamma": lambda h: torch.lgamma(h.abs() + 1),
    "digamma": lambda h: torch.digamma(h.abs() + 1),
    "special.log_ndtr": lambda h: torch.special.log_ndtr(h),
    "hypot": lambda h: torch.hypot(h, 2 * h),
    "copysign": lambda h: torch.copysign(h.abs(), h),
    "logaddexp": lambda h: torch.logaddexp(h, 2 * h),
    "logaddexp2": lambda h: torch.logaddexp2(h, 2 * h),
    "fmax": lambda h: torch.fmax(h, 0.5 * h),
    "fmin": lambda h: torch.fmin(h, 0.5 * h),
    "deg2rad": lambda h: torch.deg2rad(h),
    "frac": lambda h: torch.frac(h),
    "heaviside": lambda h: torch.heaviside(h, torch.tensor(0.5, dtype=h.dtype)) * h,
    "nan_to_num": lambda h: torch.nan_to_num(h),
    "softsign": lambda h: F.softsign(h),
    "softmin": lambda h: F.softmin(h, 1),
    "logsigmoid": lambda h: F.logsigmoid(h),
    "threshold": lambda h: F.threshold(h, 0.1, 0.0),
    "relu6": lambda h: F.relu6(h),
    "rrelu": lambda h: F.rrelu(h),
    "polar gate": lambda h: torch.cos(h) * h,
    "type_as": lambda h: h.type_as(h),
    "float/double": lambda h: h.double().to(h.dtype),
    "addcmul": lambda h: torch.addcmul(h, h, h, value=0.5),
    "addcdiv": lambda h: torch.addcdiv(h, h, 1 + h * h, value=0.5),
    "lerp": lambda h: torch.lerp(h, h * h, 0.3),
    "lerp tensor": lambda h: torch.lerp(h, h * h, torch.sigmoid(h)),
    "concatenate": lambda h: torch.concatenate([h, h], 1)[:, :8],
    "hstack": lambda h: torch.hstack([h, h])[:, :8],
    "vstack": lambda h: torch.vstack([h, h])[: h.shape[0]],
    "dstack": lambda h: torch.dstack([h, h]).sum(2),
    "column_stack": lambda h: torch.column_stack([h, h])[:, :8],
    "linalg.norm": lambda h: h / torch.linalg.norm(h, dim=-1, keepdim=True),
    "norm p=1": lambda h: h / h.norm(p=1, dim=-1, keepdim=True),
    "frobenius": lambda h: h / (1 + torch.linalg.matrix_norm(h)),
    "renorm": lambda h: torch.renorm(h, 2, 0, 1.0),
    "cosine_similarity": lambda h: h * F.cosine_similarity(h, h * h, dim=1)[:, None],
    "pairwise_distance": lambda h: h * F.pairwise_distance(h, h * h)[:, None],
    "cdist": lambda h: torch.cdist(h, h * h) @ h,
    "normalize": lambda h: F.normalize(h, dim=1),
    "repeat size 1": lambda h: h + h.mean(-1, keepdim=True).repeat(1, 8),
    "tile size 1": lambda h: h + torch.tile(h.mean(-1, keepdim=True), (1, 8)),
    "expand_as": lambda h: h + h.mean(-1, keepdim=True).expand_as(h),
    "broadcast_to": lambda h: h + torch.broadcast_to(h.mean(-1, keepdim=True), h.shape),
    "repeat_interleave size 1": lambda h: h + h.mean(-1, keepdim=True).repeat_interleave(8, 1),
    "repeat batch": lambda h: h.repeat(2, 1)[: h.shape[0]],
    "tensordot": lambda h: h * torch.tensordot(h, h * h, dims=([1], [1])).sum(1, keepdim=True),
    "inner": lambda h: torch.inner(h, h * h) @ h,
    "vecdot": lambda h: h * torch.linalg.vecdot(h, h * h)[:, None],
    "outer of vectors": lambda h: torch.outer(h.sum(1), h.mean(1)) @ h,
    "chain_matmul": lambda h: torch.linalg.multi_dot([h, h.t(), h]),
    "einsum 2": lambda h: torch.einsum("nc,mc->nm", h, h * h) @ h,
    "einsum 3": lambda h: torch.einsum("nc,mc,md->nd", h, h * h, h.abs()),
    "einsum 1 sum": lambda h: h * torch.einsum("nc->n", h)[:, None],
    "einsum hadamard": lambda h: torch.einsum("nc,nc->nc", h, h.sigmoid()),
    "addbmm": lambda h: torch.addbmm(torch.zeros_like(h), h[None], (h.t() @ h)[None]),
    "addmv": lambda h: h * torch.addmv(torch.zeros(h.shape[0], dtype=h.dtype), h, h.mean(0))[:, None],
    "trace of gram": lambda h: h * torch.trace(h @ h.t()),
    "diagonal of gram": lambda h: h * torch.diagonal(h @ h.t())[:, None],
    "tril of gram": lambda h: torch.tril(h @ h.t()) @ h,
    "triu of gram": lambda h: torch.triu(h @ h.t()) @ h,
    "std_mean": lambda h: (h - torch.std_mean(h, 1, keepdim=True)[1]) / torch.std_mean(h, 1, keepdim=True)[0],
    "var_mean": lambda h: (h - torch.var_mean(h, 1, keepdim=True)[1]) / torch.var_mean(h, 1, keepdim=True)[0].sqrt(),
    "aminmax": lambda h: h - torch.aminmax(h, dim=1, keepdim=True)[0],
    "median": lambda h: h - h.median(1, keepdim=True).values,
    "nanmean": lambda h: h - h.nanmean(1, keepdim=True),
    "nansum": lambda h: h - h.nansum(1, keepdim=True),
    "quantile": lambda h: h - h.quantile(0.3, dim=1, keepdim=True),
    "kthvalue": lambda h: h - h.kthvalue(3, 1, keepdim=True).values,
    "topk values": lambda h: h - h.topk(3, 1).values.mean(1, keepdim=True),
    "sort values": lambda h: h - h.sort(1).values[:, :2].mean(1, keepdim=True),
    "msort over batch": lambda h: torch.msort(h),
    "sort over batch": lambda h: h.sort(0).values,
    "topk over batch": lambda h: h.topk(2, 0).values.mean(0) + h,
    "max over batch": lambda h: h - h.max(0).values,
    "argmax over batch": lambda h: h + h.gather(0, h.argmax(0, keepdim=True)),
    "cumsum over batch": lambda h: h.cumsum(0),
    "cummax over batch": lambda h: h.cummax(0).values,
    "cumprod over batch": lambda h: h.cumprod(0),
    "logcumsumexp": lambda h: h.logcumsumexp(0),
    "diff over batch": lambda h: torch.diff(h, dim=0, prepend=h[:1]),
    "dist": lambda h: h * torch.dist(h, h * h),
    "scatter_add": lambda h: torch.zeros_like(h).scatter_add(0, E[1][:, None].expand(-1, 8), h[E[0]]),
    "index_add": lambda h: torch.zeros_like(h).index_add(0, E[1], h[E[0]]),
    "scatter_reduce mean": lambda h: torch.zeros_like(h).scatter_reduce(
        0, E[1][:, None].expand(-1, 8), h[E[0]], "mean", include_self=False
    ),
    "scatter_reduce amax": lambda h: torch.zeros_like(h).scatter_reduce(
        0, E[1][:, None].expand(-1, 8), h[E[0]], "amax", include_self=False
    ),
    "index_reduce": lambda h: torch.ones_like(h).index_reduce(0, E[1], h[E[0]], "prod"),
    "index_put accumulate": lambda h: torch.zeros_like(h).index_put((E[1],), h[E[0]], accumulate=True),
    "scatter": lambda h: torch.zeros_like(h).scatter(0, PERM[:, None].expand(-1, 8), h),
    "gather rows": lambda h: h.gather(0, PERM[:, None].expand(-1, 8)),
    "index_select": lambda h: h.index_select(0, PERM),
    "index_fill": lambda h: h.index_fill(0, torch.tensor([1]), 0.0),
    "take_along_dim": lambda h: torch.take_along_dim(h, PERM[:, None].expand(-1, 8), 0),
    "select_scatter": lambda h: h.select_scatter(h[0] * 2, 0, 1),
    "slice_scatter": lambda h: h.slice_scatter(h[:2] * 2, 0, 1, 3),
    "copy into": lambda h: written(torch.zeros_like(h), slice(None), h),
    "assign rows": lambda h: written(h.clone(), slice(0, 2), 2 * h[:2]),
    "segment_reduce": lambda h: torch.segment_reduce(h, "sum", lengths=torch.tensor([2, 4]), axis=0)[[0, 0, 1, 1, 1, 1]],
    "sparse mm": lambda h: torch.sparse.mm(torch.eye(6, dtype=h.dtype).to_sparse(), h),
    "bucketize": lambda h: h * torch.bucketize(h, torch.tensor([0.0, 0.5], dtype=h.dtype)).to(h.dtype),
    "embedding of rows": lambda h: F.embedding(PERM, h),
    "one_hot batch": lambda h: F.one_hot(PERM, 6).to(h.dtype) @ h,
    "rot90": lambda h: torch.rot90(h, 2, (0, 1)).flip(0).flip(1),
    "fliplr": lambda h: torch.fliplr(torch.fliplr(h)),
    "unfold/stride": lambda h: h.unfold(0, 2, 1).sum(-1)[[0, 1, 2, 3, 4, 4]],
    "kron": lambda h: torch.kron(h, torch.ones(1, 1, dtype=h.dtype)),
    "fft batch": lambda h: torch.fft.fft(h, dim=0).real,
    "where scalar": lambda h: torch.where(h > 0, h, 0.0),
    "bitwise mask": lambda h: h * ((h > 0) & (h < 1)).to(h.dtype),
    "logical_xor": lambda h: h * torch.logical_xor(h > 0, h < 1).to(h.dtype),
    "isclose": lambda h: h * torch.isclose(h, h).to(h.dtype),
    "bernoulli": lambda h: h * torch.bernoulli(torch.full_like(h, 1.0)),
    "complex": lambda h: torch.view_as_real(torch.view_as_complex(torch.stack([h, 2 * h], -1))).sum(-1),
    "addmm": lambda h: torch.addmm(h, (h @ h.t()).softmax(1), h),
    "baddbmm": lambda h: torch.baddbmm(torch.zeros(1, 6, 6, dtype=h.dtype), h[None], h.t()[None])[0].softmax(1) @ h,
    "mode over batch": lambda h: h - h.mode(0).values,
}
IMAGES = {
    "max_unpool": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    "bicubic": lambda h: F.interpolate(h, scale_factor=2, mode="bicubic"),
    "nearest-exact": lambda h: F.interpolate(h, scale_factor=2, mode="nearest-exact"),
    "nearest": lambda h: F.interpolate(h, scale_factor=2, mode="nearest"),
    "antialias": lambda h: F.interpolate(h, scale_factor=2, mode="bilinear", antialias=True),
    "area": lambda h: F.interpolate(h, size=3, mode="area"),
    "lp_pool": lambda h: F.lp_pool2d(h, 2, 2),
    "grid_sample": lambda h: F.grid_sample(h, GRID.to(h).expand(len(h), 6, 6, 2), align_corners=False),
    "affine_grid": lambda h: F.grid_sample(
        h,
        F.affine_grid(torch.eye(2, 3, dtype=h.dtype).expand(h.shape[0], 2, 3), list(h.shape), align_corners=False),
        align_corners=False,
    ),
    "unfold im2col": lambda h: F.fold(F.unfold(h, 2), (6, 6), 2),
    "pixel_shuffle": lambda h: F.pixel_unshuffle(F.pixel_shuffle(h, 2), 2),
    "circular pad": lambda h: F.pad(h, (1, 1, 1, 1), mode="circular"),
    "reflect pad": lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect"),
    "replicate pad": lambda h: F.pad(h, (1, 1, 1, 1), mode="replicate"),
    "rfft2 global filter": lambda h: torch.fft.irfft2(torch.fft.rfft2(h), s=h.shape[-2:]),
    "instance stats": lambda h: (h - h.mean((2, 3), keepdim=True)) / h.std((2, 3), keepdim=True),
    "channel max": lambda h: h * h.max(1, keepdim=True).values.sigmoid(),
    "einsum attn": lambda h: torch.einsum("bchw,bcHW->bhwHW", h, h * h).flatten(3).mean(-1)[:, None] * h,
}
FROZEN_ROWS = {
    "diag_embed": (lambda h: torch.diag_embed(h).sum(-1), "where"),
    "masked_scatter": (
        lambda h: h.masked_scatter(torch.tensor([True, False, False, False, False, True])[:, None], 2 * h),
        "masked_scatter",
    ),
    "as_strided": (lambda h: h.as_strided((6, 8), (8, 1)), "as_strided"),
    "fft": (lambda h: torch.fft.rfft(h, dim=1).abs().sum(1, keepdim=True) * h, "_fft_r2c"),
    "gumbel": (lambda h: F.gumbel_softmax(h, dim=1), "add"),
    "histc": (lambda h: h * torch.histc(h, 4).sum(), "histc"),
}
FROZEN_IMAGES = {
    "local_response_norm": (lambda h: F.local_response_norm(h, 3), "div"),
    "fractional pool": (
        lambda h: F.fractional_max_pool2d(
            h, 2, output_size=3, _random_samples=torch.full((h.shape[0], 8, 2), 0.3, dtype=h.dtype)
        ),
        "fractional_max_pool2d",
    ),
}


class Chain(nn.Module):
    """Layers with an operation behind each but the last."""

    def __init__(self, operations, images):
        super().__init__()
        self.operations = operations
        widths = [3 if images else 5, *[8] * len(operations), 2]
        kind = (lambda n, m: nn.Conv2d(n, m, 1)) if images else nn.Linear
        self.layers = nn.ModuleList(map(kind, widths[:-1], widths[1:]))

    def forward(self, x):
        for layer, operation in zip(self.layers, self.operations, strict=False):
            x = torch.tanh(operation(layer(x)))
        return self.layers[-1](x)


def spec_of(operations, images):
    """The groups of such a network, verified on random permutations, scales and signs."""
    torch.manual_seed(0)
    return discover(Chain(operations, images), torch.randn(2, 3, 6, 6) if images else torch.randn(6, 5))


def chunks(table, size):
    names = tuple(table)
    return [names[i : i + size] for i in range(0, len(names), size)]


CHAINS = [names for table, size in ((ROWS, 12), (IMAGES, 3)) for names in chunks(table, size)]


@functools.cache
def discovered(names):
    """The spec of a chain of operations of the survey, which is read by several tests."""
    return spec_of([(ROWS | IMAGES)[name] for name in names], names[0] in IMAGES)


@pytest.mark.parametrize("names", CHAINS, ids=lambda names: ", ".join(names))
def test_neurons_on_both_sides_of_an_operation_are_free(names):
    spec = discovered(names)
    assert [spec.sizes.get(f"layers.{k}") for k in range(len(names))] == [8] * len(names) and not spec.frozen


@pytest.mark.parametrize("name", [*FROZEN_ROWS, *FROZEN_IMAGES])
def test_what_holds_neurons_is_named(name):
    operation, named = (FROZEN_ROWS | FROZEN_IMAGES)[name]
    with pytest.warns(FusionWarning, match=rf"layers.0.weight: .*{named}"):
        assert spec_of([operation], name in FROZEN_IMAGES).sizes == {}


def test_the_survey_is_as_wide_as_it_was():
    assert len(ROWS | IMAGES) >= 140


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(variance + 1e-10), self.bias)


class ConvOfBatchNorm(nn.Conv2d):
    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        return F.conv2d(x, F.batch_norm(flat, None, None, training=True, eps=1e-6).reshape_as(self.weight), self.bias)


@pytest.mark.parametrize("kind", [StandardisedConv, ConvOfBatchNorm])
def test_channels_of_standardised_convolutions_are_free(kind):
    spec = discover(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), kind(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 8, 8)
    )
    assert spec.sizes == {"0": 8, "2": 6} and not spec.frozen
