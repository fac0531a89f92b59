"""Run a parsed command and print its warnings and errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings

from sklearn.utils._param_validation import InvalidParameterError

from ..exceptions import DiscoveryError, FusionError, FusionWarning
from .messages import warning_texts

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Run a command, the function `run` of the module of its name, and return the exit code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FusionWarning)
        arguments.caught = caught
        try:
            code = importlib.import_module(f".{arguments.command}", __package__).run(arguments)
            for note in warning_texts(caught):
                print(f"Note: {note}")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has closed the pipe; results are saved before they are printed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python writes the rest again when it exits
            return 0
        except (FusionError, InvalidParameterError, NotImplementedError, OSError) as error:
            print(f"wbfuse {arguments.command}: error: {_one_line(error, arguments.command)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    return code


def _one_line(error: Exception, command: str) -> str:
    """Return the message of an error on one line, with the options that provide example inputs if it asks for these."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    if not isinstance(error, DiscoveryError) or "example_inputs=" not in text:
        return text
    return (
        f"{text} On the command line: --input-shape 3,32,32 for one input{', or rows X in --data' if command == 'fuse' else ''}."
    )
