"""Command line: parse arguments, call the public API."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from sklearn.utils._param_validation import InvalidParameterError

from .. import __version__
from ..exceptions import DiscoveryError, FusionError, FusionWarning
from . import demo, fuse, inspect
from .text import notes

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
        arguments.caught = caught
        try:
            code = arguments.run(arguments)
            for note in notes(caught):
                print(f"Note: {note}")
            sys.stdout.flush()
        except BrokenPipeError:  # who reads, as head, has enough; results are saved before they are printed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python writes the rest again as it ends
            return 0
        except (FusionError, InvalidParameterError, NotImplementedError, OSError) as error:
            print(f"wbfuse {arguments.command}: error: {_one_line(error, arguments.command)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    return code


def _one_line(error: Exception, command: str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    if not isinstance(error, DiscoveryError) or "example_inputs=" not in text:
        return text
    return f"{text} Here: --input-shape 3,32,32 for one input{', or rows X in --data' if command == 'fuse' else ''}."
