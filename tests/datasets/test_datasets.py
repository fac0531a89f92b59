import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch

from sklearn_wbfuse import datasets, discover
from sklearn_wbfuse.datasets import cifar, mnist


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """A folder for WBFUSE_DATA, which is not set yet, and an empty cache."""
    monkeypatch.delenv("WBFUSE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data", tmp_path / "cache" / "sklearn_wbfuse"


def images(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n):
    return np.arange(n, dtype=np.uint8) % 10


def write_mnist(path):
    np.savez(path, x_train=images(6, 28, 28), y_train=labels(6), x_test=images(4, 28, 28, seed=1), y_test=labels(4))


def test_digits():
    digits = datasets.load_digits()
    parts = [digits[f"X_{split}"] for split in ("train", "val", "test")]
    assert [tuple(x.shape) for x in parts] == [(1000, 64), (297, 64), (500, 64)]
    assert all(x.dtype == torch.float32 for x in parts) and digits.y_val.dtype == torch.int64
    assert float(digits.X_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(digits.X_train.std()) == pytest.approx(1, abs=1e-3)
    assert len(torch.unique(torch.cat(parts), dim=0)) == 1797  # no row stands in two splits
    assert torch.equal(digits.X_test, datasets.load_digits().X_test)
    assert not torch.equal(digits.X_test, datasets.load_digits(random_state=1).X_test)


def test_training_is_deterministic_and_leaves_the_global_state_alone():
    digits = datasets.load_digits()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    models = []
    for _ in range(2):
        models.append(datasets.train_mlp(digits.X_train, digits.y_train, (64, 16, 10), seed=3, epochs=2))
        torch.set_rng_state(torch.Generator().manual_seed(7).get_state())
    torch.set_rng_state(state)
    datasets.train_mlp(digits.X_train, digits.y_train, (64, 4, 10), epochs=1)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert not models[0].training
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    other = datasets.train_mlp(digits.X_train, digits.y_train, (64, 16, 10), seed=4, epochs=1)
    assert not torch.equal(other.layers[0].weight, models[0].layers[0].weight)


def test_mnist_from_a_folder(folders, monkeypatch):
    data, _ = folders
    monkeypatch.setenv("WBFUSE_DATA", str(data))
    with pytest.raises(datasets.DatasetError, match="WBFUSE_DATA"):
        datasets.load_mnist()
    write_mnist(data / "mnist.npz")
    loaded = datasets.load_mnist()
    assert loaded.X_train.shape == (6, 1, 28, 28) and loaded.X_train.dtype == torch.float32
    expected = (images(6, 28, 28)[:, None] / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(loaded.X_train, expected, atol=1e-5)
    assert loaded.y_test.tolist() == [0, 1, 2, 3]


def test_download_is_checked_and_kept(folders, monkeypatch):
    data, cache = folders
    write_mnist(data / "mnist.npz")
    monkeypatch.setattr(mnist, "_URL", (data / "mnist.npz").as_uri())
    with pytest.raises(datasets.DatasetError, match=r"SHA-256[\s\S]*by hand"):
        datasets.load_mnist()
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(mnist, "_SHA256", hashlib.sha256((data / "mnist.npz").read_bytes()).hexdigest())
    first = datasets.load_mnist()
    assert [p.name for p in cache.iterdir()] == ["mnist.npz"]
    (data / "mnist.npz").unlink()  # the second time it comes from the cache
    assert torch.equal(datasets.load_mnist().X_test, first.X_test)
    (cache / "mnist.npz").unlink()
    with pytest.raises(datasets.DatasetError, match="could not be downloaded"):
        datasets.load_mnist()


def normalised_cifar(x):
    return ((x / 255 - [0.4914, 0.4822, 0.4465]) / [0.247, 0.243, 0.261]).transpose(0, 3, 1, 2)


def test_cifar_from_arrays(folders, monkeypatch):
    data, _ = folders
    monkeypatch.setenv("WBFUSE_DATA", str(data))
    x = images(5, 32, 32, 3)
    np.savez(data / "cifar10.npz", x_train=x, y_train=labels(5), x_test=x[:2], y_test=labels(2))
    loaded = datasets.load_cifar10()
    np.testing.assert_allclose(loaded.X_train, normalised_cifar(x), atol=1e-5)
    assert loaded.X_test.shape == (2, 3, 32, 32) and loaded.y_test.dtype == torch.int64


def test_cifar_from_jpeg(folders, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    data, _ = folders
    monkeypatch.setenv("WBFUSE_DATA", str(data))
    flat = np.broadcast_to(np.array([[200, 30, 90], [10, 220, 60]], np.uint8)[:, None, None], (2, 32, 32, 3))  # kept by JPEG
    files = []
    for array in flat:
        buffer = io.BytesIO()
        image.fromarray(array).save(buffer, "jpeg", quality=95)
        files.append(buffer.getvalue())
    arrays = {}
    for split in ("train", "test"):
        arrays[f"jpeg_{split}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"offset_{split}"] = np.cumsum([0, *map(len, files)])
        arrays[f"y_{split}"] = labels(2)
    np.savez(data / "cifar10_jpeg.npz", **arrays)
    np.testing.assert_allclose(datasets.load_cifar10().X_test, normalised_cifar(flat), atol=0.05)


def test_cifar_from_its_archive(folders, monkeypatch):
    data, _ = folders
    x = images(12, 32, 32, 3)
    archive = data / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i, name in enumerate([*cifar._MEMBERS["train"], *cifar._MEMBERS["test"]]):
            own = slice(2 * i, 2 * i + 2)
            rows = np.concatenate([labels(12)[own, None], x[own].transpose(0, 3, 1, 2).reshape(2, -1)], axis=1)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.size
            tar.addfile(member, io.BytesIO(rows.tobytes()))
    monkeypatch.setattr(cifar, "_URL", archive.as_uri())
    monkeypatch.setattr(cifar, "_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    loaded = datasets.load_cifar10()
    np.testing.assert_allclose(torch.cat([loaded.X_train, loaded.X_test]), normalised_cifar(x), atol=1e-5)
    assert torch.cat([loaded.y_train, loaded.y_test]).tolist() == labels(12).tolist()


@pytest.mark.parametrize(
    ("model", "shape", "parameters", "names", "groups"),
    [
        (datasets.MLPNet(), (1, 28, 28), 415_310, {"layers.0.weight", "layers.3.bias"}, 3),
        (datasets.MLPNet(bias=False), (1, 28, 28), 414_600, {"layers.3.weight"}, 3),
        (datasets.VGG11(0.125), (3, 32, 32), 145_210, {"0.weight", "18.bias", "22.weight"}, 8),
        (datasets.ResNet20(), (3, 32, 32), 272_474, {"c.weight", "blocks.3.sc.1.running_var", "fc.bias"}, 12),
    ],
)
def test_architectures(model, shape, parameters, names, groups):
    x = torch.zeros(2, *shape)
    assert model.eval()(x).shape == (2, 10)
    assert names <= set(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(discover(model, (x,)).groups) == groups
