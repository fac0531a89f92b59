"""The commands and options of ``wbfuse``. Help and version do not need PyTorch, which takes a second to import."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..exceptions import did_you_mean
from .options import add_model_options, cost, device, fractions, seed, widths

__all__ = ["PICTURE", "Parser", "make_parser"]

PICTURE = "wbfuse_demo.png"


class Parser(argparse.ArgumentParser):
    """A parser with errors of one line, which hint at similar names."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(2, f"{self.prog}: error: {message}{end} See {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, but report misspelt options first: otherwise the required options in their place are reported."""
        words: Sequence[str] = [] if args is None else args
        if self._subparsers is not None:  # words after a command belong to the command
            words = [*itertools.takewhile(lambda word: word.startswith("-"), words)]
        for option in (word.partition("=")[0] for word in itertools.takewhile(lambda word: word != "--", words)):
            if option.startswith("--") and not any(known.startswith(option) for known in self._option_string_actions):
                self.error(f"there is no option {option}{_hint(option, self._option_string_actions)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _hint(value, action.choices or ())
            raise


def _hint(name: str, names: Iterable[str]) -> str:
    hint = did_you_mean(name, names)
    return f".{hint}" if hint else ""


def make_parser() -> Parser:
    """Return the parser of the command line; `command` names a module of this package with a function `run`."""
    parser = Parser(prog="wbfuse", description="Fuse trained PyTorch networks into one.")
    parser.add_argument("--version", action="version", version=f"wbfuse {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for add_command in (_add_demo, _add_fuse, _add_inspect):
        add_command(commands)
    return parser


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train small networks on digits, fuse them and show the results",
        description="Train three small networks of different seeds and widths on scikit-learn's digits, fuse them, print a "
        f"table and draw {PICTURE}. Takes a few seconds. The exit code is 1 unless the fused network beats the plain average.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="FOLDER", help="folder of the picture (default: the current one)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the first network (default: 0)")


_FUSE = """example:
  train.py defines the class Net and saved two such networks by torch.save(model.state_dict(), "a.pt"):

    wbfuse fuse a.pt b.pt -o fused --model train.py:Net
    wbfuse fuse a.pt b.pt -o fused --model train.py:Net --data test.npz

  The second command also prints the accuracies of the fused network, the parents, their ensemble and their plain average.
  test.npz was written by numpy.savez("test.npz", X=images, y=labels). To load the result in Python:
  sklearn_wbfuse.load("fused", model=Net()).fused_model_
"""

_HELP = {
    "correction": "the correction after the alignment; none returns the pure barycenter (default: auto, the regression, on X_fit "
    "or on synthetic inputs)",
    "cost": "compare neurons by weight, by activation, or by both, such as 0.5 (default: auto, which depends on the inputs)",
    "schedule": "order of the matching: layerwise visits each layer once, joint continues with sweeps (default: joint)",
}


def _add_fuse(commands: Any) -> None:
    parser = commands.add_parser(
        "fuse",
        help="fuse networks in files into one",
        description="Fuse trained networks of one architecture, of any widths, into one. Writes a folder with the fused\n"
        "network (model.safetensors), its couplings, and a README.md that explains how to load it.",
        epilog=_FUSE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parents", nargs="+", type=Path, metavar="PARENT", help="a state dict (.safetensors, .pt, .pth) or the folder of a fusion"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of the result")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result in that folder")
    add_model_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="arrays X and y for scoring, where labels are indices of outputs; optionally X_fit, rows without labels for "
        "activations and corrections; X0, X1, ... for networks with several inputs",
    )
    group = parser.add_argument_group("fusion")
    group.add_argument(
        "--widths",
        type=widths,
        metavar="WIDTHS",
        help="widths of the result: 1.5 (a factor), sum, fc1=64,fc2=32 (by group) or 64,32 (all groups); default: those of the "
        "widest parent",
    )
    group.add_argument(
        "--weights",
        type=fractions,
        metavar="0.7,0.3",
        help="weights of the parents (default: equal); write --weights=-0.5,1.5 if the first is negative",
    )
    group.add_argument(
        "--correction",
        choices=["auto", "none", "batchnorm", "repair", "regression"],
        default="auto",
        help=_HELP["correction"],
    )
    group.add_argument("--cost", type=cost, default="auto", help=_HELP["cost"])
    group.add_argument(
        "--schedule",
        choices=["joint", "layerwise"],
        default="joint",
        help="order of the matching: layerwise visits each layer once, joint continues with sweeps (default: joint)",
    )
    group.add_argument("--reg", type=float, default=0.0, help="entropic regularisation (default: 0)")
    group.add_argument("--alpha-h", type=float, default=1.0, help="weight of recurrent tensors (default: 1)")
    group.add_argument("--device", type=device, help="device for the computation, such as cuda (default: cpu)")
    group.add_argument("--seed", type=seed, default=0, help="seed of the fusion (default: 0)")


_INSPECT = """example:
  wbfuse inspect fused                              the description of a saved fusion
  wbfuse inspect fused --model train.py:Net         the same, and its neuron groups, which are discovered again and checked
  wbfuse inspect a.pt --model train.py:Net          the neuron groups of a network, with the names for --widths
"""


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show the neuron groups of a network, or the content of a saved fusion",
        description="Show the neuron groups of a network in a file, or the parents, widths and couplings of a saved fusion.\n"
        "A saved fusion can be shown without the code of its network.",
        epilog=_INSPECT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="MODEL", help="a file as for wbfuse fuse, or the folder of a saved fusion")
    add_model_options(parser)
