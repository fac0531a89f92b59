"""Specs with fewer groups or symmetries than discovered."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ..network.groups import Group, LabelledTensor, Span
from ..network.spec import NetworkSpec

__all__ = ["drop_groups", "drop_symmetry", "restrict"]


def drop_symmetry(spec: NetworkSpec, kind: str, names: Collection[str]) -> NetworkSpec:
    """Return the same spec with groups that do not scale (`kind` "scales"), or do not change sign ("signs")."""
    scales = kind == "scales"

    def changed_group(group: Group) -> Group:
        return dataclasses.replace(group, scalable=group.scalable and not scales, signable=group.signable and scales)

    def changed_span(span: Span) -> Span:
        if span.group not in names:
            return span
        return dataclasses.replace(span, exponent=0.0 if scales else span.exponent, odd=span.odd and scales)

    groups = {n: changed_group(g) if n in names else g for n, g in spec.groups.items()}
    tensors = {
        n: dataclasses.replace(t, spans=tuple(tuple(map(changed_span, axis)) for axis in t.spans))
        for n, t in spec.tensors.items()
    }
    return dataclasses.replace(spec, groups=groups, tensors=tensors)


def drop_groups(spec: NetworkSpec, names: Collection[str], why: str = "") -> NetworkSpec:
    """Return the same spec with groups that stay in place.

    The reason `why` is reported for groups on several axes, which belong together.
    """
    if not names:
        return spec

    def without_spans(labels: LabelledTensor) -> LabelledTensor:
        spans = tuple(tuple(s for s in axis if s.group not in names) for axis in labels.spans)
        return dataclasses.replace(labels, spans=spans)

    places = {name: list(dict.fromkeys((t.name, axis) for t, axis, _ in spec.axes(name))) for name in names}
    return dataclasses.replace(
        spec,
        groups={n: g for n, g in spec.groups.items() if n not in names},
        tensors={n: without_spans(t) for n, t in spec.tensors.items()},
        states=tuple(dataclasses.replace(s, labels=without_spans(s.labels)) for s in spec.states),
        frozen=(*spec.frozen, *((axes[0][0], why) for axes in places.values() if why and len(axes) > 1)),
    )


def restrict(spec: NetworkSpec, verified: NetworkSpec) -> NetworkSpec:
    """Return a spec with at most the groups, scales and signs of another one of the same architecture."""
    spec = drop_groups(spec, set(spec.groups) - set(verified.groups))
    spec = drop_symmetry(spec, "scales", {n for n in spec.groups if not verified.groups[n].scalable})
    return drop_symmetry(spec, "signs", {n for n in spec.groups if not verified.groups[n].signable})
