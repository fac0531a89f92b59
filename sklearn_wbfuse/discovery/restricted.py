"""Graphs with fewer groups or symmetries than were found."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ..network.groups import Group, LabelledTensor, Span
from ..network.spec import NetworkSpec

__all__ = ["drop_symmetry", "like", "without_groups"]


def drop_symmetry(spec: NetworkSpec, kind: str, names: Collection[str]) -> NetworkSpec:
    """The same graph with groups that do not scale (`kind` "scales"), or do not change sign ("signs")."""
    scales = kind == "scales"

    def fixed(group: Group) -> Group:
        return dataclasses.replace(group, scalable=group.scalable and not scales, signable=group.signable and scales)

    def changed(span: Span) -> Span:
        if span.group not in names:
            return span
        return dataclasses.replace(span, exponent=0.0 if scales else span.exponent, odd=span.odd and scales)

    groups = {n: fixed(g) if n in names else g for n, g in spec.groups.items()}
    tensors = {
        n: dataclasses.replace(t, spans=tuple(tuple(map(changed, axis)) for axis in t.spans)) for n, t in spec.tensors.items()
    }
    return dataclasses.replace(spec, groups=groups, tensors=tensors)


def without_groups(spec: NetworkSpec, names: Collection[str], why: str = "") -> NetworkSpec:
    """The same graph with groups that stay in place; `why` is reported of those on several axes, which belong together."""
    if not names:
        return spec

    def freed(labels: LabelledTensor) -> LabelledTensor:
        spans = tuple(tuple(s for s in axis if s.group not in names) for axis in labels.spans)
        return dataclasses.replace(labels, spans=spans)

    places = {name: list(dict.fromkeys((t.name, axis) for t, axis, _ in spec.axes(name))) for name in names}
    return dataclasses.replace(
        spec,
        groups={n: g for n, g in spec.groups.items() if n not in names},
        tensors={n: freed(t) for n, t in spec.tensors.items()},
        states=tuple(dataclasses.replace(s, labels=freed(s.labels)) for s in spec.states),
        frozen=(*spec.frozen, *((where[0][0], why) for where in places.values() if why and len(where) > 1)),
    )


def like(spec: NetworkSpec, verified: NetworkSpec) -> NetworkSpec:
    """A graph with no more groups, scales and signs than another of the same architecture."""
    spec = without_groups(spec, set(spec.groups) - set(verified.groups))
    spec = drop_symmetry(spec, "scales", {n for n in spec.groups if not verified.groups[n].scalable})
    return drop_symmetry(spec, "signs", {n for n in spec.groups if not verified.groups[n].signable})
