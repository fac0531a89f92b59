"""What is particular to WassersteinFusion: widths, options that are not built, searches, logging, the PyTorch policy."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import CNN, MLP, disguised, randomised
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.exceptions import (
    ArchitectureMismatchError,
    DiscoveryError,
    FusionError,
    FusionWarning,
    GroupNameError,
    InvalidModelError,
    WidthError,
)


def family(build=lambda: MLP([5, 8, 6, 3]), count=2):
    return [randomised(build(), np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        (8, WidthError, "Got the whole number 8; give a factor as a float"),
        ([8], WidthError, "one entry per group, 2: "),
        ([8, 0], WidthError, "'linears.1' must be a whole number of at least 1. Got 0"),
        ({"linears.0": 2.5}, WidthError, "Got 2.5"),
        (0.01, WidthError, "at least 1. Got 0"),
        ("widest", WidthError, "must be None, a float, 'sum', a dict or a list"),
        ({"linear.0": 4}, GroupNameError, "Did you mean 'linears.0'"),
    ],
)
def test_impossible_widths(widths, error, message):
    with pytest.raises(error) as raised:
        WassersteinFusion(widths).fit(family())
    assert message in str(raised.value)


def test_what_is_not_built_says_so_by_name():
    with pytest.raises(NotImplementedError, match="merge='auto'"):
        WassersteinFusion(target_widths=2.0).fit(family())


@pytest.mark.parametrize(
    "options", [{"reg": -1.0}, {"schedule": "greedy"}, {"n_init": 0}, {"symmetry": "sign"}, {"merge": "some"}, {"init": "first"}]
)
def test_parameters_are_validated_in_fit_with_scikit_learns_message(options):
    fusion = WassersteinFusion(**options)
    with pytest.raises(ValueError, match=r"The '\w+' parameter of WassersteinFusion must be"):
        fusion.fit(family())


def test_init_by_an_index_that_does_not_exist():
    with pytest.raises(FusionError, match=r"init must be the position of a model, less than 2. Got 2"):
        WassersteinFusion(init=2).fit(family())


@pytest.mark.parametrize("n_jobs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_grid_search_over_reg(n_jobs):
    models = family(count=3)
    X = np.random.default_rng(0).normal(size=(90, 5))
    with torch.no_grad():
        y = sum(m(torch.as_tensor(X)) for m in models).argmax(1).numpy()
    search = GridSearchCV(
        WassersteinFusion(),
        {"reg": [0, 1e-3, 1e-2]},
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
        n_jobs=n_jobs,
        error_score="raise",
    ).fit(FusionInput(models, X), y)
    assert search.cv_results_["mean_test_score"].shape == (3,)
    assert 0 < search.best_score_ <= 1
    assert search.score(FusionInput(models, X), y) == search.best_estimator_.score(X, y)


def test_slices_share_one_discovery(counts):
    rows = FusionInput(family(), np.zeros((10, 5)))
    for part in (rows, rows[np.arange(5)], rows[2:7]):
        WassersteinFusion(correction=None).fit(part)
    assert len(counts.traced) == 1


def test_fusion_input_behaves_as_an_array_over_rows():
    rows = FusionInput(family(), (np.arange(12).reshape(6, 2), torch.arange(6)))
    assert len(rows) == 6 and rows.shape == (6, 2)
    part = rows[np.array([True, False, True, False, False, False])]
    np.testing.assert_array_equal(part.arrays[0], [[0, 1], [4, 5]])
    assert part.arrays[1].tolist() == [0, 2] and part.models is rows.models
    assert len(rows[([0, 1], Ellipsis)]) == 2 and len(rows[1:3]) == 2
    for single in (0, np.int64(0)):
        with pytest.raises(TypeError, match="single row"):
            rows[single]
    with pytest.raises(ValueError, match="inconsistent"):
        FusionInput(family(), (np.zeros(3), np.zeros(4)))


@pytest.mark.parametrize("make", [torch.as_tensor, np.asarray])
def test_rows_of_a_stream_that_reuses_its_memory_are_copied(make):
    memory = np.zeros((5, 2))

    def stream():
        for k in range(8):
            memory[:] = k
            yield make(memory)

    (copied_rows,) = FusionInput.from_batches([], stream(), 40).arrays
    assert type(copied_rows) is type(make(memory)) and copied_rows[:, 0].tolist() == [k for k in range(8) for _ in range(5)]


def test_every_row_of_a_stream_is_kept_equally_often():
    def sampled_rows(seed):
        return FusionInput.from_batches([], [np.arange(4), np.arange(4, 10)], 3, random_state=seed).arrays[0]

    counts = sum(np.bincount(sampled_rows(seed), minlength=10) for seed in range(1000))
    assert counts.sum() == 3000 and abs(counts - 300).max() < 75


def test_progress_goes_through_logging_and_nothing_is_printed(caplog, capsys):
    with caplog.at_level(logging.INFO, "sklearn_wbfuse"):
        WassersteinFusion(verbose=1, correction=None).fit(family())
    assert any("joint sweep" in m for m in caplog.messages)
    assert capsys.readouterr().out == ""


def test_set_output_leaves_the_list_of_models_alone():
    fusion = WassersteinFusion()
    assert not hasattr(fusion, "set_output")
    assert isinstance(fusion.fit(family()).transform(family()), list)


def test_calls_before_fit_and_transform_of_another_architecture():
    from sklearn.exceptions import NotFittedError

    for call in (
        lambda fusion: fusion.transform(family()),
        lambda fusion: fusion.inverse_transform(family()),
        lambda fusion: fusion.score(np.zeros((4, 5)), [0, 1, 2, 0]),
    ):
        with pytest.raises(NotFittedError):
            call(WassersteinFusion())
    with pytest.raises(FusionError, match="different parameters"):
        WassersteinFusion().fit(family()).transform([randomised(MLP([5, 8, 3]), np.random.default_rng(0))])


def test_unseen_models_of_other_widths_come_out_in_the_targets():
    fusion = WassersteinFusion(random_state=0, correction=None).fit(family())
    (moved,) = fusion.transform([randomised(MLP([5, 4, 3, 3]), np.random.default_rng(5))])
    assert moved.linears[0].out_features == 8
    small = randomised(MLP([5, 4, 3, 3]), np.random.default_rng(5))
    torch.testing.assert_close(moved(small.example), small(small.example))


def test_fits_on_one_input_do_not_share_their_results():
    models = [randomised(MLP([5, n, 3]), np.random.default_rng(n)) for n in (6, 8)]
    rows = FusionInput(models, np.zeros((4, 5)))
    first = WassersteinFusion(weights=[0.5, 0.5], correction=None).fit(rows)
    before = first.fused_model_.linears[0].weight.clone()
    second = WassersteinFusion(weights=[0.1, 0.9], correction=None).fit(rows)
    assert first.fused_model_ is not second.fused_model_
    torch.testing.assert_close(first.fused_model_.linears[0].weight, before, rtol=0, atol=0)
    rows.models.append(randomised(MLP([5, 7, 3]), np.random.default_rng(7)))
    assert len(WassersteinFusion(correction=None).fit(rows).couplings_) == 3


@pytest.mark.parametrize("widths", [None, 0.5])
def test_other_widths_keep_the_first_models_dtype_and_requires_grad(widths):
    models = [randomised(MLP([5, n, 3]), np.random.default_rng(n)).to(torch.bfloat16) for n in (6, 8)]
    models[0].linears[0].bias.requires_grad_(False)
    fused = WassersteinFusion(widths, random_state=0).fit(models).fused_model_
    assert all(p.dtype == torch.bfloat16 for p in fused.parameters())
    assert not fused.linears[0].bias.requires_grad and fused.linears[1].bias.requires_grad


def test_different_options_at_different_widths_are_different_architectures():
    class Gelu(nn.Module):
        def __init__(self, width, approximate):
            super().__init__()
            self.a, self.b, self.approximate = nn.Linear(3, width), nn.Linear(width, 2), approximate

        def forward(self, x):
            return self.b(F.gelu(self.a(x), approximate=self.approximate))

    with pytest.raises(ArchitectureMismatchError, match=r"compute different functions.*tanh"):
        WassersteinFusion().fit([Gelu(4, "none"), Gelu(6, "tanh")])
    assert WassersteinFusion(correction=None).fit([Gelu(4, "none"), Gelu(6, "none")]).graph_.sizes == {"a": 6}


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_whole_numbers_are_floats_for_a_network_that_needs_them(dtype):
    rows = np.random.default_rng(0).integers(0, 5, (40, 5)).astype(dtype)
    y = family()[0](torch.as_tensor(rows.astype(float), dtype=family()[0].example.dtype)).argmax(1)
    for options in ({}, {"correction": "regression"}, {"cost": "activation"}):
        fusion = WassersteinFusion(random_state=0, **options)
        ours = fusion.fit(FusionInput(family(), rows), y).score(rows, y)
        assert ours == fusion.fit(FusionInput(family(), rows.astype("float32"))).score(rows.astype("float32"), y)
    assert FusionClassifier().fit(FusionInput(family()[:1], torch.as_tensor(rows)), y).score(rows, y) == 1.0


class TokensAndNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(9, 4), nn.Linear(7, 6), nn.Linear(6, 2)

    def forward(self, tokens, numbers):
        numbers = numbers - numbers.mean(1, keepdim=True)  # an error for whole numbers
        return self.last(self.first(torch.cat([self.words(tokens).mean(1), numbers], 1)).relu())


def test_only_those_inputs_are_floats_that_must_be():
    tokens, numbers = torch.randint(9, (20, 3)), torch.randint(5, (20, 3))
    model = TokensAndNumbers()
    data = FusionInput([model, model], (tokens, numbers))
    assert pickle.loads(pickle.dumps(data.taken_by(model)[:3])).tensors(model)[1].dtype == torch.float32
    fused = FusionClassifier().fit(data).predict_proba((tokens, numbers))
    np.testing.assert_allclose(fused, model(tokens, numbers.float()).softmax(1).detach(), atol=1e-5)


def test_smaller_parents_fill_larger_ones():
    small = randomised(MLP([5, 4, 3, 3]), np.random.default_rng(0))
    wide = WassersteinFusion(target_widths=2.0, correction=None).fit([small]).fused_model_
    fused = WassersteinFusion(correction=None).fit([wide, small]).fused_model_
    torch.testing.assert_close(fused(small.example), small(small.example))


class TestPyTorchPolicy:
    def test_wrappers_are_taken_off(self):
        a, b = family()
        plain = WassersteinFusion(correction=None).fit([a, b]).fused_model_
        fusion = WassersteinFusion(correction=None).fit([nn.DataParallel(a), torch.compile(b)])
        wrapped = fusion.fused_model_
        assert type(wrapped) is MLP and list(wrapped.state_dict()) == list(plain.state_dict())
        for x, y in zip(wrapped.state_dict().values(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(x, y)
        (back,) = fusion.inverse_transform([nn.DataParallel(m) for m in fusion.transform([b])], parent=nn.DataParallel(b))
        torch.testing.assert_close(back.linears[0].weight, b.linears[0].weight)

    def test_hooks_requires_grad_and_attributes_survive(self):
        a, b = family()
        calls = []
        a.register_forward_hook(lambda *_: calls.append(1))
        a.note = "kept"
        a.linears[0].bias.requires_grad_(False)
        fused = WassersteinFusion(correction=None).fit([a, b]).fused_model_
        calls.clear()
        fused(a.example)
        assert calls and fused.note == "kept" and not fused.linears[0].bias.requires_grad

    def test_gradients_are_not_copied(self):
        a, b = family()
        a(a.example).sum().backward()
        fused = WassersteinFusion().fit([a, b]).fused_model_
        assert all(p.grad is None for p in fused.parameters()) and a.linears[0].weight.grad is not None

    def test_tied_tensors_stay_tied(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
                self.c.weight = self.b.weight

            def forward(self, x):
                return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))

        torch.manual_seed(0)
        for widths in (None, 0.5):
            fused = WassersteinFusion(widths, random_state=0).fit([Tied(), Tied()]).fused_model_
            assert fused.c.weight is fused.b.weight

    def test_parametrized_tensors_are_written_back_by_right_inverse(self):
        class Doubled(nn.Module):
            def forward(self, x):
                return 2 * x

            def right_inverse(self, x):
                return x / 2

        models = family()
        plain = WassersteinFusion(correction=None).fit(models).fused_model_
        wrapped = copy.deepcopy(models)
        for m in wrapped:
            nn.utils.parametrize.register_parametrization(m.linears[0], "weight", Doubled())
        fusion = WassersteinFusion(correction=None).fit(wrapped)
        fused = fusion.fused_model_
        assert nn.utils.parametrize.is_parametrized(fused.linears[0])
        x = models[0].example
        torch.testing.assert_close(fused(x), plain(x))
        torch.testing.assert_close(fusion.transform(wrapped)[1](x), models[1](x))

    def test_a_parametrization_without_inverse_has_its_error(self):
        class OneWay(nn.Module):
            def forward(self, x):
                return x.abs()

        models = family()
        for m in models:
            nn.utils.parametrize.register_parametrization(m.linears[0], "weight", OneWay())
        with pytest.raises(DiscoveryError, match=r"must have a right_inverse .* for 'linears.0.weight'"):
            WassersteinFusion(correction=None).fit(models)

    def test_a_model_that_can_not_be_copied(self):
        a, b = family()
        a.generator = (i for i in range(3))
        with pytest.raises(InvalidModelError, match="can't be copied"):
            WassersteinFusion().fit([a, b])

    def test_integer_buffers_come_from_the_first_model(self):
        models = family(lambda: MLP([5, 8, 3], norm="affine"))
        models[0].norms[0].num_batches_tracked.fill_(7)
        fused = WassersteinFusion().fit(models).fused_model_
        assert fused.norms[0].num_batches_tracked == 7

    def test_non_persistent_buffers_come_from_the_first_model(self):
        class Shifted(nn.Module):
            def __init__(self, shift):
                super().__init__()
                self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
                self.register_buffer("shift", torch.tensor(shift), persistent=False)

            def forward(self, x):
                return self.b(F.relu(self.a(x - self.shift)))

        fused = WassersteinFusion().fit([Shifted(1.5), Shifted(1.5)]).fused_model_
        assert fused.shift == 1.5 and "shift" not in fused.state_dict()

    def test_a_size_written_into_the_code_names_the_operation(self):
        class HardCoded(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

            def forward(self, x):
                return self.b(F.relu(self.a(x)).view(-1, 16))

        x = torch.randn(2, 1, 4, 4)
        assert WassersteinFusion(example_inputs=(x,), correction=None).fit([HardCoded(), HardCoded()]).graph_.sizes == {"a": 4}
        with pytest.raises(WidthError, match=r"groups \['a'\] can't change.*view\(-1, 16\)\)'.*A size may be written"):
            WassersteinFusion(0.5, example_inputs=(x,)).fit([HardCoded(), HardCoded()])

    def test_widths_that_a_tie_forbids(self):
        class Autoencoder(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(3, 5)

            def forward(self, x):
                return F.linear(F.relu(self.a(x)), self.a.weight.t())

        with pytest.raises(WidthError, match=r"widths of groups \['a'\] can't change"):
            WassersteinFusion(2.0).fit([Autoencoder()])

    def test_several_inputs_and_outputs(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 1)

            def forward(self, x, y):
                h = F.relu(self.a(x) + self.b(y))
                return {"class": self.c(h), "value": (self.d(h), x)}

        torch.manual_seed(0)
        models, inputs = [Two(), Two()], (torch.randn(2, 3), torch.randn(2, 4))
        fusion = WassersteinFusion(example_inputs=inputs, correction=None).fit(models)
        assert fusion.graph_.sizes == {"a": 6}
        moved = fusion.transform(models)[1]
        torch.testing.assert_close(moved(*inputs)["class"], models[1](*inputs)["class"])

    def test_float16_models(self):
        models = [m.half() for m in family()]
        fused = WassersteinFusion().fit(models).fused_model_
        assert fused.linears[0].weight.dtype == torch.float16 and torch.isfinite(fused.linears[0].weight).all()

    def test_computation_on_the_device_gives_the_same_fusion(self, device):
        models = family(lambda: CNN(6, 5, 7), 3)
        x = models[0].example
        here = WassersteinFusion(example_inputs=(x,), correction=None).fit(models)
        there = WassersteinFusion(example_inputs=(x,), device=device, correction=None).fit(models)
        assert there.energy_ == pytest.approx(here.energy_)
        torch.testing.assert_close(there.fused_model_(x), here.fused_model_(x))


class TestFrozen:
    class Bessel(nn.Module):
        def __init__(self, width=5):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, width), nn.Linear(width, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(F.relu(self.b(torch.special.bessel_j0(self.a(x)))))

    def test_what_has_no_rule_is_frozen_and_named_in_one_warning(self):
        torch.manual_seed(0)
        models = [self.Bessel(), self.Bessel()]
        with pytest.warns(FusionWarning, match=r"a.weight: no rule in aten::special_bessel_j0") as caught:
            fusion = WassersteinFusion(correction=None).fit(models)
        assert len([w for w in caught if issubclass(w.category, FusionWarning)]) == 1
        assert fusion.graph_.sizes == {"b": 4} and "frozen: a.weight (no rule" in str(fusion.graph_)
        torch.testing.assert_close(fusion.fused_model_.a.weight, (models[0].a.weight + models[1].a.weight) / 2)

    @pytest.mark.filterwarnings("ignore::sklearn_wbfuse.exceptions.FusionWarning")
    def test_frozen_neurons_of_different_numbers(self):
        with pytest.raises(WidthError, match=r"Models 0 and 1, 'a.weight' axis 0: sizes 5 and 6 of neurons that can't be moved"):
            WassersteinFusion().fit([self.Bessel(5), self.Bessel(6)])


def test_a_parameter_that_is_never_used():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x)

    from sklearn_wbfuse import declare

    with pytest.raises(DiscoveryError, match=r"never uses \['spare.bias', 'spare.weight'\]"):
        WassersteinFusion(correction=None).fit([Spare(), Spare()])
    declare(Spare, unused=("spare.weight", "spare.bias"))
    models = [Spare(), Spare()]
    fused = WassersteinFusion(correction=None).fit(models).fused_model_
    torch.testing.assert_close(fused.a.weight, (models[0].a.weight + models[1].a.weight) / 2)


def test_a_layer_that_is_the_same_in_all_parents_stays_as_it_is():
    models = family()
    models[1].linears[0].load_state_dict(models[0].linears[0].state_dict())
    fused = WassersteinFusion(correction=None).fit(models).fused_model_
    torch.testing.assert_close(fused.linears[0].weight, models[0].linears[0].weight)


def test_plain_averaging_of_different_widths():
    models = [randomised(MLP([5, n, 3]), np.random.default_rng(0)) for n in (8, 6)]
    with pytest.raises(WidthError, match=r"equal widths. Got 8 neurons in group 'linears.0' of model 0 and 6"):
        VanillaAveraging().fit(models)


def test_the_scales_of_permuted_copies_are_seen_only_with_symmetry_auto():
    rng = np.random.default_rng(0)
    model = randomised(MLP([5, 8, 8, 3]), rng)
    twin = disguised(model, rng, scales=True)
    auto, plain = (WassersteinFusion(symmetry=s, correction=None).fit([model, twin]) for s in ("auto", "permutation"))
    assert auto.energy_ < 1e-9 < plain.energy_
