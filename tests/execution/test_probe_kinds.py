"""What an input is read as, where its content lands, and the steps along what the parents say of it."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from running import parents_of
from torch import nn

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.correction import Probe
from sklearn_wbfuse.discovery import cast_inputs, floating_state, plain_copy
from sklearn_wbfuse.exceptions import FusionError
from sklearn_wbfuse.execution import Runner, program_of
from sklearn_wbfuse.execution.ascent import gradient_ascent
from sklearn_wbfuse.execution.parent_runner import ParentRunner
from sklearn_wbfuse.execution.reading import read_as


class Net(nn.Module):
    """What comes before a layer, the layer, and a head on the mean of what it computes."""

    def __init__(self, layer, before=lambda x: x, width=4):
        super().__init__()
        self.layer, self.before, self.head = layer, before, nn.Linear(width, 3)

    def forward(self, *inputs):
        y = self.layer(self.before(*inputs))
        y = (y[0] if isinstance(y, tuple) else y).relu()
        if isinstance(self.layer, (nn.Conv1d, nn.Conv2d)):
            return self.head(y.flatten(2).mean(2))
        if isinstance(self.layer, nn.RNNBase):
            return self.head(y.mean(int(self.layer.batch_first)) if y.dim() == 3 else y[-1:])
        return self.head(y.mean(1) if y.dim() == 3 else y)


def pair(make, seed=0):
    """Two networks of other weights."""
    torch.manual_seed(seed)
    return [make().eval() for _ in range(2)]


def parent_runner(models, inputs, kind="auto", n=40, **options):
    probe = Probe(kind, n_samples=n, batch_size=20, **options)
    return ParentRunner(parents_of(models, inputs), None, probe, np.random.RandomState(0))


def read(model, x):
    """How a network reads an input."""
    plain = plain_copy(model)
    return read_as("auto", Runner(program_of(plain, (x,), torch.zeros(())), plain, floating_state(plain), [(x,)]))


def smooth(images):
    """The correlation of neighbours along the last dimension."""
    a, b = images[..., 1:].reshape(-1), images[..., :-1].reshape(-1)
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


def conv(channels=3):
    return nn.Conv2d(channels, 4, 3, padding=1)


MEAN, STD = torch.tensor([0.4, 0.5, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x)


IMAGES = {
    "as they stand": (lambda: Net(conv()), (2, 3, 8, 8)),
    "one example": (lambda: Net(conv()), (1, 3, 8, 8)),
    "unsqueezed": (lambda: Net(conv(1), lambda x: x[:, None]), (2, 8, 8)),
    "channels last": (lambda: Net(conv(), lambda x: x.permute(0, 3, 1, 2)), (2, 8, 8, 3)),
    "flat": (lambda: Net(conv(), lambda x: x.view(-1, 3, 8, 8)), (2, 192)),
    "padded": (lambda: Net(conv(), lambda x: F.pad(x, (1, 2, 2, 0))), (2, 3, 8, 8)),
    "reflected": (lambda: Net(conv(), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), (2, 3, 8, 8)),
    "wrapped": (lambda: Net(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), (2, 3, 8, 8)),
    "scaled": (lambda: Net(conv(), lambda x: (x - MEAN) / STD), (2, 3, 8, 8)),
    "of 255": (lambda: Net(conv(), lambda x: 2 * (x / 255) - 1), (2, 3, 8, 8)),
    "scaled each": (lambda: Net(conv(), lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.amax()), (2, 3, 8, 8)),
    "normed": (lambda: Net(conv(), Normed()), (2, 3, 8, 8)),
    "patches": (lambda: Net(nn.Conv2d(3, 4, 4, stride=4)), (2, 3, 8, 8)),
    "grey three times": (lambda: Net(conv(), lambda x: x.expand(-1, 3, -1, -1)), (2, 1, 8, 8)),
    "blue first": (lambda: Net(conv(), lambda x: x[:, [2, 1, 0]]), (2, 3, 8, 8)),
    "beside coordinates": (lambda: Net(conv(), lambda x: torch.cat([x, torch.zeros_like(x[:, :1])], 1)), (2, 2, 8, 8)),
    "one half": (lambda: Net(conv(1), lambda x: x.chunk(2, 1)[1]), (2, 2, 8, 8)),
    "pooled": (lambda: Net(conv(), nn.MaxPool2d(2)), (2, 3, 8, 8)),
    "pooled with positions": (lambda: Net(conv(), lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), (2, 3, 8, 8)),
    "resized exactly": (lambda: Net(conv(), lambda x: F.interpolate(x, 6, mode="nearest-exact")), (2, 3, 8, 8)),
    "resized smoothly": (lambda: Net(conv(), lambda x: F.interpolate(x, 6, mode="bilinear", antialias=True)), (2, 3, 8, 8)),
    "unfolded": (lambda: Net(nn.Linear(48, 4), lambda x: F.unfold(x, 4, stride=4).mT), (2, 3, 8, 8)),
    "channels shuffled": (lambda: Net(conv(4), lambda x: torch.channel_shuffle(x, 2)), (2, 4, 8, 8)),
    "by root mean square": (lambda: Net(conv(), lambda x: F.rms_norm(x, (8, 8))), (2, 3, 8, 8)),
}
SEQUENCES = {
    "batch first": (lambda: Net(nn.LSTM(3, 4, batch_first=True)), (2, 9, 3)),
    "steps first": (lambda: Net(nn.GRU(3, 4)), (9, 2, 3)),
    "unbatched": (lambda: Net(nn.RNN(3, 4)), (9, 3)),
    "turned": (lambda: Net(nn.LSTM(3, 4, batch_first=True), lambda x: x.mT), (2, 3, 9)),
}
SIGNALS = {
    "as they stand": (lambda: Net(nn.Conv1d(3, 4, 3)), (2, 3, 20)),
    "channels last": (lambda: Net(nn.Conv1d(3, 4, 3), lambda x: x.mT), (2, 20, 3)),
    "single channel": (lambda: Net(nn.Conv1d(1, 4, 3), lambda x: x.unsqueeze(1)), (2, 20)),
}
NOISE = {"linear": (lambda: Net(nn.Linear(6, 4)), (2, 6)), "attention": (lambda: Net(nn.Linear(6, 4)), (2, 7, 6))}


@pytest.mark.parametrize(
    ("kind", "make", "shape"),
    [(k, *case) for k, cases in {"images": IMAGES, "sequences": SEQUENCES, "signals": SIGNALS, "noise": NOISE}.items()
     for case in cases.values()],
    ids=[f"{k}: {n}" for k, cases in {"images": IMAGES, "sequences": SEQUENCES, "signals": SIGNALS, "noise": NOISE}.items()
         for n in cases],
)  # fmt: skip
def test_the_first_layer_says_what_inputs_are(kind, make, shape):
    model, x = make().eval(), torch.rand(shape)
    readings = read(model, x)
    assert [r.kind for r in readings.values()] == ([] if kind == "noise" else [kind])
    for reading in readings.values():
        placed = reading.placed(torch.ones(reading.shape), torch.zeros_like(x))
        assert placed.shape == x.shape and placed.any()


@pytest.mark.parametrize("name", ["channels last", "flat", "padded", "scaled", "normed"])
def test_content_lands_where_the_layer_reads_it(name):
    """What reaches the layer is the content, value by value; padding stays zero."""
    make, shape = IMAGES[name]
    model, x = make().eval(), torch.rand(shape)
    (reading,) = read(model, x).values()
    content = torch.rand(reading.shape)
    arrived = model.before(reading.placed(content, torch.zeros_like(x)))
    expected = {"padded": content * (reading.index > 0), "scaled": (content - MEAN) / STD}.get(name, content)
    assert torch.allclose(arrived, expected, atol=1e-4)
    if name == "padded":
        assert int((reading.index == 0).sum()) == 2 * 3 * (10 * 11 - 64)


@pytest.mark.parametrize("make", [SEQUENCES["batch first"], SEQUENCES["steps first"]])
def test_steps_of_sequences_follow_one_another(make):
    runner = parent_runner(pair(make[0]), (torch.randn(make[1]),), n=100)
    along = torch.cat([b[0] if make[1][0] == 2 else b[0].transpose(0, 1) for b in runner.batches])
    assert smooth(along.mT) > 0.3 > smooth(along.transpose(0, 1)[..., :1].mT)


def test_images_are_smooth_in_space_and_noise_by_name_is_not():
    models, x = pair(IMAGES["channels last"][0]), (torch.rand(2, 8, 8, 3),)
    images, noise = (
        torch.cat([b[0] for b in parent_runner(models, x, k).batches]).permute(0, 3, 1, 2) for k in ("auto", "noise")
    )
    assert smooth(images) > 0.4 and smooth(images) > smooth(noise) + 0.2


def test_tokens_of_a_narrow_vocabulary():
    models = pair(lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(24, 3)))
    runner = parent_runner(models, (torch.zeros(2, 6, dtype=torch.long),), n=200)
    tokens = torch.cat([b[0] for b in runner.batches])
    assert runner.source == "tokens" and tokens.shape == (200, 6) and set(tokens.unique().tolist()) <= set(range(11))
    assert tokens.unique().numel() > 5


class Two(nn.Module):
    """Images, rows and a single number."""

    def __init__(self):
        super().__init__()
        self.conv, self.row, self.head = conv(), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, image, row, temperature):
        return self.head(self.conv(image).relu().mean((2, 3)) + self.row(row).relu()) * temperature


def test_inputs_of_several_kinds():
    torch.manual_seed(0)
    examples = (torch.rand(2, 3, 8, 8), 10 + torch.randn(2, 5), torch.tensor(0.5))
    runner = parent_runner(pair(Two), examples, n_steps=0)
    assert runner.source == "images"
    for image, row, temperature in runner.batches:
        assert smooth(image) > 0.4 and abs(float(row.mean()) - 10) < 1 and float(temperature) == 0.5
    named = dict(zip(("image", "row", "temperature"), examples, strict=True))
    fusion = WassersteinFusion(example_inputs=named, random_state=0, probe=Probe(n_samples=40)).fit(pair(Two))
    assert fusion.agreement_.source == "images"


@pytest.mark.parametrize("low", [0.0, 100.0])
@pytest.mark.parametrize(("make", "shape"), [IMAGES["as they stand"], SEQUENCES["steps first"], SIGNALS["channels last"]])
def test_inputs_lie_in_the_range_of_the_examples(make, shape, low):
    torch.manual_seed(0)
    example = low + 20 * torch.rand(shape)
    for (batch,) in parent_runner(pair(make), (example,)).batches:
        assert example.min() <= batch.min() and batch.max() <= example.max() + 1e-4
        assert float(batch.mean()) == pytest.approx(float(example.mean()), abs=3) and float(batch.std()) > 2


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_examples_give_their_mean_alone(value):
    batches = parent_runner(pair(IMAGES["as they stand"][0]), (torch.full((2, 3, 8, 8), value),)).batches
    drawn = torch.cat([b[0] for b in batches])
    assert float(drawn.mean()) == pytest.approx(value, abs=0.3) and float(drawn.std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("kind", "make", "shape"),
    [("images", *NOISE["linear"]), ("signals", *IMAGES["as they stand"]), ("sequences", *NOISE["linear"]),
     ("tokens", *NOISE["linear"])],
)  # fmt: skip
def test_kinds_that_do_not_fit_raise(kind, make, shape):
    models, x = pair(make), torch.rand(shape)
    with pytest.raises(FusionError, match=f"probe='{kind}'.*use probe='auto'"):
        WassersteinFusion(correction="regression", probe=kind, example_inputs=x).fit(models)


def test_a_kind_by_name_goes_for_inputs_of_its_dimensions():
    models = pair(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)))
    drawn = parent_runner(models, (torch.rand(2, 1, 8, 8),), "images")
    assert drawn.source == "images" and smooth(torch.cat([b[0] for b in drawn.batches])) > 0.4


def ascend(models, x, n_steps=5, leaves=(0,)):
    return gradient_ascent([plain_copy(m) for m in models], x, leaves, n_steps, torch.Generator().manual_seed(0))


def test_ascent_raises_what_parents_are_sure_of_and_leaves_the_rest():
    models, x = pair(IMAGES["as they stand"][0]), torch.rand(20, 3, 8, 8)
    original, states = x.clone(), [copy.deepcopy(m.state_dict()) for m in models]
    before = torch.random.get_rng_state()
    (after,) = ascend(models, (x,))

    def loss(inputs):  # towards the classes that are drawn
        classes = torch.randint(3, (10,), generator=torch.Generator().manual_seed(0))
        return sum(float(F.cross_entropy(m(inputs[::2]), classes)) for m in models)

    with torch.no_grad():
        assert loss(after) < loss(x) - 0.01
    assert torch.equal(after[1::2], x[1::2]) and not torch.equal(after[::2], x[::2])
    assert x.min() <= after.min() and after.max() <= x.max()
    assert torch.equal(x, original) and torch.equal(torch.random.get_rng_state(), before) and not after.requires_grad
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    assert torch.equal(ascend(models, (x,), 0)[0], x)


class Dropped(Net):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, training=True))


class Ungraded(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Written(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.2))


class Maps(Net):
    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "moves"),
    [(Dropped, True), (Written, True), (Ungraded, False), (Maps, False)],
    ids=lambda c: getattr(c, "__name__", c),
)
def test_ascent_where_networks_are_unlike_others(make, moves):
    models, x = pair(lambda: make(conv())), torch.rand(8, 3, 6, 6)
    original, before = x.clone(), torch.random.get_rng_state()
    (after,) = ascend(models, (x,))
    assert torch.equal(after, x) != moves and torch.isfinite(after).all()
    assert torch.equal(x, original) and torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("dtype", "same_dtype"), [(torch.float64, False), (torch.float16, False), (torch.bfloat16, True)])
def test_other_precisions(dtype, same_dtype, device):
    models = [m.to(device, dtype) for m in pair(IMAGES["as they stand"][0])]
    x = torch.rand(2, 3, 6, 6).to(dtype if same_dtype else torch.float32)
    assert not torch.equal(ascend(models, (x,))[0], x)
    with warnings.catch_warnings(action="error"):
        fusion = WassersteinFusion(example_inputs=x, random_state=0, probe=Probe(n_samples=64, batch_size=32)).fit(models)
    assert fusion.agreement_.source == "images"
    assert all(torch.isfinite(v).all() and v.dtype == dtype for v in fusion.fused_model_.state_dict().values())
    fused = plain_copy(fusion.fused_model_)
    assert torch.isfinite(fused(*cast_inputs((x,), fused))).all()


class TestMixtures:
    def batches(self, make, shape, n=30, mixes=True, **options):
        models, rows = pair(make), torch.rand(n, *shape)
        probe = Probe(**{"n_samples": 80, "batch_size": 40, **options})
        rng = np.random.RandomState(0)
        runner = ParentRunner(parents_of(models, (rows[:2],)), FusionInput(models, rows), probe, rng, mixes=mixes)
        return rows, torch.cat([x for (x,) in runner.batches]), runner

    @pytest.mark.parametrize(
        ("make", "shape"),
        [(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), (5,)),
         (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)), (2, 8, 8))],
        ids=["rows", "images"],
    )  # fmt: skip
    def test_mixtures_make_up_for_rows_that_lack(self, make, shape):
        rows, inputs, runner = self.batches(make, shape)
        assert len(inputs) == 80 and not runner.has_rows_alone
        is_row = torch.tensor([bool((x == rows).flatten(1).all(1).any()) for x in inputs])
        assert int(is_row.sum()) == 30 and is_row[: int(runner.n_unmixed)].all()
        # a mixture of two rows lies between rows, one of a row and a drawing does not
        combined = torch.linalg.lstsq(rows.flatten(1).T.double(), inputs[~is_row].flatten(1).T.double())
        spanned = (rows.flatten(1).T.double() @ combined.solution).T
        off = (inputs[~is_row].flatten(1).double() - spanned).norm(dim=1) > 1e-3
        assert bool(off.all()) == (len(shape) == 3)
        assert inputs.min() >= rows.min() and inputs.max() <= rows.max()

    @pytest.mark.parametrize(
        ("options", "count"), [({"mixes": False}, 30), ({"n_mixed": 0}, 30), ({"n_mixed": 20}, 50), ({"n_samples": 30}, 30)]
    )
    def test_how_many(self, options, count):
        _, inputs, runner = self.batches(lambda: nn.Linear(5, 2), (5,), **options)
        assert len(inputs) == count and runner.has_rows_alone == (count == 30)
