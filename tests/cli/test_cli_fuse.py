"""``wbfuse fuse`` and ``wbfuse inspect``, in process, through files."""

import copy
import json
import os
import pickle
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import DATA, MODEL, PAIR, X, nest, run, save_arrays, state, users_net, write
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import disguised, mlps, randomised
from torch import nn

from sklearn_wbfuse import FusionInput, WassersteinFusion, cli, load
from sklearn_wbfuse.cli.checkpoints import Template, network_of, read_checkpoint
from sklearn_wbfuse.persistence.files import with_checksum


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((), {}), (("--correction", "none"), {"correction": None}), (("--cost", "auto", "--correction", "auto"), {})],
)
def test_fuse_without_data(work, nets, capsys, arguments, options):
    code, out, err = run(capsys, "fuse", "a.pt", "b.safetensors", "-o", "out", *MODEL, *arguments)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[5:9]] == ["parent", "parent", "plain", "fused"]
    assert "out/model.safetensors" in out and "out/README.md" in out
    models = [nets.Net(6), nets.Net(6)]
    for model, name in zip(models, "ab", strict=True):
        model.load_state_dict(state(f"{name}.pt"))
    expected = WassersteinFusion(random_state=0, **options).fit(models).fused_model_.state_dict()
    state_dict = safetensors.torch.load_file("out/model.safetensors")
    assert set(state_dict) == set(expected) and all(torch.equal(state_dict[n], expected[n]) for n in state_dict)


def test_the_snippet_of_the_card_loads_the_network(work, capsys):
    assert run(capsys, "fuse", "a.pt", "b.pt", "-o", "out", *MODEL)[0] == 0
    card = (work / "out" / "README.md").read_text()
    assert "wbfuse fuse a.pt b.pt -o out --model nets.py:Net" in card
    assert f"`{read_checkpoint(work / 'a.pt', False).sha256}`" in card
    names = {}
    exec(card.split("```python")[1].split("```")[0], names)
    assert torch.equal(names["network"].first.weight, safetensors.torch.load_file("out/model.safetensors")["first.weight"])


def test_fuse_with_data_prints_and_keeps_the_table(work, capsys):
    code, out, _ = run(capsys, "fuse", "a.pt", "b.pt", "-o", "out", *MODEL, "--data", "test.npz", "--correction", "repair")
    assert code == 0 and "accuracy on 40 rows. The fits saw 40 other rows" in out
    card = (work / "out" / "README.md").read_text()
    assert "| ensemble |" in card and "| plain average |" in card
    loaded = load("out", model=users_net())
    assert loaded.correction == "repair"
    with np.load("test.npz") as file:
        score = loaded.score(FusionInput([], file["X"]), file["y"])
    assert f"{score:.2%}" in next(line for line in out.splitlines() if line.startswith("WassersteinFusion"))


def test_parents_of_any_widths(work, capsys):
    code, out, _ = run(capsys, "fuse", "a.pt", "wide.pt", "-o", "out", *MODEL, "--widths", "first=8", "--weights", "0.25,0.75")
    assert code == 0 and "plain average: needs equal widths" in out
    loaded = load("out", model=users_net())
    assert loaded.graph_.sizes == {"first": 8} and loaded.weights == [0.25, 0.75]
    assert [c["first"].shape for c in loaded.couplings_] == [(8, 6), (8, 9)]
    code, out, _ = run(capsys, "fuse", "out", "a.pt", "-o", "again", *MODEL, "--widths", "1.5")
    assert code == 0 and "parent 0: out (a saved fusion)" in out
    assert load("again", model=users_net()).graph_.sizes == {"first": 12}


NESTS = {
    "under a name": (lambda s: nest({"epoch": 3, "state_dict": s}), "the state dict in 'state_dict'"),
    "beside another": (lambda s: nest({"ema": s, "model": s}), "the state dict in 'model'"),
    "of DataParallel": (lambda s: nest({f"module.{n}": t for n, t in s.items()}), "without the prefix 'module.'"),
    "compiled": (
        lambda s: nest({"net": {f"_orig_mod.module.{n}": t for n, t in s.items()}}),
        "the state dict in 'net', without the prefix '_orig_mod.module.'",
    ),
    "of Lightning": (
        lambda s: nest({"state_dict": {f"model.{n}": t for n, t in s.items()}}),
        "the state dict in 'state_dict', without the prefix 'model.'",
    ),
    "of AveragedModel": (
        lambda s: nest({"n_averaged": torch.tensor(3)} | {f"module.{n}": t for n, t in s.items()}),
        "without the prefix 'module.'",
    ),
}


@pytest.mark.parametrize("name", NESTS)
def test_nested_checkpoints(name, work):
    build, notes = NESTS[name]
    build(state("a.pt"))
    checkpoint = read_checkpoint(work / "nested.pt", False)
    network = network_of(checkpoint, Template(users_net()))
    assert ", ".join(checkpoint.notes) == notes
    assert torch.equal(network.first.weight, state("a.pt")["first.weight"]) and not network.training


def test_several_inputs(work, nets, capsys):
    torch.save(nets.sum_of_two().state_dict(), "two.pt")
    arguments = ("two.pt", "two.pt", "-o", "out", "--model", "nets:sum_of_two")
    assert run(capsys, "fuse", *arguments, "--input-shape", "5", "--input-shape", "2")[0] == 0
    np.savez("two.npz", X0=np.zeros((4, 5), "f4"), X1=np.zeros((4, 2), "f4"), y=np.arange(4) % 3)
    assert run(capsys, "fuse", *arguments, "--data", "two.npz", "--overwrite")[0] == 0


class Bomb(nn.Module):
    """Its pickle makes a folder where it is read."""

    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_pickle_is_not_run(work, capsys):
    torch.save(Bomb(), "bomb.pt")
    (work / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    refusal = f"bomb.pt is a pickle of more than tensors ({os.mkdir.__module__}.mkdir); reading it can run code, so nothing"
    for name, message in (("bomb.pt", refusal), ("bomb.pkl", "bomb.pkl is not a readable PyTorch file")):
        for command in (("fuse", "a.pt", name, "-o", "out"), ("inspect", name)):
            code, _, err = run(capsys, *command, *MODEL)
            assert code == 2 and len(err.splitlines()) == 1 and message in err
    assert not (work / "exploded").exists()
    torch.load("bomb.pt", weights_only=False)
    assert (work / "exploded").exists()  # it would have


def test_a_trusted_pickle_needs_no_model(work, nets, capsys):
    torch.manual_seed(0)
    torch.save(nets.Net(5), "whole.pt")
    code, out, _ = run(capsys, "fuse", "whole.pt", "whole.pt", "-o", "out", "--trust-pickle", "--widths", "2.0")
    assert code == 0 and "whole.pt (a pickled network)" in out
    names = {}
    exec((work / "out" / "README.md").read_text().split("```python")[1].split("```")[0], names)
    x = torch.randn(4, 5)
    torch.testing.assert_close(names["network"](x), torch.load("whole.pt", weights_only=False).eval()(x))


def test_inspect(work, capsys):
    assert run(capsys, "fuse", "a.pt", "b.pt", "-o", "out", *MODEL, "--input-shape", "5")[0] == 0
    code, out, err = run(capsys, "inspect", "out")
    assert (code, err) == (0, "") and "2 networks fused" in out and max(map(len, out.splitlines())) < 130
    assert f"energy {json.loads((work / 'out' / 'fusion.json').read_text())['fitted']['energy']:.6g}" in out
    row = next(line for line in out.splitlines() if line.startswith("first"))
    assert row.split()[1] == "6" and "in place" in row and "moved" in row
    code, with_code, _ = run(capsys, "inspect", "out", *MODEL)
    assert code == 0 and with_code.startswith(out.rstrip()) and "first.weight[0]" in with_code
    code, out, _ = run(capsys, "inspect", "wide.safetensors", *MODEL)
    assert code == 0 and "Net with 102 parameters" in out and "first  9" in out


def test_overwrite(work, capsys):
    assert run(capsys, "fuse", "a.pt", "b.pt", "-o", "out", *MODEL)[0] == 0
    code, _, err = run(capsys, "fuse", "a.pt", "wide.pt", "-o", "out", *MODEL)
    assert code == 2 and "--overwrite" in err
    assert run(capsys, "fuse", "a.pt", "wide.pt", "-o", "out", *MODEL, "--overwrite")[0] == 0
    assert load("out", model=users_net()).graph_.sizes == {"first": 9}
    assert "wide.pt" in (work / "out" / "README.md").read_text()


def test_progress_is_for_terminals(work, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = run(capsys, "fuse", "a.pt", "b.pt", "-o", "out", *MODEL)
    assert code == 0 and "reading a.pt ..." in err.splitlines()


def test_warnings_are_notes(work, nets, capsys):
    class Blocked(nets.Net):
        def forward(self, x):
            return super().forward(x) + torch.cumsum(self.first(x), 1).sum(1, keepdim=True)

    nets.Blocked = Blocked
    torch.save(nets.Net(4).state_dict(), "blocked.pt")
    code, out, err = run(capsys, "inspect", "blocked.pt", "--model", "users_nets:Blocked")
    assert (code, err) == (0, "") and "Note: " in out and "stay in place" in out


def test_interrupted(work, nets, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(nets, "Net", interrupted)
    assert run(capsys, "fuse", "a.pt", "b.pt", "-o", "out", "--model", "users_nets:Net")[0] == 130


def cut(name):
    return lambda: os.truncate(name, os.path.getsize(name) - 20)


def renamed():
    torch.save({f"x{n}": t for n, t in state("a.pt").items()}, "b.pt")


def reshaped():
    torch.save(state("a.pt") | {"head.bias": torch.zeros(4)}, "b.pt")


MISTAKES = {
    "no network": (None, PAIR, "a.pt contains tensors, but not the code .*--model package.module:Net"),
    "no colon": (None, (*PAIR, "--model", "nets"), "must be package.module:Net or path/to/file.py:Net. Got 'nets'"),
    "no such module": (None, (*PAIR, "--model", "nots:Net"), "names the module 'nots', which is neither installed nor in /"),
    "no such file": (None, (*PAIR, "--model", "nots.py:Net"), "names the file nots.py, which does not exist"),
    "no such name": (None, (*PAIR, "--model", "nets.py:Nte"), "nets.py has no 'Nte'. Did you mean 'Net'"),
    "another case": (None, (*PAIR, "--model", "nets.py:NET"), "nets.py has no 'NET'. Did you mean 'Net'"),
    "an unlike name": (None, (*PAIR, "--model", "nets:Transformer"), "has no 'Transformer'. Its networks: Net, Pictures."),
    "no such file, but one like it": (None, (*PAIR, "--model", "nest.py:Net"), "does not exist. Did you mean 'nets.py'"),
    "no factory": (
        None,
        (*PAIR, "--model", "nets.py:text"),
        "must name a class or a function that builds a network. Got nets.py:text, a str",
    ),
    "a factory with arguments": (
        None,
        (*PAIR, "--model", "nets.py:needs"),
        "called without arguments, raised TypeError: needs()",
    ),
    "a factory of numbers": (None, (*PAIR, "--model", "nets.py:number"), "must build a torch.nn.Module. Got int"),
    "code that fails": (write("bad.py", b"import nowhere"), (*PAIR, "--model", "bad.py:Net"), "No module named 'nowhere'"),
    "code that is none": (write("bad.py", b"def def"), (*PAIR, "--model", "bad.py:Net"), "bad.py raised SyntaxError"),
    "no such parent": (None, ("fuse", "a.pt", "c.pt", "-o", "out", *MODEL), "c.pt: No such file"),
    "a text": (write("b.pt", b"weights"), (*PAIR, *MODEL), "b.pt is not a readable PyTorch file"),
    "an empty file": (write("b.pt", b""), (*PAIR, *MODEL), "b.pt is not a readable PyTorch file"),
    "cut off": (cut("b.pt"), (*PAIR, *MODEL), "b.pt is not a readable PyTorch file"),
    "cut off safetensors": (
        cut("b.safetensors"),
        ("fuse", "a.pt", "b.safetensors", "-o", "out", *MODEL),
        "b.safetensors is not a readable safetensors file",
    ),
    "no state dict": (
        lambda: nest({"epoch": 3}),
        ("inspect", "nested.pt", *MODEL),
        "must contain a state dict. Got a dict with ['epoch']",
    ),
    "other names": (renamed, (*PAIR, *MODEL), "b.pt does not match --model: .*only stored, ['xfirst.weight'"),
    "other outputs": (reshaped, (*PAIR, *MODEL), "b.pt does not match --model: .*Got 'head.bias' of shape (4,)"),
    "inputs that can't be guessed": (
        lambda: torch.save(__import__("users_nets").Pictures().state_dict(), "a.pt"),
        ("inspect", "a.pt", "--model", "nets.py:Pictures"),
        "begins with the Conv2d 'conv'.*On the command line: --input-shape",
    ),
    "a folder with other things": (
        lambda: (os.mkdir("out"), write("out/thesis.tex", b"")()),
        (*PAIR, *MODEL, "--overwrite"),
        "out contains other files than those of a saved fusion: ['thesis.tex']",
    ),
    "an unknown group": (None, (*PAIR, *MODEL, "--widths", "fist=4"), "Got 'fist'.*Did you mean 'first'"),
    "widths that are none": (None, (*PAIR, *MODEL, "--widths", "a,b"), "--widths: must be a factor"),
    "weights that are none": (None, (*PAIR, *MODEL, "--weights", "half"), "--weights: must be numbers such as 0.7,0.3"),
    "too few weights": (None, (*PAIR, *MODEL, "--weights", "1"), "weights must have one entry per model: 2"),
    "a negative reg": (None, (*PAIR, *MODEL, "--reg", "-1"), "'reg' parameter"),
    "an unknown correction": (None, (*PAIR, *MODEL, "--correction", "repiar"), "invalid choice: 'repiar'"),
    "a shape that is none": (None, (*PAIR, *MODEL, "--input-shape", "3,x"), "must be whole numbers such as 1,28,28"),
    "no such data": (None, DATA, "bad.npz: No such file"),
    "data that are none": (
        write("bad.npz", b"1,2,3"),
        DATA,
        "must be an npz file of arrays without pickled objects. Got bad.npz",
    ),
    "no labels": (save_arrays(X=X), DATA, "bad.npz: The file must contain X and y. Got ['X'], but no y"),
    "no rows": (save_arrays(y=X[:, 0]), DATA, "bad.npz: The file must contain X and y. Got ['y'], but no X"),
    "fewer labels": (save_arrays(X=X, y=np.arange(3)), DATA, "these numbers of rows: {'y': [3], 'X': [4]}"),
    "inputs of several lengths": (save_arrays(X0=X, X1=X[1:], y=np.arange(4)), DATA, "'X': [4, 3]"),
    "no rows at all": (save_arrays(X=X[:0], y=np.arange(0)), DATA, "at least one"),
    "pickled arrays": (save_arrays(X=X, y=np.array([Bomb] * 4, dtype=object)), DATA, "without pickled objects"),
    "unknown labels": (save_arrays(X=X, y=np.arange(4) + 5), DATA, "outputs for classes 0 to 2, but y holds [5, 6, 7, 8]"),
    "other rows": (save_arrays(X=X[:, :3], y=np.arange(4) % 3), DATA, "example inputs of shapes ((2, 3),)"),
    "a missing save": (None, ("inspect", "nowhere"), "There is no file nowhere"),
    "a folder of something": (lambda: os.mkdir("empty"), ("inspect", "empty"), "empty is not a complete save"),
}
if not torch.cuda.is_available():
    MISTAKES["no such device"] = (None, (*PAIR, *MODEL, "--device", "cuda"), "--device: must be an available device. Got 'cuda'")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_give_one_line(name, work, capsys):
    prepare, arguments, message = MISTAKES[name]
    if prepare is not None:
        prepare()
    code, _, err = run(capsys, *arguments)
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith(f"wbfuse {arguments[0]}: error: ")
    position = 0
    for part in message.split(".*"):
        position = err.find(part, position)
        assert position >= 0, err
    assert not (work / "exploded").exists() and not (work / "out" / "fusion.json").exists()


@settings(max_examples=4)
@given(mlps(), st.integers(0, 2**31))
def test_permuted_copies_through_files_fuse_to_the_original(tmp_path_factory, network, seed):
    folder, rng = tmp_path_factory.mktemp("permuted"), np.random.default_rng(seed)
    network = randomised(network, rng)
    copies = [network, disguised(network, rng), disguised(network, rng)]
    for i, model in enumerate(copies):
        safetensors.torch.save_file(model.state_dict(), folder / f"{i}.safetensors")
    module = sys.modules.setdefault("users_random_nets", type(sys)("users_random_nets"))
    module.make = lambda: copy.deepcopy(network)
    paths = [str(folder / f"{i}.safetensors") for i in range(3)]
    assert cli.main(["fuse", *paths, "-o", str(folder / "out"), "--model", "users_random_nets:make"]) == 0
    fused = load(folder / "out", model=network).fused_model_
    torch.testing.assert_close(fused(network.example), network(network.example))


def test_help_has_an_example(capsys):
    for command in ("fuse", "inspect"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0 and f"wbfuse {command} " in out.partition("example:")[2]


@pytest.mark.parametrize("data", [(), ("--data", "test.npz", "--correction", "repair")])
def test_the_agreement_is_printed_kept_and_inspected(work, capsys, data):
    code, out, _ = run(capsys, "fuse", "a.pt", "b.pt", "-o", "out", *MODEL, *data)
    fusion = load("out", model=users_net())
    shown = str(fusion.agreement_)
    assert code == 0 and shown in out and f"{fusion.agreement_.with_parents[1]:.1%}" in shown
    card = (work / "out" / "README.md").read_text()
    assert f"## Agreement\n\n```text\n{shown}\n```" in card and ("| agreement |" in card) == bool(data)
    assert shown in run(capsys, "inspect", "out")[1]
    content = json.loads((work / "out" / "fusion.json").read_text())
    for key in ("agreement", "agreement_reason"):  # as earlier versions saved it
        del content["fitted"][key]
    del content["checksum"]
    (work / "out" / "fusion.json").write_text(json.dumps(with_checksum(content)))
    assert "was not measured: saved before" in run(capsys, "inspect", "out")[1]
    assert "saved before" in load("out", model=users_net()).agreement_reason_
