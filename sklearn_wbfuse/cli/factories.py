"""From the names of factories to networks: the user's code, which may do anything."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..discovery import plain_copy
from ..exceptions import FusionError, did_you_mean

__all__ = ["build"]


def build(name: str) -> nn.Module:
    """The network that ``module:name`` or ``file.py:name`` makes, in eval mode.

    Raises
    ------
    FusionError
        Saying which part of the name is wrong, or what the factory raised.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise FusionError(f"--model must be package.module:Net or path/to/file.py:Net. Got {name!r}.")
    module = _imported(where)
    if not hasattr(module, attribute):
        raise FusionError(f"--model {name}: {where} has no {attribute!r}.{_meant(attribute, module)}")
    factory = getattr(module, attribute)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise FusionError(f"--model {name} is a {type(factory).__name__}; name a class or a function that makes a network.")
    try:
        with _as_script(where):
            network = factory()
    except (Exception, SystemExit) as error:  # the user's code
        raise FusionError(
            f"--model {name}, called without arguments, raised {type(error).__name__}: {error}. Name a function that takes none."
        ) from error
    if not isinstance(network, nn.Module):
        raise FusionError(f"--model {name} made a {type(network).__name__}; it must make a torch.nn.Module.")
    return plain_copy(network, plain=False)


def _meant(attribute: str, module: Any) -> str:
    """Which network or function of a module was perhaps meant, those that it makes itself first; else its networks."""
    found = {n: v for n, v in vars(module).items() if callable(v) and not n.startswith("_")}
    own = [n for n, v in found.items() if getattr(v, "__module__", None) == module.__name__]
    networks = [n for n in own if isinstance(found[n], type) and issubclass(found[n], nn.Module)]
    hint = did_you_mean(attribute, own) or did_you_mean(attribute, found)
    return hint or (f" Its networks: {', '.join(networks[:10])}." if networks else "")


def _imported(where: str) -> Any:
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        hint = did_you_mean(path.name, [p.name for p in path.absolute().parent.glob("*.py")])
        raise FusionError(f"--model names the file {path}, which does not exist.{hint}")
    folder = str(path.absolute().parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with _as_script(where):
            return _of_file(path) if is_file else importlib.import_module(where)
    except SystemExit as error:
        raise FusionError(
            f"--model: importing {where} ended in sys.exit({error.code!r}); put what it runs as a program under "
            'if __name__ == "__main__":.'
        ) from error
    except Exception as error:  # the user's code
        if isinstance(error, ModuleNotFoundError) and error.name and f"{where}.".startswith(f"{error.name}."):
            raise FusionError(f"--model names the module {where!r}, which is neither installed nor in {os.getcwd()}.") from error
        raise FusionError(f"--model: importing {where} raised {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _as_script(where: str) -> Iterator[None]:
    """Without the arguments of wbfuse, which a training script would take for its own."""
    arguments, sys.argv = sys.argv, [where]
    try:
        yield
    finally:
        sys.argv = arguments


def _of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module
