"""From what files hold to networks: wrappers, counters, arrays, extra entries, tied tensors."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from sklearn_wbfuse import VanillaAveraging, cli, load
from sklearn_wbfuse.cli.checkpoints import Template, network_of, read_checkpoint
from sklearn_wbfuse.cli.state_dicts import match_names
from sklearn_wbfuse.discovery import plain_copy
from sklearn_wbfuse.exceptions import FusionError

TOKENS = torch.arange(6).reshape(2, 3)


class Encoded(nn.Module):
    """A network whose layers are at several depths."""

    def __init__(self, width=5):
        super().__init__()
        self.encoder = nn.ModuleDict({"conv": nn.Sequential(nn.Conv1d(2, width, 3), nn.BatchNorm1d(width))})
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.encoder["conv"](x).relu().mean(-1))


class Tied(nn.Module):
    def __init__(self, tie=True, width=4):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, width), nn.Linear(width, width), nn.Linear(width, 9, bias=False)
        if tie:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.inner(self.table(tokens)).tanh())


def network(content, template, folder, trust=False, ignore_extra=False):
    """The network that a file with some content holds, and the notes."""
    torch.save(content, folder / "file.pt")
    checkpoint = read_checkpoint(folder / "file.pt", trust, ignore_extra)
    inputs = torch.randn(2, 2, 5) if isinstance(template, Encoded) else TOKENS if isinstance(template, Tied) else None
    return network_of(checkpoint, Template(template, inputs)), ", ".join(checkpoint.notes)


def same(built, model):
    a, b = built.state_dict(), model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) and t.dtype == b[n].dtype for n, t in a.items())


def wrapped(model, *paths):
    """A copy in which the modules at some paths are wrapped, as `path=wrapper`."""
    twin = plain_copy(model, plain=False)
    for path, wrapper in (p.split("=") for p in paths):
        holder, (owner, _, leaf) = nn.Module(), path.rpartition(".")
        holder.add_module(wrapper, twin.get_submodule(path))
        twin.get_submodule(owner)._modules[leaf] = holder
    return twin


WRAPPED = [
    ("", ["encoder=_orig_mod"]),
    ("", ["encoder.conv.1=module", "encoder=_orig_mod", "head=module"]),
    ("", ["head=_orig_mod", "head=module"]),
    ("net.", []),
    ("self.backbone.", ["encoder.conv=_orig_mod"]),
    ("model.model.", []),
    ("_orig_mod.module.net._orig_mod.", ["head=_fsdp_wrapped_module"]),
]


@pytest.mark.parametrize(("prefix", "paths"), WRAPPED)
def test_wrappers_and_prefixes_are_taken_off(prefix, paths, tmp_path):
    model = Encoded(7 if prefix == "net." else 5)  # other widths take their time
    state = {f"{prefix}{n}": t for n, t in wrapped(model, *paths).state_dict().items()}
    built, notes = network(state, Encoded(), tmp_path)
    assert same(built, model) and (f"without the prefix {prefix!r}" if prefix and not paths else "names such as") in notes


names = st.lists(st.sampled_from(["module", "_orig_mod", "model", "0", "a"]), min_size=1, max_size=3).map(".".join)


@given(st.sets(names, min_size=1), st.sampled_from(["", "module.", "net._orig_mod."]))
def test_names_of_any_network_come_back_from_a_wrapper(network_names, prefix):
    network_names = {
        n for n in network_names if not any(other.startswith(f"{n}.") for other in network_names)
    }  # a tensor has no children
    assert match_names([f"{prefix}{n}" for n in network_names], network_names) == {f"{prefix}{n}": n for n in network_names}


def test_several_networks_of_one_kind_in_a_file(tmp_path):
    a, b = Encoded(), Encoded()
    both = nn.ModuleDict({"student": a, "teacher": b}).state_dict()
    with pytest.raises(FusionError, match=r"several matching networks, under 'student\.', 'teacher\.'\. Save only one of them"):
        network(both, Encoded(), tmp_path, ignore_extra=True)
    other = nn.ModuleDict({"student": a, "judge": nn.Linear(2, 3)}).state_dict()
    assert same(network(other, Encoded(), tmp_path, ignore_extra=True)[0], a)


EXTRA = {
    "weights of a loss": ({"criterion.weight": torch.ones(2)}, "criterion.weight"),
    "a layer of the training": ({"net.aux.bias": torch.ones(2)}, "net.aux.bias"),
    "state of its own": ({"net.head._extra_state": None}, "net.head._extra_state"),
    "metrics": ({f"accuracy.{n}": torch.zeros(()) for n in "tp fp tn fn".split()}, "accuracy.fn"),
}


@pytest.mark.parametrize("name", EXTRA)
def test_extra_entries_are_named_and_left_out_if_that_is_asked_for(name, tmp_path):
    extra, message = EXTRA[name]
    model = Encoded()
    content = {"epoch": 3, "callbacks": {"best": {"score": torch.ones(())}}}
    content["state_dict"] = {f"net.{n}": t for n, t in model.state_dict().items()} | extra
    with pytest.raises(FusionError, match=re.escape(message)) as raised:
        network(content, Encoded(), tmp_path)
    assert "--ignore-extra" in str(raised.value) and "net.head.bias" not in str(raised.value)
    built, notes = network(content, Encoded(), tmp_path, ignore_extra=True)
    assert same(built, model) and f"without {', '.join(map(repr, extra))}" in notes


@pytest.mark.parametrize("ignore_extra", [False, True])
def test_missing_tensors_are_always_refused(ignore_extra, tmp_path):
    state = {f"net.{n}": t for n, t in Encoded().state_dict().items() if n != "head.bias"} | {"loss.weight": torch.ones(2)}
    message = r"only stored, \['loss.weight'\], and names that only the network has, \['head.bias'\]"
    with pytest.raises(FusionError, match=message):
        network(state, Encoded(), tmp_path, ignore_extra=ignore_extra)


def change_counters(change):
    return lambda state: {n: change(t) if n.endswith("num_batches_tracked") else t for n, t in state.items()}


def removed(state):
    for name in [n for n in state if n.endswith("num_batches_tracked")]:
        del state[name]
    return state


COUNTERS = {
    "missing": lambda s: removed(dict(s)),
    "missing in a state dict of version 2": removed,
    "of shape (1,)": change_counters(lambda t: t.reshape(1)),
    "floating": change_counters(torch.Tensor.float),
    "averaged": change_counters(lambda t: t.double() + 0.5),
    "whole numbers of another kind": change_counters(torch.Tensor.int),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", COUNTERS)
def test_counters_are_read_as_torch_reads_them(name, prefix, tmp_path):
    model = Encoded(7).train()
    model(torch.randn(3, 2, 5))
    state = COUNTERS[name](model.state_dict())
    expected = Encoded(7)
    try:
        expected.load_state_dict(state, strict=True)
    except RuntimeError:
        expected = None
    if prefix:
        metadata = {f"{prefix}{n}".rstrip("."): v for n, v in getattr(state, "_metadata", {}).items()}
        state = type(state)((f"{prefix}{n}", t) for n, t in state.items())
        if metadata:
            state._metadata = metadata
    if expected is None:
        with pytest.raises(FusionError, match="num_batches_tracked"):
            network(state, Encoded(), tmp_path)
    else:
        assert same(network(state, Encoded(), tmp_path)[0], expected)


def test_floats_that_can_not_be_indices_are_refused(tmp_path):
    def indexed(order):
        model = nn.Sequential(nn.Linear(3, 3))
        model.register_buffer("order", torch.tensor(order))
        return model

    built, _ = network({n: t.float() for n, t in indexed([2, 0, 1]).state_dict().items()}, indexed([0, 1, 2]), tmp_path)
    assert torch.equal(built.order, torch.tensor([2, 0, 1]))
    with pytest.raises(FusionError, match=r"'order' must contain torch.int64.* Got torch.float32"):
        network(indexed([0.5, 1.0, 2.0]).state_dict(), indexed([0, 1, 2]), tmp_path)


@pytest.mark.parametrize("dtype", ["f4", "longdouble"])
def test_arrays_of_numpy_are_read_from_files_that_are_trusted(dtype, tmp_path):
    model = Encoded(6) if dtype == "f4" else Encoded(6).double()  # PyTorch has no longer floats
    state = {n: t.numpy().astype(dtype if t.dim() else t.numpy().dtype) for n, t in model.state_dict().items()}
    state["encoder.conv.1.num_batches_tracked"] = np.int64(0)
    with pytest.raises(FusionError, match=r"contains NumPy arrays .*torch.as_tensor.*--trust-pickle"):
        network({"state_dict": state}, Encoded(), tmp_path)
    assert same(network({"state_dict": state}, Encoded(), tmp_path, trust=True)[0], model)


def test_wrapped_layers_that_are_pruned(tmp_path):
    model = Encoded()
    for name in ("weight", "bias"):
        prune.l1_unstructured(model.encoder["conv"][0], name, amount=0.5)
    built, notes = network(wrapped(model, "encoder.conv.0=_orig_mod").state_dict(), Encoded(), tmp_path)
    assert torch.equal(built.encoder["conv"][0].weight, model.encoder["conv"][0].weight) and "pruning masks applied" in notes


class Twins(nn.Module):
    def __init__(self, tie=True, width=4):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, width), nn.Linear(3, width), nn.Linear(width, 2)
        if tie:
            self.right.weight = self.left.weight

    def forward(self, x):
        return self.head((self.left(x) + self.right(x.flip(-1))).relu())


@pytest.mark.parametrize(
    ("make", "width", "names"),
    [(Tied, 4, ("table.weight", "head.weight")), *((Twins, w, ("left.weight", "right.weight")) for w in (4, 6))],
)
def test_two_tensors_for_one_that_is_tied(make, width, names, tmp_path):
    untied, tied = make(False, width), make(True, width)
    message = f"{names[0]!r}, because it is tied to {names[1]!r} and different values are stored for the two. Give a network in"
    with pytest.raises(FusionError, match=re.escape(message)):
        network(untied.state_dict(), make(), tmp_path)
    alone = {n: t for n, t in tied.state_dict().items() if n != names[0]}
    for state in (tied.state_dict(), {n: t.clone() for n, t in tied.state_dict().items()}, alone):
        assert same(network(state, make(), tmp_path)[0], tied)
    assert same(network(tied.state_dict(), make(False), tmp_path)[0], tied)
    with pytest.raises(FusionError, match=rf"only the network has, \['{names[0]}'\]"):
        network(alone, make(False), tmp_path)


def test_the_card_says_how_to_fill_a_tied_network_strictly(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "users_tied", SimpleNamespace(Tied=Tied))
    monkeypatch.chdir(tmp_path)
    torch.save(Tied().state_dict() | {"loss.weight": torch.ones(9)}, "a.pt")
    arguments = ["fuse", "a.pt", "-o", "out", "--model", "users_tied:Tied"]
    assert cli.main(arguments) == 2 and "'loss.weight'" in capsys.readouterr().err
    assert cli.main([*arguments, "--ignore-extra"]) == 0 and "a.pt (without 'loss.weight')" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`a.pt (without 'loss.weight')`" in card
    monkeypatch.chdir(tmp_path / "out")
    call = re.search(r"`(safetensors\.torch\.load_model\(.*?)`", card)[1]
    plain = Tied()
    exec(call, {"safetensors": safetensors, "network": plain})
    torch.testing.assert_close(plain(TOKENS), load(".", model=Tied()).fused_model_(TOKENS))
    assert cli.main(["inspect", "../a.pt", "--model", "users_tied:Tied", "--ignore-extra"]) == 0


def test_a_saved_tied_network_is_read_strictly_and_not_by_an_untied_one(tmp_path):
    fusion = VanillaAveraging(example_inputs=TOKENS).fit([Tied(), Tied()])
    fusion.save(tmp_path / "tied")
    plain, file = Tied(), tmp_path / "tied" / "model.safetensors"
    safetensors.torch.load_model(plain, file, strict=True)
    assert same(plain, fusion.fused_model_) and same(load(tmp_path / "tied", model=Tied()).fused_model_, plain)
    assert same(network_of(read_checkpoint(tmp_path / "tied", False), Template(Tied())), plain)
    untied = VanillaAveraging(example_inputs=TOKENS).fit([Tied(False), Tied(False)])
    untied.save(tmp_path / "untied")
    for folder, template in (("tied", Tied(False)), ("untied", Tied())):
        with pytest.raises(FusionError, match="Tied"):
            load(tmp_path / folder, model=template)
