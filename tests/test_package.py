"""The package's names, which are imported when they are first used."""

import subprocess
import sys

import pytest

import sklearn_wbfuse


def python(code):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_names_are_there():
    names = {}
    exec("from sklearn_wbfuse import *", names)
    assert set(sklearn_wbfuse.__all__) == set(sklearn_wbfuse._HOMES) <= {*names} & {*dir(sklearn_wbfuse)}
    for name in sklearn_wbfuse.__all__:
        assert getattr(sklearn_wbfuse, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'sklearn_wbfuse' has no attribute 'Fusion'"):
        sklearn_wbfuse.Fusion  # noqa: B018


FIRST = {
    "nothing": ("import sklearn_wbfuse", "torch sklearn numpy"),
    "an estimator": ("from sklearn_wbfuse import WassersteinFusion", "ot sklearn.cluster sklearn.metrics matplotlib"),
    "a module": ("import sklearn_wbfuse\nsklearn_wbfuse.exceptions.FusionError, sklearn_wbfuse.layers.declare", "ot"),
}


@pytest.mark.parametrize("name", FIRST)
def test_what_is_not_needed_is_not_imported(name):
    code, absent = FIRST[name]
    assert python(f"import sys\n{code}\nprint([n for n in {absent.split()} if n in sys.modules])") == "[]\n"


def test_load_knows_all_estimators_though_none_was_named(tmp_path):
    import torch

    model, folder = torch.nn.Linear(2, 2), str(tmp_path / "it")
    sklearn_wbfuse.FusionClassifier(sklearn_wbfuse.VanillaAveraging(), classes=["a", "b"]).fit([model, model]).save(folder)
    code = "import torch\nfrom sklearn_wbfuse.persistence import load\nprint(type(load({!r}, torch.nn.Linear(2, 2))).__name__)"
    assert python(code.format(folder)) == "FusionClassifier\n"
