import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import NETS


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The module of the user's networks."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "users_nets.py").write_text(NETS)
    sys.path.insert(0, str(folder))
    import users_nets

    yield users_nets
    sys.path.remove(str(folder))


@pytest.fixture
def work(nets, tmp_path, monkeypatch):
    """A folder with the user's files, which is the current one."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for seed, name, width in ((0, "a", 6), (1, "b", 6), (2, "wide", 9)):
        torch.manual_seed(seed)
        network = nets.Net(width)
        torch.save(network.state_dict(), f"{name}.pt")
        safetensors.torch.save_file(network.state_dict(), f"{name}.safetensors")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 5)).astype("float32")
    np.savez("test.npz", X=X, y=rng.integers(0, 3, 40), X_fit=X[::-1])
    return tmp_path
