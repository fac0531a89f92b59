"""Run a command that was parsed, with its notes and errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings

from sklearn.utils._param_validation import InvalidParameterError

from ..exceptions import DiscoveryError, FusionError, FusionWarning
from .text import notes

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Exit code of a command, which is the function `run` of the module of its name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FusionWarning)
        arguments.caught = caught
        try:
            code = importlib.import_module(f".{arguments.command}", __package__).run(arguments)
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
