import hashlib
import io
import tarfile
import urllib.request

import numpy as np
import pytest
import torch

from sklearn_wbfuse import datasets, discover
from sklearn_wbfuse.datasets.files import download
from sklearn_wbfuse.datasets.text import embedding_of


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
    source = data / "mnist.npz"
    write_mnist(source)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: source.open("rb"))  # whatever the address
    with pytest.raises(datasets.DatasetError, match=r"SHA-256[\s\S]*by hand"):
        datasets.load_mnist()
    assert list(cache.iterdir()) == []
    download("https://example.org/mnist.npz", hashlib.sha256(source.read_bytes()).hexdigest())
    assert [p.name for p in cache.iterdir()] == ["mnist.npz"]
    source.unlink()  # from now on it comes from the cache
    expected = (images(4, 28, 28, seed=1)[:, None] / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(datasets.load_mnist().X_test, expected, atol=1e-5)
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


def test_cifar_from_its_archive(folders):
    _, cache = folders
    x = images(12, 32, 32, 3)
    cache.mkdir(parents=True)
    archive = cache / "cifar-10-binary.tar.gz"  # put there by hand
    members = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    with tarfile.open(archive, "w:gz") as tar:
        for i, name in enumerate(members):
            part = slice(2 * i, 2 * i + 2)
            rows = np.concatenate([labels(12)[part, None], x[part].transpose(0, 3, 1, 2).reshape(2, -1)], axis=1)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.size
            tar.addfile(member, io.BytesIO(rows.tobytes()))
    loaded = datasets.load_cifar10()
    np.testing.assert_allclose(torch.cat([loaded.X_train, loaded.X_test]), normalised_cifar(x), atol=1e-5)
    assert torch.cat([loaded.y_train, loaded.y_test]).tolist() == labels(12).tolist()


SENTENCES = ["a good film\t1", "a bad , bad film\t0", "good\t1"]


def write_sst2(data, names=("train", "dev", "test")):
    (data / "text").mkdir(exist_ok=True)
    for name in names:
        (data / "text" / f"sst2_{name}.tsv").write_text("\n".join(SENTENCES if name == "train" else [*SENTENCES, "a mess\t0"]))


def test_sst2(folders, monkeypatch):
    data, _ = folders
    with pytest.raises(datasets.DatasetError, match=r"contains text/sst2_train.tsv[\s\S]*not downloaded"):
        datasets.load_sst2()
    monkeypatch.setenv("WBFUSE_DATA", str(data))
    write_sst2(data, ["train"])
    with pytest.raises(datasets.DatasetError, match=r"contains text/sst2_dev.tsv"):
        datasets.load_sst2()
    write_sst2(data)
    loaded = datasets.load_sst2(dim=2)
    assert loaded.vocabulary == ["<padding>", "<unknown>", "a", "bad", "film", "good"]
    assert loaded.X_train.shape == (3, 56) and loaded.X_valid.shape == loaded.X_test.shape == (4, 56)
    assert loaded.X_train.dtype == loaded.y_train.dtype == torch.int64
    assert loaded.X_train[1, -5:].tolist() == [2, 3, 1, 3, 4] and not loaded.X_train[:, :-5].any()
    assert loaded.X_test[3, -2:].tolist() == [2, 1] and loaded.y_test.tolist() == [1, 0, 1, 0]


def test_long_texts_lose_their_end(folders, monkeypatch):
    data, _ = folders
    monkeypatch.setenv("WBFUSE_DATA", str(data))
    (data / "text").mkdir()
    row = '"{}","Up &lt;X&gt;","It #39;s {}"\n'
    (data / "text" / "ag_news_7600.csv").write_text("".join(row.format(1 + k % 4, "go " * 60 + "end") for k in range(6004)))
    loaded = datasets.load_ag_news(dim=3)
    assert [len(loaded[f"X_{split}"]) for split in ("train", "valid", "test")] == [5500, 500, 4]
    words = [loaded.vocabulary[token] for token in loaded.X_test[0]]
    assert words == ["up", "<", "x", ">", "it", "'", "s", *["go"] * 53]
    classes = torch.cat([loaded.y_train, loaded.y_valid, loaded.y_test])
    assert np.bincount(classes).tolist() == [1501] * 4
    again = datasets.load_ag_news(dim=3)
    assert torch.equal(classes, torch.cat([again.y_train, again.y_valid, again.y_test]))
    assert torch.equal(loaded.embedding, again.embedding)


def test_ag_news_is_downloaded(folders, monkeypatch):
    data, cache = folders
    source = data / "test.csv"
    source.write_text("".join(f'"{1 + k % 4}","a b","c d"\n' for k in range(6004)))
    addresses = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: addresses.append(url) or source.open("rb"))
    with pytest.raises(datasets.DatasetError, match=r"SHA-256[\s\S]*ag_news_7600.csv by hand"):
        datasets.load_ag_news()
    download(*addresses, hashlib.sha256(source.read_bytes()).hexdigest(), "ag_news_7600.csv")
    assert [p.name for p in cache.iterdir()] == ["ag_news_7600.csv"]
    assert datasets.load_ag_news(dim=2).X_train.shape == (5500, 60)


def test_embedding_is_the_truncated_svd_of_the_ppmi():
    rows = [np.array([2, 3, 4, 3, 5, 2, 2, 4]), np.array([5]), np.array([6, 3, 1])]
    counts = np.zeros((7, 7))
    for row in rows:
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                counts[a, b] += 0 < abs(i - j) <= 5
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(counts * counts.sum() / np.outer(counts.sum(0), counts.sum(1)))
    ppmi = np.maximum(np.nan_to_num(pmi, neginf=0), 0)
    U, S, _ = np.linalg.svd(ppmi)
    expected = U[:, :3] * np.sqrt(S[:3])
    table = embedding_of(rows, 7, 3).numpy()
    assert table.dtype == np.float32 and not table[0].any()
    np.testing.assert_allclose(np.linalg.norm(table[1:], axis=1), np.sqrt(3), rtol=1e-5)
    expected = expected[1:] * np.sqrt(3) / np.linalg.norm(expected[1:], axis=1, keepdims=True)
    np.testing.assert_allclose(table[1:] @ table[1:].T, expected @ expected.T, atol=1e-4)


def test_text_net_keeps_its_own_frozen_embedding():
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    model = datasets.TextNet("rnn", table, 6, 3)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"embed.weight"}
    assert torch.equal(model.embed.weight, table)
    table.zero_()
    x = torch.tensor([[0, 3, 8], [1, 2, 2]])
    states, _ = model.rnn(model.embed(x))
    assert model.embed.weight.any()
    assert torch.equal(model(x), model.fc(states[:, -1])) and model(x).shape == (2, 3)
    assert len(discover(model, (x,)).groups) == 2


@pytest.mark.parametrize(
    ("model", "shape", "parameters", "names", "groups"),
    [
        (datasets.MLPNet(), (1, 28, 28), 415_310, {"layers.0.weight", "layers.3.bias"}, 3),
        (datasets.MLPNet(bias=False), (1, 28, 28), 414_600, {"layers.3.weight"}, 3),
        (datasets.VGG11(0.125), (3, 32, 32), 145_210, {"0.weight", "18.bias", "22.weight"}, 8),
        (datasets.ResNet20(), (3, 32, 32), 272_474, {"c.weight", "blocks.3.sc.1.running_var", "fc.bias"}, 12),
        (datasets.RecurrentNet("gru", hidden=16), (1, 28, 28), 2_378, {"rnn.weight_hh_l0", "fc.bias"}, 1),
    ],
)
def test_architectures(model, shape, parameters, names, groups):
    x = torch.zeros(2, *shape)
    assert model.eval()(x).shape == (2, 10)
    assert names <= set(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(discover(model, (x,)).groups) == groups
