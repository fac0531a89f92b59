"""What users may give to ``wbfuse``, wrong and unusual, and what becomes of it."""

import contextlib
import io
import os
import pathlib
import pickle
import sys
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import DATA, MODEL, PAIR, X, nest, run, save_arrays, state, users_net, write
from torch import nn
from torch.nn.utils import prune

from sklearn_wbfuse import cli, load
from sklearn_wbfuse.cli.checkpoints import Template, network_of, read_checkpoint

Y = np.arange(4) % 3
NUMBERED = {f"X{i}": X for i in (0, 2)}


def changed(name, change):
    return lambda: torch.save({n: change(t) if n == name else t for n, t in state("a.pt").items()}, "b.pt")


def scripted():
    with warnings.catch_warnings(action="ignore"):  # PyTorch is about to give it up
        torch.jit.trace(users_net().eval(), torch.zeros(2, 5)).save("b.pt")


def pickled():
    with open("b.pkl", "wb") as file:
        pickle.dump(users_net(), file)


WHOLE = ("fuse", "b.pkl", "-o", "out", "--trust-pickle")
CODE = (*PAIR, "--model", "code_.py:Net")
MISTAKES = {
    "keys that are numbers": (
        lambda: torch.save({0: torch.ones(2)}, "b.pt"),
        (*PAIR, *MODEL),
        "must contain a state dict. Got a dict with [0]",
    ),
    "whole numbers": (
        changed("first.weight", torch.Tensor.long),
        (*PAIR, *MODEL),
        "b.pt does not match --model: 'first.weight' must be floating-point, as in the network (torch.float32). Got torch.int64",
    ),
    "sparse": (changed("first.weight", torch.Tensor.to_sparse), (*PAIR, *MODEL), "b.pt .*'first.weight' .*.to_dense()"),
    "strings": (
        save_arrays(X=np.full((4, 5), "a"), y=Y),
        DATA,
        "bad.npz: X must contain numbers, as the network takes them. Got dtype <U1",
    ),
    "one-hot": (save_arrays(X=X, y=np.eye(3)[Y]), DATA, "Got y of shape (4, 3). .*y.argmax(1)"),
    "no label": (save_arrays(X=X, y=np.array([0, 1, np.nan, 2])), DATA, "NaN or infinite values in y"),
    "names": (save_arrays(X=X, y=np.array(list("abca"))), DATA, "y must contain the indices .*Got dtype <U1. .*numpy.unique"),
    "bytes": (
        save_arrays(X=X.astype("u1"), y=Y),
        DATA,
        "X in --data must have the dtype .*float32. Got uint8. .*astype('float32')",
    ),
    "bytes to fit with": (save_arrays(X=X, y=Y, X_fit=X.astype("u1")), DATA, "X_fit in --data must have the dtype .*Got uint8"),
    "a gap": (save_arrays(**NUMBERED, y=Y), DATA, "must be numbered from X0 on without gaps. Got X0, X2"),
    "two kinds": (save_arrays(X=X, X0=X, y=Y), DATA, "both X and X0"),
    "a huge factor": (None, (*PAIR, *MODEL, "--widths", "1e18"), ": error: "),
    "a factor of no size": (None, (*PAIR, *MODEL, "--widths", "1e300"), ": error: "),
    "a huge shape": (None, (*PAIR, *MODEL, "--input-shape", "99999999999,9999999"), "not enough memory for networks or inputs"),
    "a group twice": (
        None,
        (*PAIR, *MODEL, "--widths", "first=5,first=7"),
        "must name each group once. Got the group 'first' twice",
    ),
    "code that exits": (
        write("code_.py", b"import sys; sys.exit(3)"),
        CODE,
        'ended in sys.exit(3). .*if __name__ == "__main__":',
    ),
    "a factory that exits": (write("code_.py", b"def Net(): raise SystemExit(3)"), CODE, "raised SystemExit: 3"),
    "several state dicts": (
        lambda: nest({"net_G": state("a.pt"), "ema": state("a.pt")}),
        ("inspect", "nested.pt", *MODEL),
        "must contain one state dict. Got several, under 'net_G', 'ema'. .*checkpoint['net_G']",
    ),
    "TorchScript": (scripted, (*PAIR, *MODEL), "b.pt is a TorchScript archive"),
    "TorchScript, trusted": (scripted, (*PAIR, *MODEL, "--trust-pickle"), "b.pt is a TorchScript archive"),
    "a plain pickle": (pickled, WHOLE, "such as that of pickle.dump. Use torch.save(model, path)"),
    "a shape that is not used": (lambda: os.mkdir("saved"), ("inspect", "saved", "--input-shape", "5"), "Leave it out"),
    "below a file": (None, ("fuse", "a.pt", "-o", "a.pt/sub", *MODEL), "--output 'a.pt/sub' cannot be written: Not a directory"),
    "below /proc": (None, ("fuse", "a.pt", "-o", "/proc/x", *MODEL), "--output '/proc/x' cannot be written"),
    "a link to nothing": (lambda: os.symlink("nowhere", "out"), (*PAIR, *MODEL), "/out is a broken symbolic link"),
    "NUL": (None, ("fuse", "a.pt", "-o", "a\0b", *MODEL), "its name contains a NUL"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_give_one_line(name, work, capsys):
    prepare, arguments, message = MISTAKES[name]
    if prepare is not None:
        prepare()
    if "-o" in arguments and "out" not in arguments:
        (work / "nets.py").write_text("raise RuntimeError('it is told before anything is read')")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and err.startswith(f"wbfuse {arguments[0]}: error: ")
    position = 0
    for part in message.split(".*"):
        position = err.find(part, position)
        assert position >= 0, err


def test_inspect_does_not_name_options_of_fuse(work, nets, capsys):
    torch.save(nets.Pictures().state_dict(), "a.pt")
    assert run(capsys, "inspect", "a.pt", "--model", "nets.py:Pictures")[2].endswith(
        "On the command line: --input-shape 3,32,32 for one input.\n"
    )
    assert "rows X in --data" in run(capsys, *PAIR[:2], "-o", "out", "--model", "nets.py:Pictures")[2]


def test_a_training_script_gets_no_arguments_of_wbfuse(work, capsys):
    before = list(sys.argv)
    text = (work / "nets.py").read_text() + "\nimport argparse\nargparse.ArgumentParser().parse_args()\n"
    (work / "script.py").write_text(text)
    monkey = ["wbfuse", "fuse", "a.pt"]
    sys.argv[:] = monkey
    try:
        assert run(capsys, *PAIR, "--model", "script.py:Net")[0] == 0 and sys.argv == monkey
    finally:
        sys.argv[:] = before


@pytest.mark.parametrize("arguments", [(*PAIR, *MODEL), (*PAIR, *MODEL, "--data", "test.npz"), ("inspect", "a.pt", *MODEL)])
def test_a_reader_that_goes_away(arguments, work, capsys, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stdout, contextlib.redirect_stdout(stdout):
        code = cli.main(list(arguments))
    assert code == 0 and capsys.readouterr() == ("", "")
    if arguments[0] == "fuse":
        assert load("out", model=users_net()).energy_ >= 0 and (work / "out" / "README.md").exists()


@pytest.mark.parametrize(("dtype", "arguments"), [(">f4", ()), ("<f4", ("--correction", "repair"))])
def test_no_row_that_is_scored_on_is_saved(dtype, arguments, work, capsys):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 5)).astype(dtype)
    np.savez("own.npz", X=rows, y=rng.integers(0, 3, 40))
    code, out, err = run(capsys, *PAIR, *MODEL, "--data", "own.npz", *arguments)
    assert (code, err) == (0, "") and "The fits saw no data" in out and "example_inputs" not in out
    saved = [t.double().flatten() for t in safetensors.torch.load_file("out/couplings.safetensors").values() if t.numel()]
    values = torch.cat(saved)
    assert len(values) and not torch.isin(values, torch.as_tensor(rows.astype("f8")).flatten()).any()
    assert any(t.shape == (10,) for t in saved)  # the noise


@pytest.mark.parametrize("name", ["model", "module"])
def test_prefixes_of_the_network_itself_stay(name, work):
    network = nn.Module()
    network.add_module(name, nn.Linear(2, 3))
    torch.save({f"module.{n}": t for n, t in network.state_dict().items()}, "own.pt")
    built = network_of(read_checkpoint(work / "own.pt", False), Template(network))
    assert torch.equal(built.get_submodule(name).weight, network.get_submodule(name).weight)


@pytest.mark.parametrize(("pruned", "width"), [(False, 4), (True, 4), (True, 6)])
def test_checkpoints_of_pruned_networks(pruned, width, work):
    def net(width, prunes):
        model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)).eval()
        if prunes:
            prune.l1_unstructured(model[2], "weight", amount=0.5)
            prune.l1_unstructured(model[2], "weight", amount=0.5)
        return model

    model = net(width, True)
    torch.save(model.state_dict(), "pruned.pt")
    checkpoint = read_checkpoint(pathlib.Path("pruned.pt"), False)
    built = network_of(checkpoint, Template(net(4, pruned)))
    torch.testing.assert_close(built[2].weight, model[2].weight)
    x = torch.randn(5, 3)
    torch.testing.assert_close(built(x), model(x))
    assert ("with its pruning masks applied" in str(checkpoint)) is not pruned


def test_an_averaged_model_that_is_pickled(work, nets):
    torch.save(torch.optim.swa_utils.AveragedModel(users_net()), "ema.pt")
    assert isinstance(network_of(read_checkpoint(work / "ema.pt", True), None), nets.Net)


@pytest.mark.parametrize("name", ["my-net.py", "token.py", "code/dataclasses.py"])
def test_the_snippet_takes_files_of_any_name(name, work, capsys, monkeypatch):
    (work / "code").mkdir()
    (work / name).write_text("from __future__ import annotations\n" + (work / "nets.py").read_text())
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run(capsys, *PAIR, "--model", f"{name}:Net")[0] == 0
    card = (work / "out" / "README.md").read_text()
    assert f"relative to the folder in which the command was run, `{work}`" in card
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in (str(work), str(work / "code"))])
    names = {}
    exec(card.split("```python")[1].split("```")[0], names)
    assert torch.equal(names["network"].first.weight, safetensors.torch.load_file("out/model.safetensors")["first.weight"])


def test_the_card_says_what_was_done(work, nets, capsys, monkeypatch):
    class Blocked(nets.Net):
        def forward(self, x):
            return super().forward(x) + torch.cumsum(self.first(x), 1).sum(1, keepdim=True)

    nets.Blocked = Blocked
    written, original = {}, pathlib.Path.write_text

    def write_text(self, text, **options):
        written[self.name] = options
        return original(self, text, **options)

    monkeypatch.setattr(pathlib.Path, "write_text", write_text)
    torch.save(nets.Net(4).state_dict(), "a.pt")
    code, out, _ = run(capsys, *PAIR[:2], "-o", "out", "--model", "users_nets:Blocked", "--data", "test.npz", "--reg", "0.5")
    assert code == 0 and written["README.md"]["encoding"] == "utf-8"
    card = (work / "out" / "README.md").read_text()
    title = next(line for line in out.splitlines() if "The fits saw 40 other rows" in line)
    assert f"{title} Data: `test.npz`." in card and "`WassersteinFusion(random_state=0, reg=0.5)`: energy" in card
    assert "; correction: auto;\nweights of the parents: equal." in card
    note = next(line for line in out.splitlines() if line.startswith("Note: ")).removeprefix("Note: ")
    assert f"- {note}" in card.split("## Notes")[1]


def test_what_is_not_a_result_is_not_overwritten(work, capsys):
    (work / "out").mkdir()
    for name, message in (("README.md", "README.md was not written by wbfuse"), ("model.safetensors", "but no fusion.json")):
        (work / "out" / name).write_text("mine")
        code, _, err = run(capsys, *PAIR, *MODEL, "--overwrite")
        assert code == 2 and message in err and (work / "out" / name).read_text() == "mine"
        (work / "out" / name).unlink()
    (work / "out" / "README.md").write_text("# A fused network\n")
    assert run(capsys, *PAIR, *MODEL)[0] == 0
    code, _, err = run(capsys, *PAIR, *MODEL)
    assert code == 2 and "contains an earlier result" in err


def test_files_are_read_once(work, capsys, monkeypatch):
    safetensors.torch.save_file(users_net().state_dict(), "as_built.safetensors")
    assert run(capsys, "fuse", "as_built.safetensors", "-o", "out", *MODEL)[0] == 0
    names, open_file = [], io.open

    def counted(file, mode="r", *arguments, **options):
        if "r" in mode and pathlib.Path(str(file)).resolve().is_relative_to(work / "out"):
            names.append(pathlib.Path(file).name)
        return open_file(file, mode, *arguments, **options)

    monkeypatch.setattr(io, "open", counted)
    monkeypatch.setattr("builtins.open", counted)
    assert run(capsys, "inspect", "out")[0] == 0 and len(names) == len(set(names)) and "fusion.json" in names
    names.clear()
    assert run(capsys, "fuse", "out", "as_built.safetensors", "-o", "again", *MODEL)[0] == 0
    assert len(names) == len(set(names)) and "fusion.json" in names
