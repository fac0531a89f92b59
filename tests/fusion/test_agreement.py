"""How much a fused network agrees with its parents: the numbers, what they are measured on, and the warning."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from networks import MLP, disguised, randomised
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, VanillaAveraging, WassersteinFusion, load
from sklearn_wbfuse.alignment import Identity
from sklearn_wbfuse.correction import Probe
from sklearn_wbfuse.exceptions import FusionWarning, PoorFusionWarning
from sklearn_wbfuse.fusion import Agreement, Roles
from sklearn_wbfuse.fusion.agreement import agreement_of, label_kind
from sklearn_wbfuse.network.couplings import Permutation

KINDS = [None, "targets", "classes", "binary"]
FINITE = st.floats(-1e6, 1e6, width=32)


@st.composite
def outputs(draw, count=3):
    shape = draw(array_shapes(min_dims=1, max_dims=4, max_side=5))
    return [draw(arrays("f4", shape, elements=FINITE)) for _ in range(count)]


@given(outputs(), st.sampled_from(KINDS), st.booleans())
def test_shares_are_symmetric_and_equal_outputs_agree_wholly(triple, kind, probabilities):
    a, b, c = triple
    options = {"source": "rows", "kind": kind, "probabilities": probabilities}
    agreement = agreement_of(a, [b, c], [0.5, 0.5], **options)
    assert ((agreement.with_parents >= 0) & (agreement.with_parents <= 1)).all() and 0 <= agreement.among_parents <= 1
    assert agreement.n_samples == len(a) and agreement.mean == pytest.approx(agreement.with_parents.mean())
    other = agreement_of(b, [a, c], [0.5, 0.5], **options)
    assert other.with_parents[0] == agreement.with_parents[0] and other.among_parents == agreement.with_parents[1]
    assert agreement_of(b, [c, a], [0.5, 0.5], **options).with_parents[0] == agreement.among_parents
    same = agreement_of(a, [a, a.copy()], [0.5, 0.5], **options)
    assert same.with_parents.tolist() == [1, 1] and same.among_parents == 1 and not same.is_poor


@given(arrays("f8", (7, 2), elements=st.floats(-10, 10)), st.floats(0.1, 10))
def test_concordance_is_that_of_lin_and_ignores_the_unit(a, unit):
    b, far = a[::-1] + 0.3, np.array([0, 1e3])
    concordance = agreement_of(a, [b], [1], "rows", kind="targets").with_parents[0]
    apart = possible = 0.0
    for x, y in zip(a.T, b.T, strict=True):
        apart += np.mean((x - y) ** 2)
        possible += np.var(x) + np.var(y) + (np.mean(x) - np.mean(y)) ** 2
    assert concordance == pytest.approx(max(0.0, 1 - apart / possible), abs=1e-9)
    assert agreement_of(unit * a, [unit * b], [1], "rows", kind="targets").with_parents[0] == pytest.approx(concordance, abs=1e-9)
    shifted = agreement_of(a + far, [b + far], [1], "rows", kind="targets").with_parents[0]
    assert shifted == pytest.approx(concordance, abs=1e-5)  # the distance of columns is no concordance


@pytest.mark.parametrize(
    ("shape", "positions", "axis"),
    [((4, 3), (4,), 1), ((4, 5, 3), (4, 5), 2), ((4, 3, 2, 2), (4, 2, 2), 1), ((4, 3, 1, 2, 2), (4, 1, 2, 2), 1)],
)
def test_classes_stand_where_networks_put_them(shape, positions, axis):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=shape), rng.normal(size=shape)
    agreement = agreement_of(a, [b], [1], "rows")
    assert a.argmax(axis).shape == positions and agreement.measure == "predictions" and agreement.n_samples == 4
    assert agreement.with_parents[0] == np.mean(a.argmax(axis) == b.argmax(axis))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_single_output(shape):
    a, b = (np.array(v).reshape(shape) for v in ([0.1, 0.4, 0.6, 0.9], [0.4, 0.6, 0.9, -0.1]))
    assert agreement_of(a, [b], [1], "rows").measure == "values"
    assert agreement_of(a, [b], [1], "rows", kind="classes").measure == "values"  # three classes, which one logit can't tell
    logits, shares = (agreement_of(a, [b], [1], "rows", kind="binary", probabilities=p) for p in (False, True))
    assert logits.measure == shares.measure == "predictions"
    assert (logits.with_parents[0], shares.with_parents[0]) == (0.75, 0.5)
    assert agreement_of(a, [b], [1], "rows", probabilities=True).with_parents[0] == 0.5


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (None, None),
        ([0.5, 1.0, 2.0], "targets"),
        ([[0.5, 1.0], [1.0, 2.0]], "targets"),
        (torch.tensor([0.0, 1.0, 1.0]), "binary"),
        ([3, 1, 2], "classes"),
        (["a", "b", "a"], "binary"),
        (np.array(["a", 1, None], object), None),
    ],
)
def test_what_labels_say(y, kind):
    with warnings.catch_warnings(action="error"):
        assert label_kind(y) == kind


def test_what_is_poor():
    def verdict(shares, among, **options):
        return Agreement(shares, among, "rows", 100, **options).is_poor

    assert verdict([0.8, 0.7], 0.86) and not verdict([0.8, 0.7], 0.84)
    assert verdict([0.89], np.nan) and not verdict([0.91], np.nan)  # a single parent can be kept in full
    assert not verdict([0.9, 0.1], np.nan, counted=(True, False))


def test_a_parent_without_weight_has_a_share_and_does_not_count():
    a, b, c = (np.eye(3)[[i, 1, 2]] for i in range(3))
    agreement = agreement_of(a, [a, b, c], [0.5, 0.5, 0.0], "rows")
    assert agreement.with_parents == pytest.approx([1, 2 / 3, 2 / 3]) and agreement.mean == pytest.approx(5 / 6)
    assert agreement.among_parents == pytest.approx(2 / 3)
    assert np.isnan(agreement_of(a, [a, b], [1.0, 0.0], "rows").among_parents)
    assert "parent 2 (weight 0)        66.7%" in str(agreement) and str(agreement) == repr(agreement)


def test_it_prints_as_a_table():
    assert str(Agreement([0.5, 1.0], 0.25, "noise", 1200)) == (
        "Same predictions on 1,200 samples of noise\n\n"
        "fused network with        agrees\n------------------------  ------\nparent 0                   50.0%\n"
        "parent 1                  100.0%\nparents, mean              75.0%\nparents among themselves   25.0%"
    )
    title, _, *lines = str(Agreement([0.5], np.nan, "images", 7, "values")).splitlines()
    assert title == "Concordance of the outputs on 7 images"
    assert lines == ["fused network with  agrees", "------------------  ------", "parent 0             0.500"]


def copies(seed=2, widths=(5, 8, 6, 3)):
    """A network and a permuted copy: they agree wholly, and their plain average with neither."""
    model = randomised(MLP(list(widths)), np.random.default_rng(seed))
    return [model, disguised(model, np.random.default_rng(seed))]


def rows(n=300, seed=1):
    return np.random.default_rng(seed).normal(size=(n, 5))


@pytest.mark.parametrize("options", [{}, {"correction": "regression"}, {"cost": 0.5}, {"correction": "repair", "probe": "noise"}])
@pytest.mark.parametrize("with_rows", [False, True])
def test_permuted_copies_agree_wholly_and_nobody_is_warned(options, with_rows):
    models = copies()
    with warnings.catch_warnings(action="error", category=FusionWarning):
        fusion = WassersteinFusion(random_state=0, **options).fit(FusionInput(models, rows()) if with_rows else models)
        agreement = fusion.agreement_
    assert agreement.with_parents.tolist() == [1, 1] and agreement.among_parents == 1 and fusion.agreement_reason_ is None
    assert agreement.source == ("rows" if with_rows and options.get("probe") != "noise" else "noise")


class Seeing(Identity):
    """Remembers the parents on the inputs of the probe."""

    def align(self, parents, target, objective=None):
        Seeing.runs = parents.runs
        return super().align(parents, target, objective)


class Seen(VanillaAveraging):
    def roles(self):
        return Roles(Seeing())


def fit_and_held_out(correction, models, X, **options):
    """A fusion, and the rows that no correction is fitted on."""
    fusion = Seen(correction=correction, random_state=0, **options).fit(FusionInput(models, X))
    pairs = zip(Seeing.runs.batches, Seeing.runs.held_out(), strict=True)
    return fusion, torch.cat([x[mask] for (x,), mask in pairs])


@pytest.mark.filterwarnings("ignore::sklearn_wbfuse.exceptions.PoorFusionWarning")
def test_rows_that_are_held_out_are_those_that_no_regression_sees():
    X = rows()
    fusion, held_out = fit_and_held_out("regression", copies(), X, probe=Probe(n_samples=400, batch_size=100))
    assert 58 <= len(held_out) <= 66 and len(held_out) == fusion.agreement_.n_samples  # every fifth, no mixture of rows
    assert (held_out[:, None] == torch.as_tensor(X)).all(2).any(1).all()


@pytest.mark.filterwarnings("ignore::sklearn_wbfuse.exceptions.PoorFusionWarning")
@pytest.mark.parametrize("correction", ["repair", "regression"])
def test_what_networks_said_on_the_way_is_what_they_say(correction):
    """Outputs are taken from the passes of the correction; networks that are run anew say the same."""
    models = copies()
    fusion, held_out = fit_and_held_out(correction, models, rows())
    with torch.no_grad():
        of_fused, *of_parents = (model(held_out).numpy() for model in (fusion.fused_model_, *models))
    assert agreement_of(of_fused, of_parents, [0.5, 0.5], "rows").stored == fusion.agreement_.stored
    assert 0 < fusion.agreement_.mean < 1


@pytest.mark.parametrize(("n", "count"), [(40, 400), (300, 60)])
def test_few_rows_are_judged_with_their_mixtures(n, count):
    fusion = WassersteinFusion(correction="regression", random_state=0).fit(FusionInput(copies(), rows(n)))
    assert abs(fusion.agreement_.n_samples - count) <= 1 and fusion.agreement_.source == "rows"


class TestWarning:
    def message(self, models, fusion=None):
        fusion = VanillaAveraging(correction="repair", random_state=0) if fusion is None else fusion
        with pytest.warns(PoorFusionWarning) as caught:
            fusion.fit(models)
        assert [w.filename for w in caught] == [__file__]
        return str(caught[0].message), fusion.agreement_

    def test_both_numbers_the_inputs_and_the_remedies_in_order(self):
        models = copies()
        text, agreement = self.message(models)
        assert (
            agreement.is_poor and f"on {agreement.mean:.1%} of 400 samples of noise, the parents among themselves 100.0%" in text
        )
        orders = [text.index(w) for w in ("unlabelled rows, fit(FusionInput(", "compare(models", "fused_model_.train()")]
        assert orders == sorted(orders) and "wider" not in text and "fewer" not in text
        assert "this order: more rows;" in self.message(FusionInput(models, rows()))[0]
        with_noise = VanillaAveraging(correction="repair", probe="noise", random_state=0)
        assert "probe='data'" in self.message(FusionInput(models, rows()), with_noise)[0]
        assert "fewer models" in self.message([*models, models[0]])[0]

    def test_the_width_that_it_names_can_be_fitted(self):
        model = copies()[0]
        text, agreement = self.message([model], WassersteinFusion(0.25, correction="repair", random_state=0))
        assert np.isnan(agreement.among_parents) and "; a wider target; another" in text and "among" not in text
        others = [model, copies(5)[0]]

        class Rolled(Identity):
            def align(self, *arguments):
                alignment = super().align(*arguments)
                rolled = {name: Permutation(np.roll(c.index, 1)) for name, c in alignment.couplings[1].items()}
                return dataclasses.replace(alignment, couplings=[alignment.couplings[0], rolled])

        class Lost(WassersteinFusion):
            def roles(self):
                return Roles(Rolled())

        text, _ = self.message([model, copy.deepcopy(model)], Lost(correction="repair", random_state=0))
        assert "a wider target, target_widths=1.5, merge='all'" in text
        wider = WassersteinFusion(target_widths=1.5, merge="all", correction="repair", random_state=0).fit(others)
        assert wider.graph_.sizes["linears.0"] == 12 and wider.agreement_ is not None

    def test_values(self):
        text, agreement = self.message(copies(0, (5, 8, 6, 1)))
        assert agreement.measure == "values" and f"by a concordance of {agreement.mean:.3f}, the parents" in text

    def test_without_a_correction_nobody_is_warned(self):
        with warnings.catch_warnings(action="error", category=FusionWarning):
            fusion = VanillaAveraging().fit(copies())
            assert fusion.agreement_.is_poor and fusion.agreement_.n_samples == 200


class Pair(nn.Module):
    """Returns a mapping, of which the first floating entry with one row per sample counts."""

    def __init__(self, result):
        super().__init__()
        self.hidden, self.head, self.result = nn.Linear(5, 6), nn.Linear(6, 3), result

    def forward(self, x):
        y = self.head(torch.relu(self.hidden(x)))
        return {
            "mapping": {"best": y.argmax(1), "norm": y.norm(), "logits": y},
            "mean": y.mean(),
            "classes": y.argmax(1),
            "NaN": y + x[:, :1].sqrt(),  # numbers on the positive rows of the discovery
        }[self.result]


@pytest.mark.filterwarnings("ignore:.*neurons that stay in place")
@pytest.mark.parametrize("correction", [None, "repair"])
@pytest.mark.parametrize("result", ["mapping", "mean", "NaN"])
def test_outputs_of_other_kinds(result, correction):
    torch.manual_seed(0)
    model, X = Pair(result), torch.rand(60, 5)
    X[2:, 0] *= -1
    fusion = WassersteinFusion(correction=correction, random_state=0).fit(FusionInput([model, copy.deepcopy(model)], X))
    if result == "mapping":
        assert fusion.agreement_.with_parents.tolist() == [1, 1]
    else:
        words = {"mean": "parent 0 hold no floating-point tensor with one row", "NaN": "parent 0 hold NaN"}
        assert fusion.agreement_ is None and words[result] in fusion.agreement_reason_


def test_what_y_and_predictors_say_of_outputs():
    models, X = copies(widths=(5, 8, 6, 1)), rows(60)
    for fit, measure in [
        (lambda: WassersteinFusion().fit(FusionInput(models, X), np.arange(60) % 2), "predictions"),
        (lambda: WassersteinFusion().fit(FusionInput(models, X), np.arange(60) / 7), "values"),
        (lambda: FusionClassifier().fit(FusionInput(models, X)).fusion_, "predictions"),
        (lambda: FusionRegressor().fit(FusionInput(copies(), X)).fusion_, "values"),
    ]:
        assert fit().agreement_.measure == measure


class Drawing(nn.Module):
    def forward(self, x):
        return x + 0 * torch.rand(1)


@pytest.mark.parametrize("correction", [None, "regression"])
@pytest.mark.parametrize("with_rows", [False, True])
def test_nothing_else_changes(correction, with_rows):
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Drawing(), nn.Linear(6, 3)]
    models = [nn.Sequential(*copy.deepcopy(layers)).train() for _ in range(2)]
    before = [copy.deepcopy(m.state_dict()) for m in models]
    np.random.seed(0)
    torch.manual_seed(0)
    rng = np.random.RandomState(0)
    fusion = WassersteinFusion(correction=correction, random_state=rng)
    fusion.fit(FusionInput(models, rows()) if with_rows else models)
    weights = copy.deepcopy(fusion.fused_model_.state_dict())
    before_it, drawn = torch.random.get_rng_state(), str(rng.get_state())
    assert fusion.agreement_ is not None
    assert torch.equal(torch.random.get_rng_state(), before_it) and str(rng.get_state()) == drawn
    assert np.random.rand() == np.random.RandomState(0).rand()
    for model, old in zip([*models, fusion.fused_model_], [*before, weights], strict=True):
        assert all(torch.equal(model.state_dict()[n], t) for n, t in old.items())
    assert all(m.training for m in models) and not fusion.fused_model_.training


class Counting(nn.Linear):
    """Says how many rows it was run on."""

    passes = []

    def forward(self, x):
        Counting.passes.append(len(x))
        return super().forward(x)


class TestLater:
    def test_a_fusion_without_correction_measures_when_it_is_asked(self):
        Counting.passes = []
        fusion = WassersteinFusion(correction=None).fit(FusionInput([Counting(5, 3) for _ in range(2)], rows()))
        assert max(Counting.passes) < 10  # the rows of the discovery
        first = fusion.agreement_
        measured = [n for n in Counting.passes if n >= 10]
        assert sum(measured) == 3 * 200 and first.source == "rows" and first.n_samples == 200
        assert fusion.agreement_ is first and [n for n in Counting.passes if n >= 10] == measured

    @pytest.mark.parametrize("which", ["fused", "parent"])
    def test_networks_that_were_trained_since(self, which):
        models = copies()
        fusion = WassersteinFusion(correction=None).fit(models)
        with torch.no_grad():
            next((fusion.fused_model_ if which == "fused" else models[1]).parameters()).add_(1)
        assert fusion.agreement_ is None and "changed since fit" in fusion.agreement_reason_

    def test_inputs_that_can_not_be_drawn(self):
        fusion = WassersteinFusion(correction=None, probe="data").fit(copies())
        assert fusion.agreement_ is None and "probe='data' needs rows" in fusion.agreement_reason_
        fusion = WassersteinFusion(correction=None).fit(FusionInput(copies(), rows(3)))
        assert fusion.agreement_ is None and "Got 3; give more rows" in fusion.agreement_reason_

    def test_before_fit(self):
        assert not hasattr(WassersteinFusion(), "agreement_")


class Stepper(nn.Module):
    """The state decides the batch size, which therefore can't be changed."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = getattr(nn, kind)(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x, h):
        return self.head(self.cell(x, h)[0][:, -1])


@pytest.mark.filterwarnings("ignore:.*neurons that stay in place")
@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_networks_that_take_their_state(kind):
    model = Stepper(kind)
    inputs = (torch.randn(2, 4, 5), torch.zeros(1, 2, 6))
    fusion = WassersteinFusion(correction="repair", example_inputs=inputs, random_state=0, probe=Probe(n_samples=500)).fit(
        [model]
    )
    assert fusion.agreement_.with_parents.tolist() == [1.0]


@pytest.mark.parametrize("options", [{}, {"correction": "repair"}])
def test_it_is_saved(options, tmp_path):
    models = copies()

    def saved_and_loaded(fusion):
        fusion.save(tmp_path / "fusion")
        return load(tmp_path / "fusion", model=models[0])

    for way in (saved_and_loaded, lambda fusion: pickle.loads(pickle.dumps(fusion)), copy.deepcopy):
        fusion = WassersteinFusion(random_state=0, weights=[1, 0], **options).fit(models)
        again = way(fusion)
        assert repr(again.agreement_) == repr(fusion.agreement_) and again.agreement_reason_ is None
        assert again.agreement_.counted == (True, False)
        assert "ParentRunner" not in pickle.dumps(again).decode("latin1")  # neither parents nor rows went along


def test_the_reason_is_saved(tmp_path):
    fusion = WassersteinFusion(correction=None, probe="data").fit(copies())
    fusion.save(tmp_path / "fusion")
    loaded = load(tmp_path / "fusion", model=copies()[0])
    assert loaded.agreement_ is None and loaded.agreement_reason_ == fusion.agreement_reason_
