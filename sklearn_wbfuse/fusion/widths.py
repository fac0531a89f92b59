"""Sizes of the target's groups from the parameter `target_widths`."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..exceptions import GroupNameError, WidthError

__all__ = ["target_sizes"]


def target_sizes(target_widths: Any, parents: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Size of each group of the target.

    Parameters
    ----------
    target_widths : None, float, "sum", dict or sequence
        As in `WassersteinFusion`.
    parents : list of dict
        Sizes of each parent's groups, in the order of `graph_`.

    Raises
    ------
    WidthError, GroupNameError

    Examples
    --------
    >>> target_sizes(1.5, [{"a": 4, "b": 2}, {"a": 6, "b": 2}])
    {'a': 9, 'b': 3}
    """
    names = list(parents[0])
    widest = {n: max(p[n] for p in parents) for n in names}
    if isinstance(target_widths, np.ndarray):
        target_widths = target_widths.tolist()
    if target_widths is None:
        return widest
    if isinstance(target_widths, str) and target_widths == "sum":
        return {n: sum(p[n] for p in parents) for n in names}
    if isinstance(target_widths, numbers.Integral):
        raise WidthError(
            f"target_widths={target_widths} is ambiguous: "
            f"give a factor as a float ({float(target_widths)}), a dict by group, or a list."
        )
    if isinstance(target_widths, numbers.Real):
        if not np.isfinite(float(target_widths)):
            raise WidthError(f"target_widths must be finite. Got {target_widths}.")
        return {n: _positive(round(float(target_widths) * size), n) for n, size in widest.items()}
    if isinstance(target_widths, Mapping):
        for name in target_widths:
            if name not in widest:
                near = difflib.get_close_matches(str(name), names, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise GroupNameError(f"target_widths names the group {name!r}, but the network has {names}.{hint}")
        return {n: _positive(target_widths.get(n, widest[n]), n) for n in names}
    if isinstance(target_widths, Sequence) and not isinstance(target_widths, str):
        if len(target_widths) != len(names):
            raise WidthError(f"target_widths has {len(target_widths)} entries, but the network has {len(names)} groups: {names}.")
        return {n: _positive(w, n) for n, w in zip(names, target_widths, strict=True)}
    raise WidthError(f"target_widths must be None, a float, 'sum', a dict or a list. Got {target_widths!r}.")


def _positive(width: Any, name: str) -> int:
    if not isinstance(width, numbers.Integral) or width < 1:
        raise WidthError(f"Group {name!r} needs a whole number of at least 1 neuron. Got {width!r}.")
    return int(width)
