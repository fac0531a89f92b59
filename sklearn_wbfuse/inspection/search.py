"""Display of the scores of a fitted search over one or two of its parameters."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from ..exceptions import FusionError
from .candidates import (
    chosen_params,
    independent_folds,
    is_number,
    key,
    labels,
    last_rounds,
    scores_without_params,
    scoring_of,
    short_names,
    sorted_values,
    varying,
)
from .figures import BLUE, VERMILION, colour_map, new_axes

__all__ = ["GridSearchDisplay"]

MOST_TICKS = 12  # of numbers on an axis


class GridSearchDisplay:
    r"""Scores of a search, as a line over one parameter or a heat map over two.

    A score is the mean over the folds. If several candidates have the same values of the shown parameters, the best of them is
    shown, and the title says so. Bars are standard errors, :math:`s / \sqrt{k - 1}` with the ``std_test_score`` s of
    scikit-learn and the number k of folds of one repetition, since repetitions draw no new rows. For shuffled splits, whose rows
    overlap, they are s itself. The same parents are scored in all folds, so that bars only reflect the rows.

    Use `from_estimator` to draw a search.

    Parameters
    ----------
    params : list of str
        One or two names.
    values : list of list
        The values of each parameter, in the order of the axes of `scores`.
    scores : array-like of shape (n_first,) or (n_first, n_second)
        NaN if all candidates failed.
    errors : array-like of the shape of `scores`, optional
        Standard errors.
    tried : array-like of bool of the shape of `scores`, optional
        False if there was no candidate; true by default.
    best : tuple of int, optional
        The index of the best candidate in `scores`; None if it lacks a parameter.
    without : dict of str to float, optional
        Scores of candidates that lack a parameter, by names of these candidates.
    others : list of str
        Searched parameters that are not shown; the scores are the best over them.
    score_name : str

    Attributes
    ----------
    ax_, figure_ : Axes, Figure
        The last drawing.

    Raises
    ------
    FusionError
        If the shapes do not match.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV
    >>> X, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 5
    >>> search = GridSearchCV(Ridge(), {"alpha": [1, 10, 0.1]}, cv=3).fit(X, y)
    >>> display = GridSearchDisplay.from_estimator(search)
    >>> display.params, display.values, display.scores.shape
    (['alpha'], [[0.1, 1, 10]], (3,))
    """

    def __init__(
        self,
        params: Sequence[str],
        values: Sequence[Sequence[Any]],
        scores: ArrayLike,
        *,
        errors: ArrayLike | None = None,
        tried: ArrayLike | None = None,
        best: tuple[int, ...] | None = None,
        without: Mapping[str, float] | None = None,
        others: Sequence[str] = (),
        score_name: str = "Score, mean over the folds",
    ):
        self.params, self.values = list(params), [list(of_param) for of_param in values]
        self.scores = np.asarray(scores, dtype=float)
        self.errors = None if errors is None else np.asarray(errors, dtype=float)
        self.tried = np.ones(self.scores.shape, dtype=bool) if tried is None else np.asarray(tried, dtype=bool)
        self.best, self.without = best, dict(without or {})
        self.others, self.score_name = list(others), score_name
        shape = tuple(map(len, self.values))
        if len(self.params) != len(shape) or len(shape) not in (1, 2) or self.scores.shape != shape:
            raise FusionError(
                f"scores must cover all values of one or two parameters, shape {shape} for {self.params}. "
                f"Got scores of shape {self.scores.shape}."
            )

    @classmethod
    def from_estimator(
        cls, search: Any, params: str | Sequence[str] | None = None, *, scoring: str | None = None, ax: Any = None
    ) -> GridSearchDisplay:
        """Draw a fitted search of scikit-learn, such as `GridSearchCV`, `HalvingGridSearchCV` or their randomised versions.

        In a halving search each candidate has the score of its last round, and of several with the same shown values the one
        that reached the latest round is shown.

        Parameters
        ----------
        search : fitted search
            Any object with the `cv_results_` of scikit-learn's searches.
        params : str or list of one or two str, optional
            Searched parameters to show, rows before columns, ``fusion__reg`` or ``reg`` for short; by default one or two with
            several values, numbers preferred.
        scoring : str, optional
            The score of a search with several; by default the one that `refit` names, or the first.
        ax : matplotlib Axes, optional
            The Axes to draw on; a new figure by default.

        Returns
        -------
        GridSearchDisplay

        Raises
        ------
        FusionError
            If a parameter was not searched, or none varies.
        ImportError
            If matplotlib is not installed.
        """
        check_is_fitted(search, "cv_results_")
        name = scoring_of(search, scoring)
        mean, standard_deviation = (search.cv_results_[f"{kind}_test_{name}"] for kind in ("mean", "std"))
        positions = last_rounds(search.cv_results_)
        candidates = [search.cv_results_["params"][i] for i in positions]
        shown = chosen_params(params, candidates)
        complete = [candidate for candidate in candidates if all(param in candidate for param in shown)]
        values = [sorted_values([candidate[param] for candidate in complete]) for param in shown]
        orders = [{key(value): index for index, value in enumerate(of_param)} for of_param in values]
        scores, errors = np.full((2, *map(len, values)), np.nan)
        tried, indices = np.zeros(scores.shape, dtype=bool), {}
        rounds, folds = search.cv_results_.get("iter", np.zeros(len(mean))), independent_folds(search)
        last_round = np.full(scores.shape, -1)
        for i, candidate in zip(positions, candidates, strict=True):
            if all(param in candidate for param in shown):
                indices[i] = index = tuple(order[key(candidate[param])] for order, param in zip(orders, shown, strict=True))
                tried[index] = True
                is_worse = rounds[i] == last_round[index] and scores[index] >= mean[i]  # later rounds come later
                if not (np.isnan(mean[i]) or is_worse):
                    scores[index], last_round[index] = mean[i], rounds[i]
                    errors[index] = standard_deviation[i] / np.sqrt(max(folds - 1, 1)) if search.n_splits_ > 1 else np.nan
        best = _best(search, name, mean, positions)
        lacking = [(candidate, mean[i]) for i, candidate in zip(positions, candidates, strict=True) if i not in indices]
        return cls(
            shown,
            values,
            scores,
            errors=errors,
            tried=tried,
            best=None if best is None else indices.get(best),
            without=scores_without_params(lacking, varying(candidates)),
            others=[param for param in varying(complete) if param not in shown],
            score_name=f"{_called(search, name)}, mean over the folds{', each in its last round' if last_round.any() else ''}",
        ).plot(ax)

    def plot(self, ax: Any = None) -> GridSearchDisplay:
        """Draw the line, or the heat map with its numbers, and mark the best candidate.

        Failed candidates are labelled as such. Candidates that lack a parameter are dashed lines, or are named in the title of
        the heat map. Its colours span at least four standard errors, so that cells that only differ by noise look alike.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The Axes to draw on; a new figure by default.

        Returns
        -------
        self : GridSearchDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            (ax,) = new_axes(*self._size())
        self.ax_, self.figure_ = ax, ax.figure
        names, notes = short_names(self.params), []
        if self.others:
            notes.append(f"Best over {' and '.join(short_names(self.others))}")
        if self.scores.ndim == 1:
            self._draw_line(ax)
            ax.set(xlabel=names[0], ylabel=self.score_name)
        else:
            self._draw_map(ax)
            ax.set(xlabel=names[1], ylabel=names[0])
            largest = self._largest()
            notes = [
                self.score_name,
                *notes,
                *(f"{name}: {_number(score, largest)}" for name, score in self.without.items()),
            ]
        ax.set_title("\n".join(notes), fontsize="medium", wrap=True)
        return self

    def _size(self) -> tuple[float, float]:
        """Return width and height of a new figure in inches, with room for the numbers of a map and for long labels."""
        below = 0.05 * max(max(len(line) for text in labels(self.values[-1]) for line in _lines(text)) - 8, 0)
        if self.scores.ndim == 1:
            return 4.8, 3.2 + below
        rows, columns = self.scores.shape
        return max(4.8, min(1.6 + 0.5 * columns, 12)), max(2.4, min(1.2 + 0.42 * rows, 6)) + below

    def _draw_line(self, ax: Any) -> None:
        values, places = self.values[0], np.arange(len(self.scores), dtype=float)
        scale = _scale(values)
        if scale is not None:
            places = np.asarray(values, dtype=float)
            ax.set_xscale(scale[0], **scale[1])
        else:
            ax.set_xlim(-0.6, len(places) - 0.4)
        ax.errorbar(places, self.scores, self.errors, fmt="o" if scale is None else "o-", color=BLUE, capsize=3)
        for place in places[np.isnan(self.scores)]:
            ax.axvline(place, color="0.8", linewidth=1, zorder=0)
            ax.text(place, 0.02, "failed", transform=ax.get_xaxis_transform(), ha="center", rotation=90, backgroundcolor="white")
        if self.best is not None and np.isfinite(self.scores[self.best]):
            ax.plot(
                places[self.best],
                self.scores[self.best],
                "o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=VERMILION,
                markeredgewidth=1.8,
                label="best",
            )
        for name, score, shade in zip(self.without, self.without.values(), ("black", "0.4", "0.6"), strict=False):
            ax.axhline(score, color=shade, linestyle="--", label=name if np.isfinite(score) else f"{name}: failed")
        if scale is None or len(values) <= MOST_TICKS:
            _name_ticks(ax.xaxis, places, values)
            ax.set_xticks([], minor=True)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False)

    def _draw_map(self, ax: Any) -> None:
        from matplotlib.patches import Rectangle

        low, high = self._limits()
        image = ax.imshow(self.scores, cmap=colour_map("white", BLUE), vmin=low, vmax=high, aspect="auto")
        for axis, values in zip((ax.yaxis, ax.xaxis), self.values, strict=True):
            step = -(-len(values) // MOST_TICKS) if _scale(values) else 1
            _name_ticks(axis, np.arange(len(values)), values, step)
        texts = {tuple(place): _number(self.scores[tuple(place)], self._largest()) for place in np.argwhere(self.tried)}
        rows, columns = self.scores.shape
        box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
        fit = box.width / columns > 0.08 * max(map(len, texts.values()), default=0) and box.height / rows > 0.17
        if not fit:
            ax.figure.colorbar(image, ax=ax)
        for place, text in texts.items():
            score = self.scores[place]
            if fit or np.isnan(score):
                red, green, blue, _ = (0.9,) * 4 if np.isnan(score) else image.cmap(image.norm(score))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                shown = text if fit else "\N{MULTIPLICATION SIGN}"
                ax.text(*place[::-1], shown, ha="center", va="center", color="white" if dark else "black")
        if self.best is not None and np.isfinite(self.scores[self.best]):
            row, column = self.best
            ax.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, clip_on=False)
            )

    def _largest(self) -> float:
        return float(np.abs(self.scores[np.isfinite(self.scores)]).max(initial=0))

    def _limits(self) -> tuple[float, float]:
        """Return the scores of the lightest and darkest colour, at least four standard errors apart."""
        finite = self.scores[np.isfinite(self.scores)]
        if not len(finite):
            return 0.0, 1.0
        errors = np.zeros(1) if self.errors is None else self.errors[np.isfinite(self.errors)]
        span = 4 * float(np.median(errors)) if len(errors) else 0.0
        padding = max(span - float(np.ptp(finite)), 0.0) / 2
        return float(finite.min()) - padding, float(finite.max()) + padding


def _best(search: Any, scoring: str, scores: np.ndarray, positions: Sequence[int]) -> int | None:
    """Return the search's own best candidate, or the one of highest score if the search has none for this score."""
    refit = getattr(search, "refit", None)
    if hasattr(search, "best_index_") and (callable(refit) or refit in (scoring, True, False)):
        return int(search.best_index_)
    finite = [i for i in positions if np.isfinite(scores[i])]
    return max(finite, key=lambda i: scores[i]) if finite else None


def _scale(values: Sequence[Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the scale of an axis, logarithmic for numbers that span more than a decade; None if not all are numbers."""
    if not all(map(is_number, values)):
        return None
    sizes = [abs(value) for value in values if value]
    if len(sizes) < 2 or max(sizes) <= 10 * min(sizes):
        return "linear", {}
    return ("log", {}) if min(values) > 0 else ("symlog", {"linthresh": min(sizes), "linscale": 0.5})


def _name_ticks(axis: Any, places: np.ndarray, values: Sequence[Any], step: int = 1) -> None:
    """Label every `step`-th value on an axis; long labels on the x axis are slanted."""
    lines = [_lines(text) for text in labels(values)[::step]]
    long = axis.axis_name == "x" and sum(max(map(len, wrapped)) for wrapped in lines) > 48
    axis.set_ticks(
        places[::step],
        list(map("\n".join, lines)),
        **({"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}),
    )


def _lines(text: str) -> list[str]:
    """Break a label into lines, one for each of several parameters."""
    return textwrap.wrap(text, 24, break_long_words=False) or [text]


def _called(search: Any, name: str) -> str:
    """Return the name of a score, the one by which it was requested if there is one."""
    if name != "score":
        return name
    return search.scoring if isinstance(getattr(search, "scoring", None), str) else "Score"


def _number(score: float, largest: float) -> str:
    """Format a score, given the largest one."""
    if np.isnan(score):
        return "failed"
    return f"{score:.3f}" if not largest or 0.1 <= largest < 100 else f"{score:.3g}"
