"""Networks from the names of factories, which are the user's code and may do anything."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

from ..discovery import plain_copy
from ..exceptions import FusionError, did_you_mean

__all__ = ["build"]


def build(name: str) -> nn.Module:
    """Build the network of the factory ``module:name`` or ``file.py:name``, in eval mode.

    Raises
    ------
    FusionError
        If a part of the name is wrong, or the factory raises an error.
    """
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise FusionError(f"--model must be package.module:Net or path/to/file.py:Net. Got {name!r}.")
    module = _import(source)
    if not hasattr(module, attribute):
        raise FusionError(f"--model {name}: {source} has no {attribute!r}.{_hint(attribute, module)}")
    factory = getattr(module, attribute)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise FusionError(
            f"--model must name a class or a function that builds a network. Got {name}, a {type(factory).__name__}."
        )
    try:
        with _as_script(source):
            network = factory()
    except (Exception, SystemExit) as error:  # the user's code
        raise FusionError(
            f"--model {name}, called without arguments, raised {type(error).__name__}: {error}. Name a function that needs none."
        ) from error
    if not isinstance(network, nn.Module):
        raise FusionError(f"--model {name} must build a torch.nn.Module. Got {type(network).__name__}.")
    return plain_copy(network, plain=False)


def _hint(attribute: str, module: ModuleType) -> str:
    """Return a hint at a similar name in a module, preferably one that the module defines; otherwise its networks."""
    factories = {n: v for n, v in vars(module).items() if callable(v) and not n.startswith("_")}
    defined = [n for n, v in factories.items() if getattr(v, "__module__", None) == module.__name__]
    networks = [n for n in defined if isinstance(factories[n], type) and issubclass(factories[n], nn.Module)]
    hint = did_you_mean(attribute, defined) or did_you_mean(attribute, factories)
    return hint or (f" Its networks: {', '.join(networks[:10])}." if networks else "")


def _import(source: str) -> ModuleType:
    """Import a module by its name or by the path of its file."""
    path = Path(source)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        hint = did_you_mean(path.name, [p.name for p in path.absolute().parent.glob("*.py")])
        raise FusionError(f"--model names the file {path}, which does not exist.{hint}")
    folder = str(path.absolute().parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with _as_script(source):
            return _import_file(path) if is_file else importlib.import_module(source)
    except SystemExit as error:
        raise FusionError(
            f"--model: importing {source} ended in sys.exit({error.code!r}). Move the code that it runs as a program under "
            'if __name__ == "__main__":.'
        ) from error
    except Exception as error:  # the user's code
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            raise FusionError(f"--model names the module {source!r}, which is neither installed nor in {os.getcwd()}.") from error
        raise FusionError(f"--model: importing {source} raised {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _as_script(source: str) -> Iterator[None]:
    """Hide the arguments of wbfuse, which a training script would parse as its own."""
    arguments, sys.argv = sys.argv, [source]
    try:
        yield
    finally:
        sys.argv = arguments


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look it up there
    spec.loader.exec_module(module)
    return module
