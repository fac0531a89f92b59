"""Graphs with fewer groups or symmetries than were found."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ..network.groups import Graph, Group, LabelledTensor, Span

__all__ = ["like", "without", "without_groups"]


def without(graph: Graph, kind: str, names: Collection[str]) -> Graph:
    """The same graph with groups that do not scale (`kind` "scales"), or do not change sign ("signs")."""
    scales = kind == "scales"

    def fixed(group: Group) -> Group:
        return dataclasses.replace(group, scalable=group.scalable and not scales, signable=group.signable and scales)

    def changed(span: Span) -> Span:
        if span.group not in names:
            return span
        return dataclasses.replace(span, exponent=0.0 if scales else span.exponent, odd=span.odd and scales)

    groups = {n: fixed(g) if n in names else g for n, g in graph.groups.items()}
    tensors = {
        n: dataclasses.replace(t, spans=tuple(tuple(map(changed, axis)) for axis in t.spans)) for n, t in graph.tensors.items()
    }
    return dataclasses.replace(graph, groups=groups, tensors=tensors)


def without_groups(graph: Graph, names: Collection[str], why: str = "") -> Graph:
    """The same graph with groups that stay in place; `why` is reported of those on several axes, which belong together."""
    if not names:
        return graph

    def freed(labels: LabelledTensor) -> LabelledTensor:
        spans = tuple(tuple(s for s in axis if s.group not in names) for axis in labels.spans)
        return dataclasses.replace(labels, spans=spans)

    places = {name: list(dict.fromkeys((t.name, axis) for t, axis, _ in graph.axes(name))) for name in names}
    return dataclasses.replace(
        graph,
        groups={n: g for n, g in graph.groups.items() if n not in names},
        tensors={n: freed(t) for n, t in graph.tensors.items()},
        states=tuple(dataclasses.replace(s, labels=freed(s.labels)) for s in graph.states),
        frozen=(*graph.frozen, *((where[0][0], why) for where in places.values() if why and len(where) > 1)),
    )


def like(graph: Graph, verified: Graph) -> Graph:
    """A graph with no more groups, scales and signs than another of the same architecture."""
    graph = without_groups(graph, set(graph.groups) - set(verified.groups))
    graph = without(graph, "scales", {n for n in graph.groups if not verified.groups[n].scalable})
    return without(graph, "signs", {n for n in graph.groups if not verified.groups[n].signable})
