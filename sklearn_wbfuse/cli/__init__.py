"""Command line: parse arguments, call the public API."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from sklearn.utils._param_validation import InvalidParameterError

from .. import __version__
from ..exceptions import DiscoveryError, FusionError, FusionWarning
from . import demo, fuse, inspect

__all__ = ["main"]


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wbfuse``.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code: 0; 1 if the demo's fused network does not beat the plain average; 2 for wrong input, with one line on stderr;
        130 if interrupted.
    """
    parser = Parser(prog="wbfuse", description="Fuse trained PyTorch networks into one.")
    parser.add_argument("--version", action="version", version=f"wbfuse {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for module in (demo, fuse, inspect):
        module.add_command(commands)
    arguments = parser.parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else list(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FusionWarning)
        try:
            code = arguments.run(arguments)
        except (FusionError, InvalidParameterError, NotImplementedError, OSError) as error:
            print(f"wbfuse {arguments.command}: error: {_one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    for note in dict.fromkeys(str(w.message) for w in caught):
        print(f"Note: {note}")
    return code


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    is_about_inputs = isinstance(error, DiscoveryError) and "example_inputs=" in text
    return f"{text} Here: --input-shape 3,32,32 for one input, or rows X in --data." if is_about_inputs else text
