"""The package's names, which are imported when they are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator
from torch import nn

import sklearn_wbfuse


def python(code):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_names_are_there():
    names = {}
    exec("from sklearn_wbfuse import *", names)
    assert set(sklearn_wbfuse.__all__) <= {*names} & {*dir(sklearn_wbfuse)}
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


class TestPrivateNames:
    """What begins with an underscore stays in its package; names that scikit-learn and PyTorch define are theirs."""

    ROOT = Path(sklearn_wbfuse.__file__).parent

    def trees(self):
        return {path.relative_to(self.ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in self.ROOT.rglob("*.py")}

    def test_no_package_uses_one_of_another(self):
        trees, defined = self.trees(), {}
        for path, tree in trees.items():
            defined.setdefault(path.parts[0], set()).update(_defined(tree))
        wrong = []
        for path, tree in trees.items():
            elsewhere = set().union(*(names for package, names in defined.items() if package != path.parts[0]))
            for node in ast.walk(tree):
                imported = [a.name for a in node.names if _is_private(a.name)] if _comes_from_elsewhere(node) else []
                wrong += [f"{path}:{node.lineno} imports {name}" for name in imported]
                if isinstance(node, ast.Attribute) and _is_private(node.attr) and not hasattr(BaseEstimator, node.attr):
                    is_torchs = hasattr(nn.Module(), node.attr) or hasattr(nn.RNN(1, 1), node.attr)
                    if node.attr in elsewhere - defined[path.parts[0]] and not is_torchs and node.attr != CONSTRAINTS:
                        wrong.append(f"{path}:{node.lineno} uses {ast.unparse(node)}")
        assert not wrong, "\n".join(wrong)


PATCHED = {  # what stands in for a part that has no parameter
    ("model_selection/test_compare_fits.py", "comparison"): "the plain average beside fusions",
    ("cli/test_cli.py", "command"): "the plain average of the demonstration, so that nothing beats it",
}


class TestTests:
    """Tests use the package as everybody does: no private name of it, and no module of it patched."""

    HERE = Path(__file__).parent

    def test_every_package_has_its_tests_in_a_folder_of_its_name(self):
        packages = {path.parent.name for path in Path(sklearn_wbfuse.__file__).parent.glob("*/__init__.py")}
        assert packages <= {path.parent.name for path in self.HERE.glob("*/test_*.py")}

    def test_no_test_reads_a_private_name(self):
        package = Path(sklearn_wbfuse.__file__).parent
        private = {n for path in package.rglob("*.py") for n in _defined(ast.parse(path.read_text())) if _is_private(n)}
        wrong = []
        for path in sorted(self.HERE.rglob("*.py")):
            tree = ast.parse(path.read_text())
            own = {*_defined(tree), CONSTRAINTS}
            for node in ast.walk(tree):
                if _comes_from_elsewhere(node):
                    names = [*node.module.split("."), *(a.name for a in node.names)]
                    wrong += [f"{path.name}:{node.lineno} imports {name}" for name in names if _is_private(name)]
                is_private = isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr in private - own
                if is_private and not _belongs_to_others(node.attr):
                    wrong.append(f"{path.name}:{node.lineno} reads {ast.unparse(node)}")
        assert not wrong, "\n".join(wrong)

    def test_no_test_patches_a_module(self):
        wrong, excused = [], set()
        for path in sorted(self.HERE.rglob("*.py")):
            tree, file = ast.parse(path.read_text()), path.relative_to(self.HERE).as_posix()
            ours = {
                alias.asname or alias.name.partition(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in node.names
                if (getattr(node, "module", None) or alias.name).partition(".")[0] == "sklearn_wbfuse"
            }
            for node in ast.walk(tree):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if not called.endswith(("monkeypatch.setattr", "monkeypatch.delattr", "patch.object", "mock.patch")):
                    continue
                target = ast.unparse(node.args[0]).strip("'\"").partition(".")[0]
                if (file, target) in PATCHED:
                    excused.add((file, target))
                elif target in ours or target == "sklearn_wbfuse":
                    wrong.append(f"{file}:{node.lineno} patches {ast.unparse(node.args[0])}")
        assert not wrong, "\n".join(wrong)
        assert excused == set(PATCHED)


def _belongs_to_others(name):
    """Whether scikit-learn or PyTorch define a name, so that it is theirs."""
    return hasattr(BaseEstimator, name) or hasattr(nn.Module(), name) or hasattr(nn.RNN(1, 1), name)


CONSTRAINTS = "_parameter_constraints"  # of scikit-learn's estimators, which declare it in each class


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _comes_from_elsewhere(node):
    return isinstance(node, ast.ImportFrom) and (node.level > 1 or (node.module or "").startswith("sklearn_wbfuse"))


def _defined(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node, ast.Attribute) else node.id
