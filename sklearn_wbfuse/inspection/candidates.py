"""Candidates of a fitted search: their last rounds, the parameters that vary among them, and what these are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from ..base import did_you_mean
from ..exceptions import FusionError

__all__ = ["chosen_params", "key", "label", "last_rounds", "scoring_of", "short_names", "sorted_values", "varying", "without"]

Params = Mapping[str, Any]


def scoring_of(search: Any, scoring: str | None) -> str:
    """The name of a score in `cv_results_`.

    Raises
    ------
    FusionError
        If there is no such score.
    """
    names = [name.removeprefix("mean_test_") for name in search.cv_results_ if name.startswith("mean_test_")]
    if scoring is None:
        refit = getattr(search, "refit", None)
        return refit if isinstance(refit, str) and refit in names else names[0]
    if scoring not in names:
        raise FusionError(f"scoring={scoring!r} is unknown; the search has {names}.{did_you_mean(scoring, names)}")
    return scoring


def last_rounds(results: Mapping[str, Any]) -> list[int]:
    """Positions of all candidates; of a halving search, for each candidate that of its last round."""
    rounds = results.get("iter", np.zeros(len(results["params"])))
    last: dict[Any, int] = {}
    for position in np.argsort(rounds, kind="stable"):
        params = results["params"][position]
        last[tuple((name, key(params[name])) for name in sorted(params))] = int(position)
    return sorted(last.values()) if "iter" in results else list(range(len(rounds)))


def chosen_params(params: str | Sequence[str] | None, candidates: Sequence[Params]) -> list[str]:
    """The one or two parameters to show: those asked for, or those that vary, numbers preferred.

    Raises
    ------
    FusionError
        If one was not searched, or none varies.
    """
    searched = list(dict.fromkeys(name for own in candidates for name in own))
    if params is not None:
        asked = [params] if isinstance(params, str) else list(params)
        for name in asked:
            if name not in searched:
                raise FusionError(f"params names {name!r}, but the search was over {searched}.{did_you_mean(name, searched)}")
        if len(asked) not in (1, 2) or len(set(asked)) < len(asked):
            raise FusionError(f"params must be one or two names. Got {asked}.")
        if not any(all(name in own for name in asked) for own in candidates):
            raise FusionError(f"No candidate has both {asked[0]!r} and {asked[-1]!r}; they stand in different grids.")
        return asked
    found: list[str] = []
    free = varying(candidates)
    for name in sorted(free, key=lambda n: not all(_is_number(own[n]) for own in candidates if n in own)):
        inside = [own for own in candidates if all(other in own for other in [*found, name])]
        if len(found) < 2 and all(other in varying(inside) for other in [*found, name]):
            found.append(name)
    if not found:
        raise FusionError(f"No parameter takes several values; the search was over {searched}. Name one in params.")
    return found


def varying(candidates: Sequence[Params]) -> list[str]:
    """Parameters with several values."""
    values: dict[str, set[Any]] = {}
    for own in candidates:
        for name, value in own.items():
            values.setdefault(name, set()).add(key(value))
    return [name for name, different in values.items() if len(different) > 1]


def sorted_values(values: Sequence[Any]) -> list[Any]:
    """Different values: numbers in their order, others as they come."""
    different = list({key(value): value for value in values}.values())
    return sorted(different) if all(map(_is_number, different)) else different


def without(lacking: Sequence[tuple[Params, float]], free: Sequence[str], most: int = 3) -> dict[str, float]:
    """Scores of candidates that lack a parameter, by what they have of those that are `free`; if these are many, the best."""
    found: dict[str, float] = {}
    for own, score in lacking:
        parts = [label(v) if isinstance(v, BaseEstimator) else f"{n}={label(v)}" for n, v in own.items() if n in free]
        name = ", ".join(parts) or "others"
        found[name] = np.fmax(found.get(name, np.nan), score)
    return found if len(found) <= most else {f"best of {len(lacking)} others": np.fmax.reduce(list(found.values()))}


def key(value: Any) -> Any:
    """What tells values apart: estimators by their parameters."""
    if isinstance(value, BaseEstimator):
        return ("repr", repr(value))
    try:
        hash(value)
    except TypeError:
        return ("repr", repr(value))
    return value


def label(value: Any, longest: int = 24) -> str:
    """A short text for a value."""
    if _is_number(value):
        return f"{value:g}"
    text = value if isinstance(value, str) else " ".join(repr(value).split())
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def short_names(names: Sequence[str]) -> list[str]:
    """Names without their prefixes, ``reg`` for ``fusion__reg``, if they are different then."""
    short = [name.rpartition("__")[2] for name in names]
    return short if len(set(short)) == len(names) else list(names)


def _is_number(value: Any) -> bool:
    return isinstance(value, (Real, np.number)) and not isinstance(value, (bool, np.bool_))
