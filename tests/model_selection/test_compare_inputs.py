"""`compare`: what it is given, errors, and how the table is printed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparing import PLAIN, ROWS, data, family, silent
from networks import Recurrent, randomised
from sklearn.base import BaseEstimator
from torch import nn

from sklearn_wbfuse import VanillaAveraging, WassersteinFusion, compare
from sklearn_wbfuse.exceptions import ArchitectureMismatchError, FusionError, InvalidModelError
from sklearn_wbfuse.model_selection.table import Comparison


@pytest.mark.parametrize("fusions", [WassersteinFusion(), [WassersteinFusion()], (WassersteinFusion(),), None])
def test_one_estimator_needs_no_list_and_is_the_default(fusions):
    models = family()
    X, y, _ = data(models)
    names = [row["name"] for row in compare(models, X, y, fusions, verbose=False)]
    assert names[names.index("plain average") + 1] == "WassersteinFusion()"


def test_no_fusion_gives_the_controls():
    models = family()
    X, y, _ = data(models)
    assert compare(models, X, y, [], verbose=False)[-1]["name"] == "plain average"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x, z):
        return self.head(torch.relu(self.left(x) + self.right(z)))


def test_several_inputs_are_a_tuple():
    torch.manual_seed(0)
    models = [TwoInputs(), TwoInputs()]
    X = (torch.randn(30, 4), np.random.default_rng(0).normal(size=(30, 3)).astype("float32"))
    y = models[0](X[0], torch.as_tensor(X[1])).argmax(1)
    rows = silent(models, tuple(a[:20] for a in X), y[:20])
    assert rows["parent 0"]["score"] == 1 and rows["WassersteinFusion()"]["score"] is not None
    rows = silent(models, tuple(a[:20] for a in X), y[:20], X_fit=tuple(a[20:] for a in X))
    assert rows["parent 0"]["score"] == 1 and rows["WassersteinFusion()"]["score"] is not None
    with pytest.raises(FusionError, match="share memory with X"):
        compare(models, X, y, X_fit=(X[0].flip(0), X[1]), verbose=False)


def test_tokens_stay_whole_numbers():
    models = [randomised(Recurrent("gru", 6, tokens=9), np.random.default_rng(seed), torch.float32) for seed in (0, 1)]
    X = np.random.default_rng(2).integers(0, 9, (20, *models[0].example.shape[1:]))
    y = models[0](torch.as_tensor(X))
    y = (y[0] if isinstance(y, tuple) else y).argmax(-1)
    assert silent(models, X, y)["parent 0"]["score"] == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": "a model"}, InvalidModelError, "Put the models into a list"),
        ({"models": []}, InvalidModelError, "at least one model"),
        ({"models": "two depths"}, ArchitectureMismatchError, "different parameters"),
        ({"fusions": WassersteinFusion}, TypeError, r"fusions\[0\] .* the class WassersteinFusion; give an instance"),
        ({"fusions": [WassersteinFusion(), VanillaAveraging]}, TypeError, r"fusions\[1\] .* the class VanillaAveraging"),
        ({"fusions": nn.Sequential(nn.Linear(2, 2))}, TypeError, "a network, Sequential; networks go first"),
        ({"fusions": [nn.Linear(2, 2)]}, TypeError, "a network, Linear; networks go first"),
        ({"fusions": "wasserstein"}, TypeError, "Got str"),
        ({"fusions": ""}, TypeError, "Got str"),
        ({"fusions": SimpleNamespace(fit=None)}, TypeError, "Got SimpleNamespace"),
        ({"fusions": BaseEstimator()}, TypeError, "Got BaseEstimator"),
        ({"fusions": {"name": WassersteinFusion()}}, TypeError, "Got str"),
        ({"fusions": 3}, TypeError, "Got int"),
        ({"y": np.zeros(7, dtype=int)}, FusionError, "X has 80 rows but y has 7"),
        ({"y": None}, FusionError, "y is None; give one label per row"),
        ({"y": 3}, FusionError, "y is 3"),
        ({"y": np.full(ROWS, 5)}, FusionError, r"classes 0 to 2, but y holds \[5\]"),
        ({"y": np.array(["a"] * ROWS)}, FusionError, "relabel y"),
        ({"y": np.linspace(0.1, 1, ROWS)}, FusionError, r"shape \(80,\), but the outputs of parent 0 have shape \(80, 3\)"),
        ({"X": np.zeros((0, 5)), "y": []}, FusionError, "X must have at least one row"),
        ({"X": [np.zeros((ROWS, 5)), np.zeros((ROWS, 5))]}, FusionError, "into a tuple, not a list"),
        ({"X": np.zeros((ROWS, 4))}, FusionError, "example_inputs"),
        ({"X_fit": np.zeros((0, 5))}, FusionError, "X_fit must have rows"),
        ({"X_fit": "X"}, FusionError, "share memory with X"),
    ],
)
def test_bad_input_has_its_error(change, error, message):
    models = family()
    X, y, _ = data(models)
    named = {"a model": models[0], "two depths": [models[0], *family((5, 8, 3))], "X": X}
    change = {key: named.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    arguments = {"models": models, "X": X, "y": y, **change}
    with pytest.raises(error, match=message):
        compare(**arguments, verbose=False)


class TestPrinting:
    def test_aligned_columns(self, capsys):
        models = family()
        X, y, _ = data(models)
        table = compare(models, X[:60], y[:60], [WassersteinFusion(), WassersteinFusion(schedule="layerwise")], X_fit=X[60:])
        title, empty, header, rule, *lines = capsys.readouterr().out.splitlines()
        assert title == "2 networks; accuracy on 60 rows. The fits saw 20 other rows, without labels."
        assert empty == "" and header.split("  ")[0] == "network" and set(rule) == {"-", " "}
        assert [name for name in header.split("  ") if name.strip()][-1] == "note"
        ends = [i for i, pair in enumerate(zip(rule, rule[1:] + " ", strict=True)) if pair == ("-", " ")]
        for row, line in zip(table, lines, strict=False):  # long notes follow
            assert line.startswith(row["name"] + " " * (row["note"] != "")) and line == line.rstrip()
            if row["score"] is not None:
                score = f"{100 * row['score']:.2f}%"
                assert line[: ends[1] + 1].endswith(score)
                assert line[: ends[2] + 1].endswith(f"{100 * row['to_parents']:+z.2f}")
            if row["agreement"] is not None:
                assert line[: ends[3] + 1].endswith(f" {row['agreement']:.1%}")
            if row["parameters"] is not None:
                assert line[: ends[4] + 1].endswith(f" {row['parameters']:,}")
            if row["seconds"] is not None:
                assert line[: ends[5] + 1].endswith(f" {row['seconds']:.2f}")
            if row["note"]:
                assert line[ends[5] + 3 :] == (row["note"] if len(row["note"]) <= 60 else "see below")

    def test_no_difference_has_no_minus(self):
        models = family()
        X, y, _ = data(models)
        table = compare(models, X, y, [], verbose=False)
        table[0]["to_parents"] = -1e-17  # from the rounding of a mean
        assert "+0.00" in str(Comparison(table[:1], "accuracy", ""))

    def test_r2_has_four_digits(self, capsys):
        models = family()
        X, _, y = data(models)
        table = compare(models, X, y)
        out = capsys.readouterr().out
        assert "R2 on 80 rows. The fits saw no data." in out and "%" not in out
        assert f"{table[0]['score']:.4f}" in out.splitlines()[4]

    def test_long_messages_are_below_in_full_and_once(self, capsys):
        models = [*family(), *family((5, 10, 6, 3))]
        X, y, _ = data(models)
        table = compare(models, X, y, [VanillaAveraging(), PLAIN])
        out = capsys.readouterr().out
        above, below = out.split("\n\n", 2)[1:]
        assert above.count("see below") == 2 and max(map(len, above.splitlines())) < 120
        note = next(row["note"] for row in table if row["name"] == "plain average")
        assert " ".join(below.split()) == f"plain average, VanillaAveraging(): {note}"

    def test_nothing_is_printed_unless_verbose(self, capsys):
        models = family()
        X, y, _ = data(models)
        compare(models, X, y, verbose=False)
        assert capsys.readouterr().out == ""


class TestComparison:
    """What `compare` returns is the list of rows, and knows what they are about."""

    @pytest.fixture(scope="class")
    def comparison(self):
        models = family()
        X, y, _ = data(models)
        return compare(models, X, y, [], verbose=False)

    def test_it_iterates_and_indexes_as_the_list_of_rows(self, comparison):
        assert isinstance(comparison, list) and comparison == list(comparison) and comparison[-1]["name"] == "plain average"
        assert [row["name"] for row in comparison[:2]] == ["parent 0", "parent 1"] and len(comparison) == len(list(comparison))

    def test_it_says_what_it_is_about(self, comparison, capsys):
        assert comparison.metric == "accuracy" and comparison.title.startswith("2 networks; accuracy on")
        assert (
            str(comparison).startswith(f"{comparison.title}\n\nnetwork ")
            and repr(comparison) == f"Comparison({len(comparison)} rows, accuracy)"
        )
        assert capsys.readouterr().out == ""

    def test_a_frame_is_made_by_pandas(self, comparison, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
        assert comparison.to_frame() == ("frame", list(comparison))
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="pip install pandas"):
            comparison.to_frame()
