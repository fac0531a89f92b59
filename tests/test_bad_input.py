"""What users get wrong: every mistake has an error of its own that says what was given and what to do."""

import contextlib
import io
import pickle
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import CNN, MLP, randomised
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, VanillaAveraging, WassersteinFusion, cli, load
from sklearn_wbfuse.exceptions import (
    ArchitectureMismatchError,
    DiscoveryError,
    FusionError,
    GroupNameError,
    InvalidModelError,
    NonFiniteError,
    PersistenceError,
    WidthError,
)
from sklearn_wbfuse.inspection import CouplingDisplay, InterpolationDisplay, LossPlaneDisplay

X = np.random.default_rng(0).normal(size=(12, 5))
Y = np.arange(12) % 3


def family(widths=(5, 8, 6, 3), count=2):
    return [randomised(MLP(list(widths)), np.random.default_rng(seed)) for seed in range(count)]


def rows(X=X, **options):
    return FusionInput(family(**options), X)


def nan(array):
    array = np.array(array)
    array[3] = np.nan
    return array


def poisoned():
    models = family()
    models[1].linears[1].weight.data[0, 0] = float("nan")
    return models


def classifier(**options):
    return FusionClassifier(**options).fit(rows(), Y)


def tokens():
    return [nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)) for _ in range(2)]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x, mask, *, flip=False):
        return self.second((self.first(x) * mask[:, :4]).relu())


class Wrapped:
    """As skorch, Lightning trainers and pipelines hold a network."""

    def __init__(self):
        self.criterion_, self.module_ = nn.CrossEntropyLoss(), family()[0]


def named_inputs(**inputs):
    return WassersteinFusion(example_inputs=inputs).fit([TwoInputs(), TwoInputs()])


MODELS = {
    "a class instead of a model": (lambda: WassersteinFusion().fit([MLP, MLP]), InvalidModelError, "Model 0 must be .* Got type"),
    "a path instead of a model": (
        lambda: WassersteinFusion().fit(["a.pt"]),
        InvalidModelError,
        r"Model 0 must be .* Got str, a path; .*load_state_dict\(torch.load\(path\)\).* wbfuse fuse",
    ),
    "a path instead of models": (lambda: FusionClassifier().fit(Path("a.pt")), InvalidModelError, "Got PosixPath, a path; build"),
    "a state dict": (
        lambda: WassersteinFusion().fit([family()[0].state_dict()]),
        InvalidModelError,
        r"Got OrderedDict, a state dict; load it into a network, model.load_state_dict\(state\)",
    ),
    "one state dict": (lambda: FusionInput(family()[0].state_dict(), X), InvalidModelError, "a state dict; load it"),
    "a checkpoint": (
        lambda: WassersteinFusion().fit([{"epoch": 3, "net": family()[0].state_dict()}] * 2),
        InvalidModelError,
        r"a checkpoint; .*checkpoint\['net'\]",
    ),
    "a dict of models": (lambda: WassersteinFusion().fit({"a": family()[0]}), InvalidModelError, r"list\(models.values\(\)\)"),
    "a ModuleList": (
        lambda: WassersteinFusion().fit(nn.ModuleList(family())),
        InvalidModelError,
        r"ModuleList\. .* list\(models\)",
    ),
    "a ModuleList in a list": (lambda: FusionClassifier().fit([nn.ModuleList(family())]), InvalidModelError, "no forward of its"),
    "a Sequential of models": (lambda: FusionInput(nn.Sequential(*family()), X), InvalidModelError, r"list\(models\) if it"),
    "a wrapper of a network": (lambda: WassersteinFusion().fit([Wrapped()]), InvalidModelError, "Got Wrapped; .* its module_"),
    "a fusion instead of its network": (
        lambda: WassersteinFusion().fit([WassersteinFusion().fit(family())] * 2),
        InvalidModelError,
        "its fused_model_",
    ),
    "a classifier instead of its network": (
        lambda: WassersteinFusion().fit([classifier()]),
        InvalidModelError,
        "its fused_model_",
    ),
    "a network of scikit-learn": (lambda: WassersteinFusion().fit([MLPClassifier()]), InvalidModelError, r"coefs_\[k\].T and"),
    "a factory": (lambda: WassersteinFusion().fit([family]), InvalidModelError, "call it, and give the network"),
    "rows without models": (
        lambda: WassersteinFusion().fit(X, Y),
        InvalidModelError,
        r"rows of data, ndarray of shape \(12, 5\), without models\. .*fit\(FusionInput\(models, X\), y\)",
    ),
    "lists of numbers without models": (lambda: FusionClassifier().fit(X.tolist(), Y), InvalidModelError, "rows of data, list"),
    "a tensor without models": (lambda: FusionRegressor().fit(torch.ones(3, 4)), InvalidModelError, r"Tensor of shape \(3, 4\)"),
    "a loader without models": (lambda: WassersteinFusion().fit(DataLoader(X)), InvalidModelError, "rows of data, DataLoader"),
    "rows before models": (lambda: FusionInput(X, family()), InvalidModelError, r"Put models first: FusionInput\(models, X\)"),
    "a FusionInput in a list": (lambda: WassersteinFusion().fit([rows()]), InvalidModelError, "give it alone, not in a list"),
    "rows beside models": (
        lambda: WassersteinFusion().fit(family(), X),
        InvalidModelError,
        r"fit\(FusionInput\(models, X\), y\)",
    ),
    "rows beside models, at once": (lambda: VanillaAveraging().fit_transform(family(), Y), InvalidModelError, "FusionInput"),
    "rows beside models of a predictor": (
        lambda: FusionRegressor().fit(family(), X),
        InvalidModelError,
        r"fit\(FusionInput\(models, X\), y\)",
    ),
    "one model": (lambda: WassersteinFusion().fit(family()[0]), InvalidModelError, "Put the models into a list"),
    "no model": (lambda: FusionClassifier().fit(FusionInput([], X)), InvalidModelError, "at least one model"),
    "another architecture": (
        lambda: WassersteinFusion().fit([family()[0], CNN(3, 3, 3)]),
        ArchitectureMismatchError,
        "Models 0 and 1 have different parameters",
    ),
    "another depth": (
        lambda: WassersteinFusion().fit([*family((5, 8, 3), 1), *family((5, 8, 8, 3), 1)]),
        ArchitectureMismatchError,
        "depth may not",
    ),
    "other outputs": (
        lambda: WassersteinFusion().fit([*family((5, 8, 3), 1), *family((5, 8, 4), 1)]),
        WidthError,
        "'linears.1.weight' axis 0: sizes 3 and 4",
    ),
    "NaN in a weight": (lambda: WassersteinFusion().fit(poisoned()), NonFiniteError, r"Model 1: 'linears.1.weight' of shape"),
    "an unknown group": (
        lambda: WassersteinFusion({"linears.11": 4}).fit(family()),
        GroupNameError,
        r"must name groups of the network: .* Got 'linears.11'\. Did you mean 'linears.1'",
    ),
    "an unknown group of a picture": (
        lambda: CouplingDisplay.from_estimator(WassersteinFusion().fit(family()), group="linear.1"),
        GroupNameError,
        "Did you mean 'linears.1'",
    ),
    "a width": (lambda: WassersteinFusion(64).fit(family()), WidthError, "Got the whole number 64; give a factor as a float"),
    "too few widths": (
        lambda: WassersteinFusion([64]).fit(family()),
        WidthError,
        "must have one entry per group, 2: .* Got 1 entries",
    ),
    "weights of other models": (lambda: WassersteinFusion(weights=[1]).fit(family()), FusionError, "one entry per model: 2"),
    "a device that is not there": (
        lambda: WassersteinFusion(device="xla").fit(family()),
        FusionError,
        "device must be .* Got 'xla'",
    ),
    "a device that torch was built without": (
        lambda: WassersteinFusion(device="xla" if torch.backends.cuda.is_built() else "cuda").fit(family()),
        FusionError,
        "device must be one that this machine has",
    ),
    "no device at all": (lambda: WassersteinFusion(device="gpu").fit(family()), FusionError, "device must be .* Got 'gpu'"),
    "two devices": (
        lambda: WassersteinFusion().fit([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")]),
        InvalidModelError,
        r"Move them with \.to\(device\)",
    ),
}
ROWS = {
    "no rows": (
        lambda: FusionClassifier().fit(rows(X[:0]), Y[:0]),
        FusionError,
        "must have rows. Got none; give some, or fuse without",
    ),
    "no rows to predict for": (lambda: classifier().predict(X[:0]), FusionError, "at least one"),
    "NaN in a row": (lambda: classifier().predict(nan(X)), NonFiniteError, "output for row 3 is NaN; look for NaN"),
    "NaN in a row that a correction reads": (
        lambda: WassersteinFusion(correction="regression", example_inputs=(torch.zeros(2, 5),)).fit(rows(nan(X))),
        NonFiniteError,
        "Got NaN or infinite values in input 0",
    ),
    "NaN in a row for the score": (lambda: WassersteinFusion().fit(rows()).score(nan(X), Y), NonFiniteError, "row 3 is NaN"),
    "words": (lambda: rows(X.astype(str)), FusionError, "must hold real numbers.* dtype <U"),
    "complex rows": (lambda: rows(X + 1j), FusionError, "real numbers"),
    "complex tensors": (
        lambda: rows(torch.zeros(4, 5, dtype=torch.complex64)),
        FusionError,
        "real numbers. Got one of torch.complex64",
    ),
    "sparse tensors": (lambda: rows(torch.zeros(4, 5).to_sparse()), FusionError, "dense tensor"),
    "quantised tensors": (
        lambda: rows(torch.quantize_per_tensor(torch.zeros(4, 5), 1.0, 0, torch.qint8)),
        FusionError,
        "real numbers. Got one of torch.qint8",
    ),
    "one model with rows": (lambda: FusionInput(family()[0], X), InvalidModelError, "Put the models into a list"),
    "rows of several lengths": (
        lambda: rows(np.array([np.zeros(2), np.zeros(3)], dtype=object)),
        FusionError,
        "rows of one shape. Got an array of dtype object",
    ),
    "integers of another width": (
        lambda: FusionClassifier().fit(rows(np.ones((4, 6), dtype=int))),
        DiscoveryError,
        r"does not run on example inputs of shapes \(\(2, 6\) int64,\)",
    ),
    "integers of another width to predict for": (
        lambda: classifier().predict(np.ones((4, 6), dtype=int)),
        FusionError,
        r"rows of \(4, 6\) int64.*whole numbers were tried as they are and as floats",
    ),
    "floats for an embedding to predict for": (
        lambda: FusionClassifier().fit(FusionInput(tokens(), np.zeros((4, 3), dtype=int))).predict(np.zeros((4, 3))),
        FusionError,
        r"rows of \(4, 3\) float64.*floats are not made whole numbers",
    ),
    "too few inputs": (
        lambda: FusionClassifier().fit(FusionInput([TwoInputs(), TwoInputs()], (X, X))).predict(X),
        FusionError,
        "does not run on rows of .*missing 1 required positional argument",
    ),
    "floats for an embedding": (
        lambda: FusionClassifier().fit(FusionInput(tokens(), np.zeros((4, 3)))),
        DiscoveryError,
        "does not run on example inputs",
    ),
    "rows of another width": (lambda: classifier().predict(X[:, :4]), FusionError, r"does not run on rows of \(12, 4\) float64"),
    "models instead of rows": (lambda: classifier().predict(family()), TypeError, "Rows of data are needed, not models"),
    "a loader instead of rows": (
        lambda: rows(DataLoader(TensorDataset(torch.as_tensor(X)))),
        TypeError,
        r"FusionInput.from_batches\(models, batches\)",
    ),
    "a number instead of rows": (lambda: rows(3.0), FusionError, "must hold rows. Got a single number"),
    "a dataset instead of rows": (lambda: rows(TensorDataset(torch.as_tensor(X))), TypeError, r"torch.stack\(\[x for x, _ in"),
    "rows instead of a stream": (
        lambda: FusionInput.from_batches(family(), X),
        TypeError,
        r"Got one array of rows; use FusionInput\(models, X\)",
    ),
    "no rows of a stream wanted": (lambda: FusionInput.from_batches(family(), [X], 0), FusionError, "at least 1. Got 0"),
    "a stream that was read before": (lambda: FusionInput.from_batches(family(), iter([])), FusionError, "can only be read once"),
    "a stream of several shapes": (
        lambda: FusionInput.from_batches(family(), [(X, X), (X, X[:, :4])]),
        FusionError,
        "must have one shape. Got several; pad them",
    ),
    "several outputs to score": (
        lambda: WassersteinFusion().fit(FusionInput([nn.GRU(5, 4), nn.GRU(5, 4)], X[:, None])).score(X[:, None], Y),
        FusionError,
        "one tensor to be scored. Got tuple",
    ),
    "tokens beyond an embedding": (
        lambda: FusionClassifier().fit(FusionInput(tokens(), np.zeros((4, 3), dtype=int))).predict(np.full((4, 3), 9)),
        FusionError,
        r"does not run on rows of \(4, 3\) int64: index out of range",
    ),
    "labels without rows": (lambda: FusionClassifier().fit(family(), Y), FusionError, r"fit\(FusionInput\(models, X\), y\)"),
    "too few labels": (lambda: FusionClassifier().fit(rows(), Y[:-1]), FusionError, "X has 12 rows but y has 11"),
    "too many labels": (lambda: WassersteinFusion().fit(rows(), [*Y, 0]), FusionError, "X has 12 rows but y has 13"),
    "several inputs of other lengths": (lambda: rows((X, X[:4])), ValueError, "inconsistent numbers of samples"),
}
LABELS = {
    "unknown labels": (
        lambda: FusionClassifier().fit(rows(), Y + 1),
        FusionError,
        r"y must hold labels among \[0, 1, 2\]\. Got \[3\]",
    ),
    "unknown labels to score": (
        lambda: classifier().score(X, Y + 5),
        FusionError,
        "relabel y, or name the labels of the outputs",
    ),
    "words for numbers": (lambda: FusionClassifier().fit(rows(), np.array(["a", "b", "c"])[Y]), FusionError, r"classes=\["),
    "too few classes": (
        lambda: classifier(classes=["a", "b"]),
        FusionError,
        "one label for each of the network's 3 classes. Got 2",
    ),
    "classes of several types": (lambda: classifier(classes=["a", 1, None]), FusionError, "labels of one type"),
    "a class twice": (lambda: classifier(classes=["a", "b", "a"]), FusionError, "all different"),
    "targets instead of classes": (lambda: FusionClassifier().fit(rows(), X[:, 0]), ValueError, "Unknown label type: continuous"),
    "several labels per row": (lambda: FusionClassifier().fit(rows(), np.eye(12, 3, dtype=int)), ValueError, "be a 1d array"),
    "NaN as a target": (lambda: FusionRegressor().fit(rows(), nan(X[:, 0])), ValueError, "y contains NaN"),
    "too few targets": (lambda: FusionRegressor().fit(rows()).score(X, X[:, 0]), FusionError, r"y has shape \(12,\).*\(12, 3\)"),
    "outputs per pixel": (
        lambda: FusionClassifier().fit(FusionInput([nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)], np.zeros((4, 1, 2, 2)))),
        FusionError,
        r"one row of outputs per row of X. Got outputs of shape \(2, 3, 2, 2\)",
    ),
    "sorted folds that lack classes, with a scorer that needs them": (
        lambda: cross_val_score(FusionClassifier(), rows(), np.sort(Y), cv=KFold(3), scoring="neg_log_loss", error_score="raise"),
        ValueError,
        "explicitly through the labels argument",
    ),
}
OPTIONS = {
    "a misspelt option": (lambda: WassersteinFusion(schedule="join").fit(family()), ValueError, "Did you mean 'joint'"),
    "a misspelt correction": (lambda: WassersteinFusion(correction="regresion").fit(family()), ValueError, "mean 'regression'"),
    "a misspelt parameter": (lambda: FusionClassifier().set_params(fusion__alfa_h=1), ValueError, "Did you mean 'alpha_h'"),
    "a class instead of a fusion": (lambda: classifier(fusion=WassersteinFusion), TypeError, "instance of .* instead of a class"),
    "a classifier instead of a fusion": (
        lambda: classifier(fusion=LogisticRegression()),
        FusionError,
        "such as WassersteinFusion",
    ),
    "a parameter of a number": (lambda: FusionClassifier().set_params(batch_size__x=1), ValueError, "has none of its own"),
    "data that there are not": (
        lambda: WassersteinFusion(cost=0.5, probe="data").fit(family()),
        FusionError,
        "needs rows. Got models alone; fit",
    ),
    "a misspelt probe without a correction": (lambda: WassersteinFusion(probe="nose").fit(family()), ValueError, "'nose'"),
    "a number for a probe": (lambda: VanillaAveraging(probe=500).fit(family()), TypeError, "probe must be .* Got 500"),
    "a shape for example inputs": (
        lambda: WassersteinFusion(example_inputs=(2, 5)).fit(family()),
        DiscoveryError,
        r"Got the shape \(2, 5\)\. Give \(torch.randn\(2, 5\),\)",
    ),
    "an input that forward does not have": (
        lambda: named_inputs(x=torch.ones(2, 5), tokens=torch.ones(2, 5)),
        DiscoveryError,
        r"\['x', 'tokens'\], but forward of TwoInputs has no arguments \['tokens'\]; it takes \['x', 'mask'\]",
    ),
    "an input that is missing": (lambda: named_inputs(x=torch.ones(2, 5)), DiscoveryError, r"needs \['mask'\] too"),
    "an input by its name only": (
        lambda: named_inputs(x=torch.ones(2, 5), mask=torch.ones(2, 5), flip=True),
        DiscoveryError,
        r"\['flip'\], which forward of TwoInputs takes by keyword only",
    ),
    "lists of several lengths": (
        lambda: named_inputs(x=[[1], [1, 2]], mask=None),
        DiscoveryError,
        "Got 'x', which can't be converted to a tensor",
    ),
    "named inputs of another shape": (
        lambda: named_inputs(x=torch.ones(2, 7), mask=torch.ones(2, 5)),
        DiscoveryError,
        r"of shapes \(\(2, 7\), \(2, 5\)\)",
    ),
    "a mapping among inputs": (
        lambda: WassersteinFusion(example_inputs=(UserDict(x=torch.ones(2, 5)), [torch.ones(3).bool()])).fit(family()),
        DiscoveryError,
        r"of shapes \(\{'x': \(2, 5\)\}, \[\(3,\) bool\]\)",
    ),
    "no inputs for a network that begins with a convolution": (
        lambda: WassersteinFusion().fit([nn.Conv1d(7, 2, 3)] * 2),
        DiscoveryError,
        r"example_inputs=\(torch.randn\(2, 7, L\),\)",
    ),
    "a guess that the network does not take": (
        lambda: WassersteinFusion().fit([TwoInputs()] * 2),
        DiscoveryError,
        r"inputs of shapes \(\(2, 5\),\), a guess from the first layer 'first', \(TypeError.*torch.randn\(2, ..., 5\)",
    ),
    "inputs of another shape": (
        lambda: WassersteinFusion(example_inputs=(torch.zeros(2, 7),)).fit(family()),
        DiscoveryError,
        r"does not run on example inputs of shapes \(\(2, 7\),\)",
    ),
}
PICTURES = {
    "three networks on a line": (
        lambda: InterpolationDisplay.from_estimator(WassersteinFusion().fit(family()), family(count=3), X, Y),
        FusionError,
        "two networks",
    ),
    "a plane through two widths": (
        lambda: LossPlaneDisplay.from_estimator(
            WassersteinFusion().fit([*family((5, 8, 3), 1), *family((5, 9, 3), 1)]),
            [*family((5, 8, 3), 1), *family((5, 9, 3), 1)],
            X,
            Y,
        ),
        WidthError,
        "widths|shapes",
    ),
}


def saved(folder):
    WassersteinFusion(random_state=0).fit(family()).save(folder / "saved")
    return folder / "saved"


def cut(folder, name):
    where = saved(folder)
    (where / name).write_bytes((where / name).read_bytes()[:-20])
    return where


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a pickle was run')",))


def pickled(folder, name):
    with (folder / name).open("wb") as file:
        pickle.dump(Bomb(), file)
    return folder / name


def fuse(*arguments):
    """What ``wbfuse fuse`` says in its one line, as an error."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["fuse", *map(str, arguments)])
    (line,) = printed.getvalue().splitlines()
    assert code == 2 and line.startswith("wbfuse fuse: error: ")
    raise FusionError(line)


SMALL = f"{__file__}:small"
FILES = {
    "a folder that is not there": (lambda f: load(f / "none", model=family()[0]), PersistenceError, "There is no folder"),
    "a file for the folder": (
        lambda f: load(pickled(f, "a.pt"), model=family()[0]),
        PersistenceError,
        "like a pickle; these can run code",
    ),
    "another folder": (lambda f: load(f, model=family()[0]), PersistenceError, "not a complete save"),
    "a truncated file": (lambda f: load(cut(f, "model.safetensors"), model=family()[0]), PersistenceError, "truncated, damaged"),
    "a truncated description": (
        lambda f: load(cut(f, "fusion.json"), model=family()[0]),
        PersistenceError,
        "fusion.json is damaged",
    ),
    "no template": (lambda f: load(saved(f)), InvalidModelError, r"load\(folder, model=Net\(\.\.\.\)\)"),
    "the class as template": (lambda f: load(saved(f), model=MLP), InvalidModelError, "Give an instance"),
    "a template of another architecture": (lambda f: load(saved(f), model=CNN(3, 3, 3)), ArchitectureMismatchError, "template"),
    "a parent that is not there": (
        lambda f: fuse(f / "a.pt", "-o", f / "out", "--model", SMALL),
        FusionError,
        "a.pt: No such",
    ),
    "a parent that would run code": (
        lambda f: fuse(pickled(f, "a.pt"), "-o", f / "out", "--model", SMALL),
        FusionError,
        "a.pt is ",
    ),
    "a parent that is cut off": (
        lambda f: fuse(cut(f, "model.safetensors") / "model.safetensors", "-o", f / "out", "--model", SMALL),
        FusionError,
        "model.safetensors is not a readable safetensors file",
    ),
    "a folder that holds other things": (
        lambda f: fuse(f / "a.pt", "-o", pickled(f, "a.pt").parent, "--model", SMALL),
        FusionError,
        "contains other files than those of a saved fusion",
    ),
}


def small():
    return family()[0]


MISTAKES = MODELS | ROWS | LABELS | OPTIONS | PICTURES | FILES


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_has_its_error(mistake, tmp_path):
    make, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message) as caught:
        make(tmp_path) if mistake in FILES else make()
    assert len(str(caught.value).splitlines()) <= 3 and "tensor(" not in str(caught.value)
