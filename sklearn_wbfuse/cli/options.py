"""What arguments of the command line are read as."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["add_model_options", "cost", "device", "fractions", "seed", "widths"]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of all commands that read networks."""
    parser.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="the network that the state dicts belong to: a class or a function that is called without arguments, as "
        "package.module:Net or path/to/file.py:make_net; its widths do not matter",
    )
    parser.add_argument(
        "--input-shape",
        action="append",
        type=_shape,
        metavar="C,H,W",
        help="shape of one input, without the batch, where the first layer does not tell; once per input of the network",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read pickled networks too (then --model is not needed); reading a pickle RUNS the code in it, so only your own",
    )
    parser.add_argument(
        "--ignore-extra",
        action="store_true",
        help="leave out what a file holds beside the tensors of the network, such as the weights of a loss; a note names it",
    )


def _type(expected: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """A reader whose errors say what is expected."""

    def wrap(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def checked(text: str) -> Any:
            try:
                return read(text)
            except (ValueError, RuntimeError) as error:
                raise argparse.ArgumentTypeError(f"must be {expected}. Got {text!r}") from error

        return checked

    return wrap


@_type("a whole number from 0 to 2**32 - 1")
def seed(text: str) -> int:
    """A seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise ValueError
    return int(text)


@_type("a factor such as 1.5, 'sum', widths of named groups such as fc1=64,fc2=32, or all widths such as 64,32")
def widths(text: str) -> Any:
    """The parameter `target_widths`: a number with a point is a factor, without one a width."""
    if text == "sum":
        return text
    if "=" in text:
        pairs = [(name.strip(), int(n)) for name, _, n in (part.rpartition("=") for part in text.split(","))]
        twice = next((name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i])), None)
        if twice is not None:
            raise argparse.ArgumentTypeError(f"names the group {twice!r} twice")
        return dict(pairs)
    if "," not in text and not text.isdecimal():
        return float(text)
    return [int(n) for n in text.split(",")]


@_type("numbers such as 0.7,0.3")
def fractions(text: str) -> list[float]:
    """Weights of the parents."""
    return [float(n) for n in text.split(",")]


@_type("auto, weight, activation or a share of activations from 0 to 1")
def cost(text: str) -> str | float:
    """The parameter `cost`."""
    return text if text in ("auto", "weight", "activation") else float(text)


def device(text: str) -> torch.device:
    """A device that works here."""
    import torch  # local: no other option needs it

    try:
        return torch.zeros(1, device=text).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} can't be used here: {str(error).strip().splitlines()[0]}") from error


@_type("whole numbers such as 1,28,28")
def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(map(int, text.split(",")))
    if min(shape) < 1:
        raise ValueError
    return shape
