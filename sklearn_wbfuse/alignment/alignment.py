"""The result of an aligner, and the couplings that are known before anything is matched."""

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
    """The couplings that carry networks to the target, one per network and group, and the scales of their neurons.

    Attributes
    ----------
    couplings : list of dict of str to Coupling
        The couplings of each network.
    source_scales : list of dict of str to ndarray
        Scales that bring each network into the gauge in which it was matched.
    target_scales : dict of str to ndarray
        Scales that lead from that gauge to the target's.
    energy : float
    n_iter : int
    history : list
        The energies of each start after each sweep.
    others : list of Alignment
        Results of further starts, of higher energy. A correction chooses among them by the agreement with the parents.
    masses : dict of str to ndarray
        How much of each neuron of the target each network owns, for groups of which this differs; see `Mixture`.
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
        """Make an alignment of couplings alone, without scales, and compute its energy.

        Raises
        ------
        FusionError, WidthError
            If a group of a parent has no coupling, or one of another shape.
        """
        for model, (parent, group_couplings) in enumerate(zip(parents, couplings, strict=True)):
            for name, size in target.sizes.items():
                if name not in group_couplings:
                    raise FusionError(f"The aligner must couple every group. Got no coupling of group {name!r} of model {model}.")
                shape = size, parent.spec.sizes[parent.correspondence.group(name)]
                if group_couplings[name].shape != shape:
                    raise WidthError(
                        f"The coupling of group {name!r} of model {model} must have the numbers of neurons of target and model, "
                        f"{shape}. Got {group_couplings[name].shape}."
                    )
        extracted = [extract_features(parent.spec, parent.compared) for parent in parents]
        features, source_arrays = extracted[0][0], [arrays for _, arrays in extracted]
        moved = [
            [carried(feature, array, group_couplings) for feature, array in zip(features, arrays, strict=True)]
            for arrays, group_couplings in zip(source_arrays, couplings, strict=True)
        ]
        value = energy(features, mean_target(moved, parents.mixture), source_arrays, moved, parents.mixture)
        return cls([{name: c[name] for name in target.groups} for c in couplings], [{} for _ in parents], {}, value)


def pinned_groups(
    networks: Sequence[Parent], target: NetworkSpec, signs: bool = True
) -> tuple[list[dict[str, Coupling]], set[str]]:
    """Couple groups with a tensor that is bitwise equal in all parents (a frozen embedding): their neurons correspond already.

    If these tensors do not determine the sign of a neuron, the tensors whose axes all belong to its group do.

    Parameters
    ----------
    networks : list of Parent
    target : NetworkSpec
    signs : bool
        Whether neurons may change sign.

    Returns
    -------
    pinned : list of dict of str to Coupling
        The couplings of each network.
    scaled_alike : set of str
        Groups whose scales agree as well, since such a tensor scales with them.
    """
    pinned: dict[str, Coupling] = {}
    scaled_alike, signed_alike = set[str](), set[str]()
    if len(networks) < 2:
        return [{} for _ in networks], scaled_alike
    first, block_groups = networks[0], block_groups_of(target)
    for name, labels in first.spec.tensors.items():
        tensor = first.state[name]
        if any(n.state[name].shape != tensor.shape or not torch.equal(n.state[name], tensor) for n in networks[1:]):
            continue
        whole = labels.unfold(tensor)
        for axis, spans in enumerate(labels.spans):
            for span in spans:
                blocks = block_groups.get(span.group)
                if blocks and any(n.spec.sizes[blocks] != target.sizes[blocks] for n in networks):
                    continue
                rows = _rows(whole, axis, span)
                if target.sizes[span.group] == len(rows) and len(torch.unique(rows, dim=0)) == len(rows):
                    pinned[span.group] = Coupling.identity(len(rows))
                    if blocks:  # blocks stay with their neurons
                        pinned[blocks] = Coupling.identity(target.sizes[blocks])
                    scaled_alike |= {span.group} if span.exponent else set()
                    signed_alike |= {span.group} if span.odd else set()
    result = [dict(pinned) for _ in networks]
    for group in (g for g in pinned if signs and target.groups[g].signable and g not in signed_alike):
        for network, couplings in zip(networks, result, strict=True):
            couplings[group] = Permutation(np.arange(couplings[group].shape[0]), _signs_like(network, first, group))
    return result, scaled_alike


def _rows(whole: Tensor, axis: int, span: Span) -> Tensor:
    """Return the entries of a tensor that belong to each unit of a span, one row per unit."""
    index = torch.as_tensor(span.index.ravel(), device=whole.device)
    return whole.movedim(axis, 0)[index].reshape(len(span.index), -1)


def _signs_like(network: Parent, first: Parent, group: str) -> np.ndarray:
    """Return the signs with which units are closest to another network's, in tensors whose axes all belong to their group."""
    total: Any = 0.0
    for labels, axis, span in network.spec.axes(group):
        if span.odd and {s.group for spans in labels.spans for s in spans} == {group} and labels.diagonal == 1:
            here, there = (_rows(n.state[labels.name], axis, span) for n in (network, first))
            total = total + (here * there).sum(1).double().cpu().numpy()
    return np.where(total < 0, -1.0, 1.0) * np.ones(network.spec.sizes[group])


def block_groups_of(spec: NetworkSpec) -> dict[str, str]:
    """Map each group of neurons in blocks to the group of its blocks."""
    return {name: group.block_group for name, group in spec.groups.items() if group.block_group is not None}
