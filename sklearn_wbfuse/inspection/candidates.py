"""Candidates of a fitted search: their last rounds, the parameters that vary among them, and what these are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import BaseShuffleSplit

from ..base import did_you_mean, short_text
from ..exceptions import FusionError

__all__ = [
    "chosen_params",
    "independent_folds",
    "is_number",
    "key",
    "labels",
    "last_rounds",
    "scores_without_params",
    "scoring_of",
    "short_names",
    "sorted_values",
    "varying",
]

Params = Mapping[str, Any]

_MOST_ENTRIES = 24  # of a list that is part of a label, which is cut anyhow


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


def independent_folds(search: Any) -> int:
    """How many of a search's folds hold rows of their own: those of one repetition; of shuffled splits, which overlap, one."""
    cv = getattr(search, "cv", None)
    return 1 if isinstance(cv, BaseShuffleSplit) else search.n_splits_ // getattr(cv, "n_repeats", 1)


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
        ends = {name: [n for n in searched if n.endswith(f"__{name}")] for name in asked if name not in searched}
        asked = [ends[name][0] if len(ends.get(name, ())) == 1 else name for name in asked]
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
    for name in sorted(free, key=lambda n: not all(is_number(own[n]) for own in candidates if n in own)):
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
    return sorted(different) if all(map(is_number, different)) else different


def scores_without_params(lacking: Sequence[tuple[Params, float]], free: Sequence[str], most: int = 3) -> dict[str, float]:
    """Scores of candidates that lack a parameter, by what they have of those that are `free`; if these are many, the best."""
    found: dict[Any, float] = {}
    whole: dict[Any, Params] = {}
    for own, score in lacking:
        mark = tuple((name, key(value)) for name, value in own.items() if name in free)
        found[mark], whole[mark] = np.fmax(found.get(mark, np.nan), score), own
    if len(found) > most:
        return {f"best of {len(lacking)} others": np.fmax.reduce(list(found.values()))}
    short, parts = dict(zip(free, short_names(free), strict=True)), {mark: list[str]() for mark in found}
    for name in free:
        have = {mark: own[name] for mark, own in whole.items() if name in own}
        for (mark, value), text in zip(have.items(), labels(list(have.values())), strict=True):
            parts[mark].append(text if isinstance(value, BaseEstimator) else f"{short[name]}={text}")
    names = _numbered([", ".join(own) or "others" for own in parts.values()], list(parts))
    return dict(zip(names, found.values(), strict=True))


def key(value: Any) -> Any:
    """What tells values apart: estimators by their parameters."""
    if isinstance(value, BaseEstimator):
        return ("repr", repr(value))
    try:
        hash(value)
    except TypeError:
        return ("repr", repr(value))
    return value


def labels(values: Sequence[Any], longest: int = 24) -> list[str]:
    """Short texts for values that tell them apart: of estimators, the class and the parameters in which they differ from others.

    Those of estimators may be three times as long, to be broken into lines.
    """
    digits = 3 if len({_text(value, 3) for value in values}) == len({_text(value, 6) for value in values}) else 6
    texts = []
    for value in values:
        text = _text(value, digits)
        if isinstance(value, BaseEstimator) and len(text) > longest:
            name, differ = type(value).__name__, _differences(value, [v for v in values if type(v) is type(value)])
            text = f"{name}({differ})" if differ else name
        most = 3 * longest if _holds_estimators(value) else longest
        texts.append(text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}")
    return _numbered(texts, [key(value) for value in values])


def _differences(estimator: BaseEstimator, alike: Sequence[BaseEstimator]) -> str:
    """Parameters of an estimator that others of its class have other values of."""
    own = [other.get_params(deep=False) for other in alike]
    differ = [name for name in own[0] if len({repr(key(params[name])) for params in own}) > 1]
    return ", ".join(f"{name}={_text(getattr(estimator, name))}" for name in differ)


def _text(value: Any, digits: int = 3) -> str:
    if is_number(value):
        whole = float(value).is_integer() and abs(value) < 1e6
        return str(int(value)) if whole else f"{value:.{digits}g}"
    if isinstance(value, np.ndarray):
        return _text(value[:_MOST_ENTRIES].tolist() if value.ndim else value.item(), digits)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(entry, digits) for entry in value[:_MOST_ENTRIES])}]"
    return value if isinstance(value, str) else short_text(value)


def _holds_estimators(value: Any) -> bool:
    return isinstance(value, BaseEstimator) or (isinstance(value, (list, tuple)) and any(map(_holds_estimators, value)))


def _numbered(texts: Sequence[str], keys: Sequence[Any]) -> list[str]:
    """Texts, with numbers behind those that different values share."""
    sharing: dict[str, dict[Any, int]] = {}
    for text, own in zip(texts, keys, strict=True):
        known = sharing.setdefault(text, {})
        known.setdefault(own, len(known))
    places = [sharing[text][own] for text, own in zip(texts, keys, strict=True)]
    return [f"{text} #{place + 1}" if place else text for text, place in zip(texts, places, strict=True)]


def short_names(names: Sequence[str]) -> list[str]:
    """Names without their prefixes, ``reg`` for ``fusion__reg``, if they are different then."""
    short = [name.rpartition("__")[2] for name in names]
    return short if len(set(short)) == len(names) else list(names)


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis of numbers."""
    numeric = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return numeric and abs(value) <= np.finfo(float).max
