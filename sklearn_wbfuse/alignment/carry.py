"""Whole networks carried into the target's neurons, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..exceptions import WidthError
from ..network.correspondence import SAME_NAMES, Correspondence
from ..network.couplings import Coupling, Permutation, along
from ..network.groups import Block, LabelledTensor, put, relabel, take
from ..network.mixture import Mixture
from ..network.spec import NetworkSpec

__all__ = ["Carrier", "check_blocks", "mean_scales"]

Scales = Mapping[str, np.ndarray]


class Carrier:
    """How the tensors and activations of one model get into the neurons, widths and scales of the target.

    Output axes average and input axes split; units are first multiplied by `source_scales` and then divided by
    `target_scales`, each to the axis' exponent.

    Parameters
    ----------
    source, target : Graph
    couplings : mapping of str to Coupling
        By the target's groups.
    source_scales, target_scales : mapping of str to ndarray
        By the source's and the target's groups.
    correspondence : Correspondence

    Raises
    ------
    WidthError
        See `check_blocks`.
    """

    def __init__(
        self,
        source: NetworkSpec,
        target: NetworkSpec,
        couplings: Mapping[str, Coupling],
        source_scales: Scales,
        target_scales: Scales,
        correspondence: Correspondence = SAME_NAMES,
    ):
        check_blocks(source, target, correspondence)
        self.source, self.target, self.couplings, self.correspondence = source, target, couplings, correspondence
        self.source_scales, self.target_scales = source_scales, target_scales
        self.permutations = {name: c for name, c in couplings.items() if isinstance(c, Permutation)}
        self.is_relabelling = source is target and len(self.permutations) == len(couplings)
        if self.is_relabelling:
            self.order = {name: c.index for name, c in self.permutations.items()}
            self.factor = {name: own[self.order[name]] / target_scales[name] for name, own in source_scales.items()}
            for name, c in self.permutations.items():
                if c.signs is not None:
                    self.factor[name] = c.signs * self.factor.get(name, 1.0)

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors, by the target's names."""
        names = {self.correspondence.tensor(name): name for name in self.target.tensors}
        return {names[name]: self.tensor(names[name], state) for name in state}

    def tensor(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """One tensor of the target, from the source's state."""
        own = self.correspondence.tensor(name)
        if self.is_relabelling:
            return relabel(state[own], self.source.tensors[own], self.order, self.factor)
        return self._by_blocks(state[own], self.source.tensors[own], self.target.tensors[name])

    def _by_blocks(self, tensor: Tensor, labels: LabelledTensor, wanted: LabelledTensor) -> Tensor:
        whole = labels.unfold(tensor)
        out = torch.zeros(wanted.shape, dtype=tensor.dtype, device=tensor.device)
        for before, after in zip(labels.blocks(), wanted.blocks(), strict=True):
            array = _times(take(whole, before), before, self.source_scales, 1)
            for axis, span in enumerate(after.axes):
                array = self.couplings[span.group].apply(array, axis, span.role, span.odd)
            put(out, after, _times(array, after, self.target_scales, -1))
        return wanted.fold(out)

    def axis_map(self, name: str, axis: int) -> Tensor:
        """How activations along an axis of a tensor are carried: a matrix of shape (size in the target, size in the source)."""
        own = self.source.tensors[self.correspondence.tensor(name)]
        size, both = own.shape[axis], []
        for labels in (own, self.target.tensors[name]):
            both.append(LabelledTensor("", (labels.shape[axis], size), (labels.spans[axis], ())))
        return self._by_blocks(torch.eye(size, dtype=torch.float64), *both)


def check_blocks(source: NetworkSpec, target: NetworkSpec, correspondence: Correspondence = SAME_NAMES) -> None:
    """A tensor of diagonal blocks keeps their number: a copy of a block would read the inputs of its own copy only.

    Raises
    ------
    WidthError
        If it does not.
    """
    for name, wanted in target.tensors.items():
        labels = source.tensors[correspondence.tensor(name)]
        if labels.diagonal != wanted.diagonal:
            raise WidthError(
                f"Parameter {name!r} holds {labels.diagonal} diagonal blocks in a model and {wanted.diagonal} in the target "
                "(a convolution in groups); fuse models of equal numbers of groups into a target with as many."
            )


def _times(array: Tensor, block: Block, scales: Scales, sign: int) -> Tensor:
    for axis, span in enumerate(block.axes):
        if span.exponent and span.group in scales:
            factor = torch.as_tensor(scales[span.group] ** (sign * span.exponent), dtype=array.dtype, device=array.device)
            array = array * along(factor, axis, array.dim())
    return array


def mean_scales(scales: Sequence[Scales], couplings: Sequence[Mapping[str, Coupling]], mixture: Mixture) -> dict[str, np.ndarray]:
    """The target's scales: geometric mean of the models', so that equal models keep theirs."""
    result = {}
    for name in scales[0]:
        pairs = zip(scales, couplings, strict=True)
        logs = [plans[name].apply(torch.as_tensor(np.log(own[name])), 0) for own, plans in pairs]
        result[name] = np.exp(mixture.mean(logs, name).numpy())
    return result
