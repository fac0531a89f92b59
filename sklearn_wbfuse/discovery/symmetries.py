"""Scales and signs: which factors of a unit, cancelled where the unit is read, preserve the network's function.

Every axis of every parameter has an exponent for scales (multiplying a unit by c > 0 multiplies the axis by c to this power) and
one modulo 2 for signs. Operations relate them linearly: a product adds them, a sum equates them, a sigmoid requires them to be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ..layers import Constraints

__all__ = ["Symmetry", "symmetries"]

Row = tuple[tuple[int, int], ...]
"""A linear relation, as pairs of a variable and its coefficient."""

Place = tuple[int, int]
"""An axis, and a copy of the group on it."""

Symmetry = dict[Place, float]
"""The exponent of each place of a group; zeros are left out."""


def symmetries(
    constraints: Constraints,
    unit_of: np.ndarray,
    group_of_unit: np.ndarray,
    axes: Mapping[tuple[str, int], np.ndarray],
    n_groups: int,
) -> tuple[list[Symmetry], list[Symmetry]]:
    """Return scale exponents and sign parities of every group; an empty dict where only zero solves the relations.

    Parameters
    ----------
    constraints : Constraints
    unit_of : ndarray
        The unit of each label.
    group_of_unit : ndarray
        The group of each unit, -1 for none.
    axes : mapping of (str, int) to ndarray
        Labels of each axis of each tensor.
    n_groups : int
    """
    variable_of = _variables(constraints, unit_of)
    group_of = group_of_unit[unit_of]
    rows: dict[str, list[set[Row]]] = {kind: [set() for _ in range(n_groups)] for kind in ("scale", "sign")}
    for kind, coefficients, related in constraints.relations:
        stacked = np.vstack([group_of[related[0]], *(variable_of[i] for i in related)])
        for g, *variables in np.unique(stacked, axis=1).T.tolist():
            if g >= 0:
                row = tuple(zip(variables, coefficients, strict=True))
                if kind != "sign":
                    rows["scale"][g].add(row)
                if kind != "scale":
                    rows["sign"][g].add(_modulo_2(row))
    computed = [int(v) for ids in constraints.producers for v in dict.fromkeys(variable_of[ids].tolist())]
    places: list[dict[Place, int]] = [{} for _ in range(n_groups)]
    for axis, ids in enumerate(axes.values()):
        groups = group_of[ids]
        for g in np.unique(groups[groups >= 0]).tolist():
            for copy, variable in enumerate(np.unique(variable_of[ids[groups == g]]).tolist()):
                places[g][axis, copy] = variable
    return (
        [_solution(rows["scale"][g], computed, places[g], _scale_exponents) for g in range(n_groups)],
        [_solution(rows["sign"][g], computed, places[g], _parities) for g in range(n_groups)],
    )


def _variables(constraints: Constraints, unit_of: np.ndarray) -> np.ndarray:
    """Return for each label the number of its variable: its axis, and the index of this copy of its unit on the axis."""
    start = np.searchsorted(constraints.range_starts, np.arange(constraints.n_labels), side="right")
    order = np.lexsort((unit_of, start))
    first = np.ones(constraints.n_labels, dtype=bool)
    first[1:] = (np.diff(start[order]) != 0) | (np.diff(unit_of[order]) != 0)
    runs = np.flatnonzero(first)
    copy = np.empty(constraints.n_labels, dtype=int)
    copy[order] = np.arange(constraints.n_labels) - np.repeat(runs, np.diff(np.append(runs, constraints.n_labels)))
    return start * constraints.n_labels + copy


def _solution(
    rows: Iterable[Row], computed: list[int], places: Mapping[Place, int], solve: Callable[..., dict[int, float]]
) -> Symmetry:
    """Return the exponents of a group's places, 1 for the first free axis that computes the group."""
    root, factor, zero = _roots(rows, set(places.values()))
    rest = [_merged((root[v], c * factor[v]) for v, c in row if root[v] not in zero) for row in rows if len(row) > 2]
    for reference in dict.fromkeys(root[v] for v in computed if v in root and root[v] not in zero):
        solved = solve([row for row in rest if row], reference)
        if solved:
            first = next(v for v in computed if root.get(v) == reference)
            exponents = {place: factor[v] / factor[first] * solved.get(root[v], 0.0) for place, v in places.items()}
            return {place: round(e, 9) for place, e in exponents.items() if e}
    return {}


def _scale_exponents(rows: list[dict[int, float]], reference: int) -> dict[int, float]:
    """Return the smallest solution of a linear system in which the reference is 1; empty if there is none."""
    column = {v: c for c, v in enumerate(sorted({v for row in rows for v in row} | {reference}))}
    matrix = np.zeros((max(len(rows), 1), len(column)))
    for r, row in enumerate(rows):
        for v, coefficient in row.items():
            matrix[r, column[v]] = coefficient
    _, singular, basis = np.linalg.svd(matrix)
    null = basis[(singular > 1e-9).sum() :]
    direction = null[:, column[reference]]
    if np.linalg.norm(direction) < 1e-6:
        return {}
    solution = direction @ null / (direction @ direction)
    return {v: float(solution[c]) for v, c in column.items() if abs(solution[c]) > 1e-9}


def _parities(rows: list[dict[int, float]], reference: int) -> dict[int, float]:
    """Return a solution modulo 2 in which the reference is 1 and free variables are 0; empty if there is none."""
    pivots: dict[int, set[int]] = {}
    for row in rows:
        remaining = {v for v, c in row.items() if c % 2}
        while reducible := remaining & pivots.keys():
            remaining ^= pivots[reducible.pop()]
        if not remaining:
            continue
        if remaining == {reference}:
            return {}
        pivot = next(v for v in sorted(remaining) if v != reference)
        for other, equation in pivots.items():
            if pivot in equation:
                pivots[other] = equation ^ remaining
        pivots[pivot] = remaining
    return {reference: 1.0} | {v: 1.0 for v, equation in pivots.items() if reference in equation}


def _roots(rows: Iterable[Row], variables: set[int]) -> tuple[dict[int, int], dict[int, float], set[int]]:
    """Return variables as multiples of roots by the relations between two variables: root, factor, and the roots that are 0."""
    links: dict[int, list[tuple[int, float]]] = {v: [] for v in sorted({v for row in rows for v, _ in row} | variables)}
    zero_variables = set()
    for row in map(_merged, rows):
        terms = list(row.items())
        if len(terms) == 1:
            zero_variables.add(terms[0][0])
        elif len(terms) == 2:
            (a, p), (b, q) = terms
            links[a].append((b, -p / q))
            links[b].append((a, -q / p))
    root: dict[int, int] = {}
    factor: dict[int, float] = {}
    zero: set[int] = set()
    for v in links:
        if v in root:
            continue
        root[v], factor[v], queue = v, 1.0, [v]
        while queue:
            a = queue.pop()
            for b, ratio in links[a]:
                if b not in root:
                    root[b], factor[b] = v, factor[a] * ratio
                    queue.append(b)
                elif abs(factor[b] - factor[a] * ratio) > 1e-9:
                    zero.add(v)
    return root, factor, zero | {root[v] for v in zero_variables}


def _modulo_2(row: Row) -> Row:
    """Return the same relation modulo 2; one between two variables as their difference."""
    odd = sorted(v for v, c in _merged(row).items() if c % 2)
    return tuple(zip(odd, (1, -1) if len(odd) == 2 else (1,) * len(odd), strict=True))


def _merged(terms: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Return the summed coefficients of each variable; those that cancel are left out."""
    total: dict[int, float] = {}
    for v, c in terms:
        total[v] = total.get(v, 0) + c
    return {v: c for v, c in total.items() if c}
