"""Options that commands share, and the types of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["add_model_options", "cost", "device", "fractions", "seed", "widths"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all commands that read networks."""
    parser.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="the network of the state dicts: a class or a function that is called without arguments, as package.module:Net or "
        "path/to/file.py:make_net; its widths do not matter",
    )
    parser.add_argument(
        "--input-shape",
        action="append",
        type=_shape,
        metavar="C,H,W",
        help="shape of one input without the batch dimension, if it does not follow from the first layer; once per input of the "
        "network",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read pickled networks too (then --model is not needed); reading a pickle RUNS the code in it, so use this only for "
        "files that you trust",
    )
    parser.add_argument(
        "--ignore-extra",
        action="store_true",
        help="leave out entries of a file that are not tensors of the network, such as the weights of a loss; the output names "
        "them",
    )


def _argument_type(expected: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """Return a decorator for functions that parse an argument: their errors state what is expected."""

    def wrap(parse: Callable[[str], Any]) -> Callable[[str], Any]:
        def checked(text: str) -> Any:
            try:
                return parse(text)
            except (ValueError, RuntimeError) as error:
                raise argparse.ArgumentTypeError(f"must be {expected}. Got {text!r}") from error

        return checked

    return wrap


@_argument_type("a whole number from 0 to 2**32 - 1")
def seed(text: str) -> int:
    """Parse a seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise ValueError
    return int(text)


@_argument_type("a factor such as 1.5, 'sum', widths of named groups such as fc1=64,fc2=32, or all widths such as 64,32")
def widths(text: str) -> str | float | list[int] | dict[str, int]:
    """Parse the parameter `target_widths`: a number with a decimal point is a factor, one without is a width."""
    if text == "sum":
        return text
    if "=" in text:
        pairs = [(name.strip(), int(n)) for name, _, n in (part.rpartition("=") for part in text.split(","))]
        repeated = next((name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i])), None)
        if repeated is not None:
            raise argparse.ArgumentTypeError(f"must name each group once. Got the group {repeated!r} twice")
        return dict(pairs)
    if "," not in text and not text.isdecimal():
        return float(text)
    return [int(n) for n in text.split(",")]


@_argument_type("numbers such as 0.7,0.3")
def fractions(text: str) -> list[float]:
    """Parse the weights of the parents."""
    return [float(n) for n in text.split(",")]


@_argument_type("auto, weight, activation or a share of activations from 0 to 1")
def cost(text: str) -> str | float:
    """Parse the parameter `cost`."""
    return text if text in ("auto", "weight", "activation") else float(text)


def device(text: str) -> torch.device:
    """Parse a device that is available on this machine."""
    import torch  # local, since no other option needs it

    try:
        return torch.zeros(1, device=text).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"must be an available device. Got {text!r}: {str(error).strip().splitlines()[0]}"
        ) from error


@_argument_type("whole numbers such as 1,28,28")
def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(map(int, text.split(",")))
    if min(shape) < 1:
        raise ValueError
    return shape
