"""How networks are carried to a target, and what is known of that beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..exceptions import FusionError, WidthError
from ..execution import Parent, Parents
from ..network.couplings import Coupling, Permutation
from ..network.groups import Span
from ..network.spec import NetworkSpec
from .energy import carried, energy, mean_target
from .features import extract_features

__all__ = ["Alignment", "block_groups_of", "pinned_groups"]


@dataclass(eq=False)
class Alignment:
    """How networks are carried to the target: one coupling per group, and scales per unit, for each.

    `source_scales` put a network into the gauge in which it was matched, `target_scales` lead from there to the target's.
    `others` are those of further starts, of higher energies; what they are worth is told by what they lead to. `masses` say of
    groups that the models do not own alike what each owns of the target's neurons; see `Mixture`.
    """

    couplings: list[dict[str, Coupling]]
    source_scales: list[dict[str, np.ndarray]]
    target_scales: dict[str, np.ndarray]
    energy: float = float("nan")
    n_iter: int = 0
    history: list[Any] = field(default_factory=list)
    others: list[Alignment] = field(default_factory=list)
    masses: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, parents: Parents, target: NetworkSpec, couplings: Sequence[Mapping[str, Coupling]]) -> Alignment:
        """That of parents whose neurons are coupled as they stand, without scales; its energy is computed.

        Raises
        ------
        FusionError, WidthError
            If a group of a parent has no coupling, or one of another shape.
        """
        for model, (parent, own) in enumerate(zip(parents, couplings, strict=True)):
            for name, size in target.sizes.items():
                if name not in own:
                    raise FusionError(f"The aligner gave group {name!r} of model {model} no coupling; couple every group.")
                shape = size, parent.spec.sizes[parent.correspondence.group(name)]
                if own[name].shape != shape:
                    raise WidthError(
                        f"The aligner gave group {name!r} of model {model} a coupling of shape {own[name].shape}; the target and "
                        f"the model have {shape} neurons."
                    )
        both = [extract_features(p.spec, p.compared) for p in parents]
        features, arrays = both[0][0], [own for _, own in both]
        moved = [[carried(f, a, c) for f, a in zip(features, own, strict=True)] for own, c in zip(arrays, couplings, strict=True)]
        value = energy(features, mean_target(moved, parents.mixture), arrays, moved, parents.mixture)
        return cls([{name: c[name] for name in target.groups} for c in couplings], [{} for _ in parents], {}, value)


def pinned_groups(
    networks: Sequence[Parent], target: NetworkSpec, signs: bool = True
) -> tuple[list[dict[str, Coupling]], set[str]]:
    """Couplings of groups with a tensor that is bitwise equal in all parents (a frozen embedding): they correspond already.

    A neuron of which such tensors do not tell the sign has that of the tensors in which its group stands alone.

    Parameters
    ----------
    networks : list of Parent
    target : Graph
    signs : bool
        Whether neurons may change sign.

    Returns
    -------
    pinned : list of dict of str to Coupling
        Of each network.
    scaled_alike : set of str
        Groups of which the scales agree as well, since such a tensor scales with them.
    """
    pinned: dict[str, Coupling] = {}
    scaled_alike, signed_alike = set[str](), set[str]()
    if len(networks) < 2:
        return [{} for _ in networks], scaled_alike
    first, within = networks[0], block_groups_of(target)
    for name, labels in first.spec.tensors.items():
        tensor = first.state[name]
        if any(n.state[name].shape != tensor.shape or not torch.equal(n.state[name], tensor) for n in networks[1:]):
            continue
        whole = labels.unfold(tensor)
        for axis, spans in enumerate(labels.spans):
            for span in spans:
                blocks = within.get(span.group)
                if blocks and any(n.spec.sizes[blocks] != target.sizes[blocks] for n in networks):
                    continue
                rows = _rows(whole, axis, span)
                if target.sizes[span.group] == len(rows) and len(torch.unique(rows, dim=0)) == len(rows):
                    pinned[span.group] = Coupling.identity(len(rows))
                    if blocks:  # they stay with their neurons
                        pinned[blocks] = Coupling.identity(target.sizes[blocks])
                    scaled_alike |= {span.group} if span.exponent else set()
                    signed_alike |= {span.group} if span.odd else set()
    result = [dict(pinned) for _ in networks]
    for group in (g for g in pinned if signs and target.groups[g].signable and g not in signed_alike):
        for network, own in zip(networks, result, strict=True):
            own[group] = Permutation(np.arange(own[group].shape[0]), _signs_like(network, first, group))
    return result, scaled_alike


def _rows(whole: Tensor, axis: int, span: Span) -> Tensor:
    """What a tensor holds of every unit of a span."""
    index = torch.as_tensor(span.index.ravel(), device=whole.device)
    return whole.movedim(axis, 0)[index].reshape(len(span.index), -1)


def _signs_like(network: Parent, first: Parent, group: str) -> np.ndarray:
    """The signs with which units are most like those of another network, in tensors on whose axes no other group stands."""
    total: Any = 0.0
    for labels, axis, span in network.spec.axes(group):
        if span.odd and {s.group for spans in labels.spans for s in spans} == {group} and labels.diagonal == 1:
            here, there = (_rows(n.state[labels.name], axis, span) for n in (network, first))
            total = total + (here * there).sum(1).double().cpu().numpy()
    return np.where(total < 0, -1.0, 1.0) * np.ones(network.spec.sizes[group])


def block_groups_of(spec: NetworkSpec) -> dict[str, str]:
    """The group of blocks of each group that lies in some."""
    return {name: group.block_group for name, group in spec.groups.items() if group.block_group is not None}
