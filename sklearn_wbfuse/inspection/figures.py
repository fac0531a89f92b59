"""Colours, new figures and a progress bar for all displays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

__all__ = ["BLUE", "VERMILION", "colour_map", "new_axes", "progress"]

T = TypeVar("T")

# From Okabe and Ito's palette, which works for every kind of colour vision.
VERMILION, BLUE = "#D55E00", "#0072B2"


def new_axes(width: float, height: float, n_panels: int = 1) -> list[Any]:
    """Return the Axes of a new figure, side by side; `width` and `height` of the figure are in inches.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'sklearn_wbfuse[plot]'") from error
    return list(plt.subplots(1, n_panels, figsize=(width, height), layout="constrained", squeeze=False)[1][0])


def colour_map(*colours: str) -> Any:
    """Return a colour map of the shades between colours, with grey for NaN."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", colours).with_extremes(bad="0.9")


def progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Return the items, with a progress bar of tqdm at a terminal if tqdm is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=description, disable=None, leave=False)  # None: silent in a pipe
