"""Candidates of a fitted search: their last rounds, the parameters that vary among them, and labels for their values."""

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

_MOST_ENTRIES = 24  # entries of a list in a label, which is truncated in any case


def scoring_of(search: Any, scoring: str | None) -> str:
    """Return the name of a score in `cv_results_`.

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
        raise FusionError(f"scoring must be one of {names}. Got {scoring!r}.{did_you_mean(scoring, names)}")
    return scoring


def independent_folds(search: Any) -> int:
    """Return the number of folds without common rows: those of one repetition, or one of shuffled splits, which overlap."""
    cv = getattr(search, "cv", None)
    return 1 if isinstance(cv, BaseShuffleSplit) else search.n_splits_ // getattr(cv, "n_repeats", 1)


def last_rounds(results: Mapping[str, Any]) -> list[int]:
    """Return the positions of all candidates; in a halving search, of the last round of each candidate."""
    rounds = results.get("iter", np.zeros(len(results["params"])))
    last: dict[Any, int] = {}
    for position in np.argsort(rounds, kind="stable"):
        params = results["params"][position]
        last[tuple((name, key(params[name])) for name in sorted(params))] = int(position)
    return sorted(last.values()) if "iter" in results else list(range(len(rounds)))


def chosen_params(params: str | Sequence[str] | None, candidates: Sequence[Params]) -> list[str]:
    """Return the one or two parameters to show: those requested, or by default those that vary, numbers preferred.

    Raises
    ------
    FusionError
        If a requested one was not searched, or none varies.
    """
    searched = list(dict.fromkeys(name for candidate in candidates for name in candidate))
    if params is not None:
        requested = [params] if isinstance(params, str) else list(params)
        endings = {name: [n for n in searched if n.endswith(f"__{name}")] for name in requested if name not in searched}
        requested = [endings[name][0] if len(endings.get(name, ())) == 1 else name for name in requested]
        for name in requested:
            if name not in searched:
                raise FusionError(f"params must be among {searched}. Got {name!r}.{did_you_mean(name, searched)}")
        if len(requested) not in (1, 2) or len(set(requested)) < len(requested):
            raise FusionError(f"params must be one or two names. Got {requested}.")
        if not any(all(name in candidate for name in requested) for candidate in candidates):
            raise FusionError(
                f"params must be of one grid. Got {requested[0]!r} and {requested[-1]!r}, but no candidate has both."
            )
        return requested
    chosen: list[str] = []
    free = varying(candidates)
    for name in sorted(free, key=lambda n: not all(is_number(candidate[n]) for candidate in candidates if n in candidate)):
        with_all = [candidate for candidate in candidates if all(other in candidate for other in [*chosen, name])]
        if len(chosen) < 2 and all(other in varying(with_all) for other in [*chosen, name]):
            chosen.append(name)
    if not chosen:
        raise FusionError(f"No parameter of the search takes several values. Name one of {searched} in params.")
    return chosen


def varying(candidates: Sequence[Params]) -> list[str]:
    """Return the parameters with several values."""
    values: dict[str, set[Any]] = {}
    for candidate in candidates:
        for name, value in candidate.items():
            values.setdefault(name, set()).add(key(value))
    return [name for name, different in values.items() if len(different) > 1]


def sorted_values(values: Sequence[Any]) -> list[Any]:
    """Return different values, numbers in ascending order, others in their order of appearance."""
    different = list({key(value): value for value in values}.values())
    return sorted(different) if all(map(is_number, different)) else different


def scores_without_params(lacking: Sequence[tuple[Params, float]], free: Sequence[str], n_max: int = 3) -> dict[str, float]:
    """Return the scores of candidates that lack a parameter, named by their other `free` ones; of many only the best."""
    scores: dict[Any, float] = {}
    candidates: dict[Any, Params] = {}
    for candidate, score in lacking:
        identity = tuple((name, key(value)) for name, value in candidate.items() if name in free)
        scores[identity], candidates[identity] = np.fmax(scores.get(identity, np.nan), score), candidate
    if len(scores) > n_max:
        return {f"best of {len(lacking)} others": np.fmax.reduce(list(scores.values()))}
    short, parts = dict(zip(free, short_names(free), strict=True)), {identity: list[str]() for identity in scores}
    for name in free:
        values = {identity: candidate[name] for identity, candidate in candidates.items() if name in candidate}
        for (identity, value), text in zip(values.items(), labels(list(values.values())), strict=True):
            parts[identity].append(text if isinstance(value, BaseEstimator) else f"{short[name]}={text}")
    names = _numbered([", ".join(texts) or "others" for texts in parts.values()], list(parts))
    return dict(zip(names, scores.values(), strict=True))


def key(value: Any) -> Any:
    """Return a hashable key of a value; equal estimators have equal keys."""
    if isinstance(value, BaseEstimator):
        return ("repr", repr(value))
    try:
        hash(value)
    except TypeError:
        return ("repr", repr(value))
    return value


def labels(values: Sequence[Any], longest: int = 24) -> list[str]:
    """Return short distinct labels of values; for estimators the class and the parameters in which they differ.

    Labels of estimators may be three times as long, since they are broken into lines.
    """
    digits = 3 if len({_text(value, 3) for value in values}) == len({_text(value, 6) for value in values}) else 6
    texts = []
    for value in values:
        text = _text(value, digits)
        if isinstance(value, BaseEstimator) and len(text) > longest:
            name, differences = type(value).__name__, _differences(value, [v for v in values if type(v) is type(value)])
            text = f"{name}({differences})" if differences else name
        limit = 3 * longest if _holds_estimators(value) else longest
        texts.append(text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}")
    return _numbered(texts, [key(value) for value in values])


def _differences(estimator: BaseEstimator, alike: Sequence[BaseEstimator]) -> str:
    """Format the parameters of an estimator that differ among estimators of its class."""
    params = [other.get_params(deep=False) for other in alike]
    different = [name for name in params[0] if len({repr(key(values[name])) for values in params}) > 1]
    return ", ".join(f"{name}={_text(getattr(estimator, name))}" for name in different)


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
    """Return texts, with numbers appended to those that different values share."""
    keys_of_text: dict[str, dict[Any, int]] = {}
    for text, value_key in zip(texts, keys, strict=True):
        numbers = keys_of_text.setdefault(text, {})
        numbers.setdefault(value_key, len(numbers))
    positions = [keys_of_text[text][value_key] for text, value_key in zip(texts, keys, strict=True)]
    return [f"{text} #{position + 1}" if position else text for text, position in zip(texts, positions, strict=True)]


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without their prefixes, ``reg`` for ``fusion__reg``, if they are still different."""
    short = [name.rpartition("__")[2] for name in names]
    return short if len(set(short)) == len(names) else list(names)


def is_number(value: Any) -> bool:
    """Return whether a value is a number that an axis can show."""
    numeric = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return numeric and abs(value) <= np.finfo(float).max
