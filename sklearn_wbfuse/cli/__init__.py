"""The command line ``wbfuse``: parses arguments and calls the public API."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .parser import make_parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``wbfuse``.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit code: 0 for success; 1 if the demo's fused network does not beat the plain average; 2 for wrong input, with one
        line on stderr; 130 if interrupted.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser()
    arguments = parser.parse_args(words)
    arguments.argv = words
    if arguments.command is None:
        parser.print_help()
        return 2
    from .running import run  # local, since it imports PyTorch

    return run(arguments)
