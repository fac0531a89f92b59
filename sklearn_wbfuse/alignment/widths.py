"""The sizes of the target's groups that the parameter `target_widths` asks for."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..base import did_you_mean, short_text
from ..exceptions import GroupNameError, WidthError
from ..network.spec import NetworkSpec

__all__ = ["target_sizes"]


def target_sizes(target_widths: Any, parents: Sequence[NetworkSpec]) -> dict[str, int]:
    """Return the size of each group of the target.

    A factor, and "sum", multiply the number of attention heads and of the groups of a norm, and keep the neurons in each. For a
    convolution in groups they keep the number of groups and multiply the channels in each.

    Parameters
    ----------
    target_widths : None, float, "sum", dict or sequence
        As in `WassersteinFusion`.
    parents : list of NetworkSpec

    Raises
    ------
    WidthError, GroupNameError

    Examples
    --------
    >>> from sklearn_wbfuse.network.groups import Group
    >>> parents = [NetworkSpec({"a": Group("a", n), "b": Group("b", 2)}, {}) for n in (4, 6)]
    >>> target_sizes(1.5, parents)
    {'a': 9, 'b': 3}
    """
    names = list(parents[0].groups)
    widest = {n: max(p.sizes[n] for p in parents) for n in names}
    if isinstance(target_widths, np.ndarray):
        target_widths = target_widths.tolist()
    if target_widths is None:
        return widest
    if isinstance(target_widths, str) and target_widths == "sum":
        return _scaled(parents[0], widest, {n: sum(p.sizes[n] for p in parents) for n in names})
    if isinstance(target_widths, numbers.Integral):
        raise WidthError(
            f"target_widths must be None, a float, 'sum', a dict or a list. Got the whole number {target_widths}; give a factor "
            f"as a float ({float(target_widths)}), or widths as a dict or list."
        )
    if isinstance(target_widths, numbers.Real):
        if not np.isfinite(float(target_widths)):
            raise WidthError(f"target_widths must be finite. Got {target_widths}.")
        return _scaled(parents[0], widest, {n: _positive(round(float(target_widths) * size), n) for n, size in widest.items()})
    if isinstance(target_widths, Mapping):
        for name in target_widths:
            if name not in widest:
                hint = did_you_mean(name, names)
                raise GroupNameError(f"target_widths must name groups of the network: {names}. Got {name!r}.{hint}")
        return {n: _positive(target_widths.get(n, widest[n]), n) for n in names}
    if isinstance(target_widths, Sequence) and not isinstance(target_widths, str):
        if len(target_widths) != len(names):
            raise WidthError(
                f"target_widths must have one entry per group, {len(names)}: {names}. Got {len(target_widths)} entries."
            )
        return {n: _positive(w, n) for n, w in zip(names, target_widths, strict=True)}
    raise WidthError(f"target_widths must be None, a float, 'sum', a dict or a list. Got {short_text(target_widths)}.")


def _scaled(spec: NetworkSpec, widest: Mapping[str, int], sizes: dict[str, int]) -> dict[str, int]:
    """Return sizes with equally many neurons in every block: either the number of blocks stays, or the neurons in each."""
    blocks = {n: widest[n] if n in spec.fixed_count_blocks else size for n, size in sizes.items()}
    for group in spec.groups.values():
        if group.block_group in spec.fixed_count_blocks:
            sizes[group.name] = blocks[group.block_group] * max(round(sizes[group.name] / blocks[group.block_group]), 1)
        elif group.block_group is not None:
            sizes[group.name] = blocks[group.block_group] * (widest[group.name] // widest[group.block_group])
    return {n: blocks[n] if spec.groups[n].block_group is None else size for n, size in sizes.items()}


def _positive(width: Any, name: str) -> int:
    if not isinstance(width, numbers.Integral) or width < 1:
        raise WidthError(f"The width of group {name!r} must be a whole number of at least 1. Got {width!r}.")
    return int(width)
