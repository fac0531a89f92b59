"""Command line: parse arguments, call the public API."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .parser import parser

__all__ = ["main"]


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
    given = sys.argv[1:] if argv is None else list(argv)
    found = parser()
    arguments = found.parse_args(given)
    arguments.argv = given
    if arguments.command is None:
        found.print_help()
        return 2
    from .running import run  # local: it brings PyTorch

    return run(arguments)
