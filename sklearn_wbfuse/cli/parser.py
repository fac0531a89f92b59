"""The commands and options of ``wbfuse``. Help and versions are shown without PyTorch, which takes a second to import."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..exceptions import did_you_mean
from .options import add_model_options, cost, device, fractions, seed, widths

__all__ = ["PICTURE", "Parser", "parser"]

PICTURE = "wbfuse_demo.png"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and what was perhaps meant."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        see = " See" if message.endswith("?") else "; see"
        self.exit(2, f"{self.prog}: error: {message}{see} {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As always, but misspelt options come first: what they stand for is missing otherwise."""
        own: Sequence[str] = [] if args is None else args
        if self._subparsers is not None:  # what follows a command is the command's
            own = [*itertools.takewhile(lambda a: a.startswith("-"), own)]
        for option in (a.partition("=")[0] for a in itertools.takewhile(lambda a: a != "--", own)):
            if option.startswith("--") and not any(o.startswith(option) for o in self._option_string_actions):
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


def parser() -> Parser:
    """The parser of the command line; `command` is the name of a module here whose `run` takes the arguments."""
    found = Parser(prog="wbfuse", description="Fuse trained PyTorch networks into one.")
    found.add_argument("--version", action="version", version=f"wbfuse {__version__}")
    commands = found.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for add in (_add_demo, _add_fuse, _add_inspect):
        add(commands)
    return found


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train small networks on digits, fuse them and show what comes out",
        description="Train three small networks of different seeds and widths on scikit-learn's digits, fuse them, print a "
        f"table and draw {PICTURE}. Takes seconds. Exits 1 unless the fused network beats the plain average.",
    )
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="where the picture goes (default: here)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the first network (default: 0)")


_FUSE = """example:
  Two networks that train.py saved by torch.save(model.state_dict(), "a.pt"), of its class Net:

    wbfuse fuse a.pt b.pt -o fused --model train.py:Net
    wbfuse fuse a.pt b.pt -o fused --model train.py:Net --data test.npz

  The second prints accuracies beside those of the parents, their ensemble and their plain average; test.npz was written by
  numpy.savez("test.npz", X=images, y=labels). In Python: sklearn_wbfuse.load("fused", model=Net()).fused_model_
"""

_HELP = {
    "correction": "what follows the alignment; none is the pure barycenter (default: auto, the regression, on X_fit or on inputs "
    "that are drawn)",
    "cost": "compare weights, activations, or both: 0.5 (default: auto, as the inputs are)",
}


def _add_fuse(commands: Any) -> None:
    parser = commands.add_parser(
        "fuse",
        help="fuse networks in files into one",
        description="Fuse trained networks of one architecture, of any widths, into one. Writes a folder with the fused\n"
        "network (model.safetensors), its couplings, and a README.md that says how to load it.",
        epilog=_FUSE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parents", nargs="+", type=Path, metavar="PARENT", help="a state dict (.safetensors, .pt, .pth) or the folder of a fusion"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--overwrite", action="store_true", help="write over an earlier result in that folder")
    add_model_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="arrays X and y to score on, labels being numbers of outputs; X_fit, without labels, for activations and "
        "corrections; X0, X1, ... for networks of several inputs",
    )
    group = parser.add_argument_group("fusion")
    group.add_argument(
        "--widths",
        type=widths,
        metavar="WIDTHS",
        help="of the result: 1.5 (a factor), sum, fc1=64,fc2=32 (by group) or 64,32 (all); those of the widest parent by default",
    )
    group.add_argument(
        "--weights",
        type=fractions,
        metavar="0.7,0.3",
        help="proportions of the parents (default: equal); if the first is negative, --weights=-0.5,1.5",
    )
    group.add_argument(
        "--correction",
        choices=["auto", "none", "batchnorm", "repair", "regression"],
        default="auto",
        help=_HELP["correction"],
    )
    group.add_argument("--cost", type=cost, default="auto", help=_HELP["cost"])
    group.add_argument("--schedule", choices=["joint", "layerwise"], default="joint", help="default: joint")
    group.add_argument("--reg", type=float, default=0.0, help="entropic regularisation (default: 0)")
    group.add_argument("--alpha-h", type=float, default=1.0, help="weight of recurrent tensors (default: 1)")
    group.add_argument("--device", type=device, help="where to compute, such as cuda (default: cpu)")
    group.add_argument("--seed", type=seed, default=0, help="default: 0")


_INSPECT = """example:
  wbfuse inspect fused                              what a saved fusion says of itself
  wbfuse inspect fused --model train.py:Net         the same, and its neuron groups, found again and checked
  wbfuse inspect a.pt --model train.py:Net          the neuron groups of a network: the names that --widths takes
"""


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show the neuron groups of a network, or what a saved fusion holds",
        description="Show the neuron groups of a network in a file; of a saved fusion its parents, widths and couplings,\n"
        "for which no code is needed.",
        epilog=_INSPECT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="MODEL", help="a file as for wbfuse fuse, or the folder of a saved fusion")
    add_model_options(parser)
