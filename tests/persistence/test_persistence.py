"""Saved and loaded estimators: what comes back is what was saved, and nothing in the files is run."""

import copy
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from networks import CNN, MLP, Recurrent, disguised, networks, randomised
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionRegressor, VanillaAveraging, WassersteinFusion, declare, load
from sklearn_wbfuse.correction import Probe, Regression, Repair
from sklearn_wbfuse.exceptions import ArchitectureMismatchError, FusionWarning, InvalidModelError, PersistenceError
from sklearn_wbfuse.persistence import PersistenceMixin, fill
from sklearn_wbfuse.persistence.values import Decoder, Encoder


def same_tensors(first, second):
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def check_round_trip(fusion, models, template, folder):
    """Save and load, compare everything, save again; the loaded fusion."""
    fusion.save(folder / "first")
    before = copy.deepcopy(template.state_dict())
    loaded = load(folder / "first", model=template)
    assert all(torch.equal(template.state_dict()[n], t) for n, t in before.items())
    assert type(loaded) is type(fusion) and type(loaded.fused_model_) is type(fusion.fused_model_)
    assert same_tensors(loaded.fused_model_, fusion.fused_model_)
    assert not any(m.training for m in loaded.fused_model_.modules())
    assert loaded.graph_.groups == fusion.graph_.groups and str(loaded.graph_) == str(fusion.graph_)
    assert (loaded.energy_, loaded.n_iter_, loaded.history_) == (fusion.energy_, fusion.n_iter_, fusion.history_)
    for new, old in zip(loaded.couplings_, fusion.couplings_, strict=True):
        for name in old:
            a, b = new.coupling(name), old.coupling(name)
            assert repr(a) == repr(b) and (a.plan == b.plan).all() and (a.mass == b.mass).all()
    for new, old in zip(loaded.transform(models), fusion.transform(models), strict=True):
        assert same_tensors(new, old)
    loaded.save(folder / "second")
    assert contents(folder / "first") == contents(folder / "second")
    return loaded


def outputs(model, *inputs):
    with torch.no_grad():
        returned = model(*inputs)
    return returned if isinstance(returned, tuple) else (returned,)


@given(networks(), st.integers(0, 2**31), st.sampled_from([0.0, 1e-2]))
def test_any_fusion_comes_back_bit_by_bit(tmp_path_factory, network, seed, reg):
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("any")
    other, new = disguised(network, rng, scales=True), disguised(network, rng)
    fusion = WassersteinFusion(reg=reg, example_inputs=(network.example,), random_state=0).fit([network, other])
    template = randomised(copy.deepcopy(network), rng)
    loaded = check_round_trip(fusion, [network, other, new], template, folder)
    assert torch.equal(*(outputs(f.fused_model_, network.example)[0] for f in (loaded, fusion)))
    shutil.rmtree(folder)


class Tied(nn.Module):
    """Tokens in and out through one table; a dict goes in."""

    def __init__(self, width):
        super().__init__()
        self.table, self.hidden = nn.Embedding(11, width), nn.Linear(width, width + 1)
        self.back, self.head = nn.Linear(width + 1, width), nn.Linear(width, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, batch):
        x = self.table(batch["tokens"])
        return self.head(x + self.back(torch.relu(self.hidden(x)))), x.mean(-1)


class Stateful(Recurrent):
    """A GRU, its state in and out."""

    def forward(self, x, state):
        out, state = self.rnn(x, state)
        return torch.cat([self.fc(out), self.aux(out)], -1), state


declare(Stateful, state_inputs=("state",), state_outputs=(1,))


def normed(kind, width):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), kind(nn.Linear(width, 4)), nn.Tanh(), nn.Linear(4, 2))


TOKENS = ({"tokens": torch.arange(10).reshape(2, 5)},)
ROWS, IMAGES = (torch.randn(3, 5),), (torch.randn(2, 2, 8, 8),)
CASES = {
    "parents of other widths": (lambda w: MLP([5, 8 + w, 6, 3], norm="affine"), (0, 2, 5), ROWS, {}),
    "a wider target": (lambda w: CNN(4, 3, 5 + w), (0, 2), IMAGES, {"target_widths": 2.0, "merge": "all"}),
    "tied, a dict": (Tied, (4, 4), TOKENS, {}),
    "half precision": (lambda w: MLP([5, 8, w, 3]).to(torch.bfloat16), (4, 4), ROWS, {}),
    "signs": (lambda w: Recurrent("lstm", w), (3, 3), (torch.randn(3, 2, 4),), {"reg": 0.02, "max_iter": 2}),
    "a state": (lambda w: Stateful("gru", w), (5, 5), (torch.randn(3, 2, 4), torch.zeros(1, 3, 5)), {}),
    "weight norm": (lambda w: normed(nn.utils.parametrizations.weight_norm, w), (5, 5), (torch.randn(2, 3),), {}),
    "weight norm by hooks": (lambda w: normed(nn.utils.weight_norm, w), (5, 5), (torch.randn(2, 3),), {}),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_special_networks(name, tmp_path):
    build, widths, inputs, options = CASES[name]
    torch.manual_seed(0)
    models = [build(w).eval() for w in widths]
    fusion = WassersteinFusion(example_inputs=inputs, random_state=0, **options).fit(models)
    loaded = check_round_trip(fusion, [*models, build(widths[0])], build(widths[0]).train(), tmp_path)
    floats = next(loaded.fused_model_.parameters()).dtype
    ready = tuple(x.to(floats) if isinstance(x, torch.Tensor) else x for x in inputs)
    for a, b in zip(outputs(loaded.fused_model_, *ready), outputs(fusion.fused_model_, *ready), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def parents():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(5, n), nn.ReLU(), nn.Linear(n, 3)) for n in (6, 8)]


@pytest.fixture(scope="module")
def saved(parents, tmp_path_factory):
    """A fusion of different widths, and the folder it was saved to."""
    folder = tmp_path_factory.mktemp("saved") / "fusion"
    fusion = WassersteinFusion(random_state=0).fit(parents)
    fusion.save(folder)
    return fusion, folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(saved[1], tmp_path / "copy")


def test_the_network_is_a_plain_file(saved, parents):
    fusion, folder = saved
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    assert same_tensors(network, fusion.fused_model_)


def test_tied_tensors_are_stored_once_and_recorded(tmp_path):
    model = Tied(4)
    VanillaAveraging(example_inputs=TOKENS).fit([model, Tied(4)]).save(tmp_path / "tied")
    path = tmp_path / "tied" / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        assert "head.weight" not in [*file.keys()] and json.loads(file.metadata()["tied"]) == {"head.weight": "table.weight"}
    assert safetensors.torch.load_model(Tied(4), path) == (set(), [])


def test_a_template_of_other_precision_gives_way(saved, parents):
    fusion, folder = saved
    template = copy.deepcopy(parents[0]).double()
    template.register_buffer("not_stored", torch.ones(1, dtype=torch.float64), persistent=False)
    loaded = load(folder, model=template).fused_model_
    assert same_tensors(loaded, fusion.fused_model_) and loaded.not_stored.dtype == torch.float32


def test_mixed_precision():
    mixed, template = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)) for _ in range(2))
    mixed[2].double()
    fill(template, mixed.state_dict())
    assert same_tensors(template, mixed)


def test_the_description_is_for_people(saved):
    text = (saved[1] / "fusion.json").read_text()
    assert '"0": {"size": 8, "scalable": true, "signable": false, "within": null}' in text
    assert json.loads(text)["fitted"]["energy"] == saved[0].energy_
    assert max(map(len, text.splitlines())) < 130


def test_parameters_of_every_kind(parents, tmp_path):
    rng = np.random.RandomState(3)
    rng.random_sample(5)
    options = {
        "target_widths": {"0": np.int64(7)},
        "weights": np.array([0.25, 0.75]),
        "correction": (Repair(), Regression(ridge=0.5)),
        "probe": Probe("noise", n_samples=64),
        "random_state": rng,
        "device": torch.device("cpu"),
        "example_inputs": (torch.randn(2, 5),),
        "tol": 0,
    }
    fusion = WassersteinFusion(**options).fit(parents)
    state = rng.get_state(legacy=False)
    fusion.save(tmp_path / "all")
    parameters = load(tmp_path / "all", model=parents[0]).get_params(deep=False)
    assert repr(parameters["correction"]) == repr(options["correction"]) and repr(parameters["probe"]) == repr(options["probe"])
    assert isinstance(parameters["weights"], np.ndarray) and parameters["weights"].tolist() == [0.25, 0.75]
    assert torch.equal(parameters["example_inputs"][0], options["example_inputs"][0])
    loaded = parameters["random_state"].get_state(legacy=False)
    assert (loaded["state"]["key"] == state["state"]["key"]).all() and loaded["state"]["pos"] == state["state"]["pos"]
    names = ["target_widths", "device", "tol", "reg", "init", "n_init"]
    assert [parameters[n] for n in names] == [fusion.get_params()[n] for n in names]


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.integers(-5, 5).map(np.float32)
leaves |= st.lists(st.integers(0, 9), max_size=3).map(np.array) | st.lists(st.text(), max_size=3).map(np.array)
keys = st.text() | st.integers()
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.tuples(v, v) | st.dictionaries(keys, v, max_size=3), max_leaves=8
)


@given(values)
@example([float("nan"), -float("inf"), {"$float": 1, 2: None}])
def test_any_value_comes_back(value):
    encoder = Encoder()
    text = json.dumps(encoder.value(value, "x"), allow_nan=False)
    tensors = safetensors.torch.load(safetensors.torch.save(encoder.tensors)) if encoder.tensors else {}
    decoded = Decoder(tensors, {}, None).value(json.loads(text))
    np.testing.assert_equal(decoded, value)
    assert type(decoded) is type(value) or isinstance(value, np.generic)


def test_a_network_among_the_parameters_is_left_out_and_said(parents, tmp_path):
    fusion = WassersteinFusion(init=copy.deepcopy(parents[1])).fit(parents)
    message = "'init' of WassersteinFusion is a network and is not stored; it loads as 'auto'"
    with pytest.warns(FusionWarning, match=message) as caught:
        fusion.save(tmp_path / "init")
    assert caught[0].filename == __file__
    assert load(tmp_path / "init", model=parents[0]).init == "auto"


class Voter(PersistenceMixin, BaseEstimator):
    """A meta-estimator as FusionClassifier is one."""

    def __init__(self, fusion=None, extra=None):
        self.fusion = fusion
        self.extra = extra

    def fit(self, models):
        self.fusion_ = copy.deepcopy(self.fusion).fit(models)
        self.classes_, self.order_ = np.array(["yes", "no", "?"], dtype=object), np.array([2, 0, 1])
        return self


def test_estimators_within_estimators(parents, tmp_path):
    voter = Voter(WassersteinFusion(reg=0.1, correction=Repair())).fit(parents)
    voter.save(tmp_path / "voter")
    loaded = load(tmp_path / "voter", model=parents[0])
    assert (
        loaded.classes_.dtype == object and loaded.classes_.tolist() == ["yes", "no", "?"] and loaded.order_.tolist() == [2, 0, 1]
    )
    assert loaded.fusion.reg == 0.1 and not hasattr(loaded.fusion, "fused_model_")
    assert same_tensors(loaded.fusion_.fused_model_, voter.fusion_.fused_model_)


def test_classifiers_and_regressors(parents, tmp_path):
    X = torch.randn(20, 5).numpy()
    for estimator in (FusionClassifier(classes=["yes", "no", "?"]), FusionRegressor(VanillaAveraging(), batch_size=7)):
        models = [parents[0]] * 2 if estimator.fusion else parents
        estimator.fit(models).save(tmp_path / type(estimator).__name__)
        loaded = load(tmp_path / type(estimator).__name__, model=parents[1])
        assert (loaded.predict(X) == estimator.predict(X)).all() and repr(loaded) == repr(estimator)


def test_a_later_save_takes_the_place_of_an_earlier_one(parents, copied):
    (copied / "README.md").write_text("mine")
    VanillaAveraging().fit([parents[0]] * 2).save(copied)
    assert isinstance(load(copied, model=parents[0]), VanillaAveraging)
    assert (copied / "README.md").read_text() == "mine"
    (copied / "README.md").write_text("# A fused network\n\nof another save")
    VanillaAveraging().fit([parents[1]] * 2).save(copied)
    assert not (copied / "README.md").exists()


@pytest.mark.parametrize("call", [1, 2])
def test_a_save_that_is_interrupted_keeps_the_earlier_one(call, saved, copied, parents, tmp_path, monkeypatch):
    before, calls, rename = contents(copied), [], Path.rename

    def interrupted(self, target):
        calls.append(self)
        if len(calls) == call:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VanillaAveraging().fit([parents[0]] * 2).save(copied)
    monkeypatch.setattr(Path, "rename", rename)
    assert contents(copied) == before and sorted(p.name for p in tmp_path.iterdir()) == ["copy"]
    assert repr(load(copied, model=parents[0])) == repr(saved[0])


def test_where_nothing_can_be_written(saved, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PersistenceError, match=r"cannot be written: .*Give another folder"):
        saved[0].save(tmp_path / "file" / "below")


def test_a_save_that_fails_leaves_everything_as_it_was(saved, copied, tmp_path, monkeypatch):
    before, replace = contents(copied), os.replace
    monkeypatch.setattr("json.dumps", lambda *a, **k: 1 / 0)
    for folder in (copied, tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            saved[0].save(folder)
    assert contents(copied) == before and os.replace is replace
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


def test_pickle_keeps_working(saved, parents):
    fusion = pickle.loads(pickle.dumps(saved[0]))
    for new, old in zip(fusion.transform(parents), saved[0].transform(parents), strict=True):
        assert same_tensors(new, old)


def edit(**changes):
    """Change entries of the description and seal it again, as a person with a text editor and patience could."""

    def change(folder):
        from sklearn_wbfuse.persistence.files import with_checksum

        content = json.loads((folder / "fusion.json").read_text())
        del content["checksum"]
        (folder / "fusion.json").write_text(json.dumps(with_checksum({**content, **changes})))

    return change


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data(folder / name) if callable(data) else data)


DAMAGE = {
    "a file is missing": (lambda f: (f / "couplings.safetensors").unlink(), r"not a complete save: \['couplings.safetensors'\]"),
    "the folder is missing": (shutil.rmtree, "There is no folder .*copy"),
    "tensors are cut off": (write("model.safetensors", lambda p: p.read_bytes()[:-9]), "model.safetensors .*truncated, damaged"),
    "couplings of another save": (write("couplings.safetensors", b"x"), "couplings.safetensors .*another checksum"),
    "JSON is cut off": (write("fusion.json", lambda p: p.read_bytes()[:99]), "fusion.json is damaged: .*line"),
    "JSON that no one reads": (write("fusion.json", b"[" * 100_000), "fusion.json is damaged"),
    "no text": (write("fusion.json", b"\xff\xfe\x00"), "fusion.json is damaged"),
    "other JSON": (write("fusion.json", b'{"architectures": ["BertModel"]}'), "not written by sklearn_wbfuse"),
    "a list": (write("fusion.json", b"[]"), "not written by sklearn_wbfuse"),
    "a number that JSON has not": (
        write("fusion.json", lambda p: p.read_bytes().replace(b'"reg": 0.0', b'"reg": NaN')),
        "damaged: NaN",
    ),
    "no checksums": (edit(sha256=[]), "another checksum"),
    "no parameters": (edit(parameters=None), "must be as save wrote it"),
    "nothing fitted": (edit(fitted={}), "must be as save wrote it"),
    "a tensor that is not there": (edit(parameters={"weights": {"$tensor": "nope"}}), "missing or invalid entries"),
    "a device that is none": (edit(parameters={"device": {"$device": "nope"}}), "missing or invalid entries"),
    "a newer version": (edit(format_version=2, library_version="9.1"), r"version 2, written by sklearn_wbfuse 9.1\. Update"),
    "an edit": (write("fusion.json", lambda p: p.read_bytes().replace(b'"tol": 1e-06', b'"tol": 1e-07')), "changed after it was"),
    "an unknown class": (
        edit(estimator="posix.system"),
        "must be one of .* Got 'posix.system', which no imported module defines",
    ),
    "an unknown parameter": (edit(parameters={"speed": 3}), r"WassersteinFusion has no parameters \['speed'\]\. Update"),
    "an unknown kind of value": (edit(parameters={"reg": {"$call": "os.system"}}), r"entry '\$call'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_saves(name, copied, parents):
    damage, message = DAMAGE[name]
    damage(copied)
    with pytest.raises(PersistenceError, match=message):
        load(copied, model=parents[0])


def test_safetensors_with_a_matching_checksum_that_are_none(copied, parents):
    import hashlib

    (copied / "model.safetensors").write_bytes(b"nonsense" * 9)
    content = json.loads((copied / "fusion.json").read_text())
    content["sha256"]["model.safetensors"] = hashlib.sha256(b"nonsense" * 9).hexdigest()
    edit(sha256=content["sha256"])(copied)
    with pytest.raises(PersistenceError, match=r"model.safetensors is not a readable safetensors file"):
        load(copied, model=parents[0])


class Bomb:
    """Its pickle writes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(("name", "message"), [("model.pt", "looks like a pickle"), ("model.safetensors", "load_model")])
def test_a_file_instead_of_the_folder(name, message, tmp_path, parents):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(PersistenceError, match=message):
        load(path, model=parents[0])
    assert not (tmp_path / "exploded").exists()


def sequential(*layers):
    return lambda: nn.Sequential(*layers)


TEMPLATES = {
    "none": (lambda: None, InvalidModelError, "load needs a template"),
    "a class": (lambda: CNN, InvalidModelError, r"Got the class CNN\. Give an instance, model=CNN"),
    "a path": (lambda: "model.pt", InvalidModelError, "Got str"),
    "no values": (lambda: nn.Linear(2, 2, device="meta"), InvalidModelError, "meta device"),
    "other inputs": (sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), ArchitectureMismatchError, "example inputs"),
    "other outputs": (
        sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)),
        ArchitectureMismatchError,
        r"'2.weight' \(3, 8\) instead of \(4, 8\)",
    ),
    "other depth": (
        sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
        ArchitectureMismatchError,
        r"only the template has \['2'\]",
    ),
    "no bias": (
        sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)),
        ArchitectureMismatchError,
        r"only stored, \['0.bias'\]",
    ),
    "no scales": (sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), ArchitectureMismatchError, "Group '0' .*activation"),
    "another slope": (
        sequential(nn.Linear(5, 6), nn.LeakyReLU(), nn.Linear(6, 3)),
        ArchitectureMismatchError,
        "computes other values .*an activation",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_wrong_templates(name, saved):
    build, error, message = TEMPLATES[name]
    with pytest.raises(error, match=message):
        load(saved[1], model=build())


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


class Foreign(BaseEstimator):
    def correct(self):
        """Never called."""


REFUSED = {
    "not fitted": (lambda p: WassersteinFusion(), NotFittedError, "not fitted"),
    "a value of no known kind": (
        lambda p: WassersteinFusion().fit(p).set_params(target_widths=range(3)),
        PersistenceError,
        "'parameters.target_widths' must be .* Got builtins.range",
    ),
    "an array of dates": (
        lambda p: WassersteinFusion().fit(p).set_params(weights=np.zeros(2, "M8[s]")),
        PersistenceError,
        r"'parameters.weights' must be an array of numbers. Got datetime64",
    ),
    "a class that is not registered": (
        lambda p: WassersteinFusion().fit(p).set_params(correction=Foreign()),
        PersistenceError,
        "parameters.correction, a Foreign, .*not registered.*PersistenceMixin",
    ),
    "state that is no tensor": (
        lambda p: VanillaAveraging().fit([nn.Sequential(Extra(2, 2), nn.Linear(2, 2))] * 2),
        PersistenceError,
        "'0._extra_state', a dict",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_saved(name, parents, tmp_path):
    build, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        build(parents).save(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_other_things_stay_as_they_are(saved, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PersistenceError, match=r"contains other files than those of a saved fusion: \['thesis.tex'\]"):
        saved[0].save(tmp_path)
    with pytest.raises(PersistenceError, match=r"save writes a folder\. Got .*thesis.tex, which is a file"):
        saved[0].save(tmp_path / "thesis.tex")
    with pytest.raises(PersistenceError, match=r"folder must be a path\. Got int"):
        saved[0].save(3)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_classes_of_one_name(parents, tmp_path):
    first = Voter(WassersteinFusion()).fit(parents)
    twin = type("Voter", (PersistenceMixin, BaseEstimator), {"__init__": Voter.__init__})
    try:
        with pytest.raises(PersistenceError, match="another class of that name was defined since"):
            first.save(tmp_path / "new")
    finally:
        type("Voter", (Voter,), {})
        from sklearn_wbfuse.persistence.values import ESTIMATORS

        assert ESTIMATORS["Voter"] is not twin
        ESTIMATORS["Voter"] = Voter
