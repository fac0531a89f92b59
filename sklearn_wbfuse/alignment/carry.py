"""Whole networks carried into the target's neurons, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..exceptions import WidthError
from ..network.correspondence import SAME_NAMES, Correspondence
from ..network.couplings import Coupling, Permutation, along
from ..network.groups import LabelledTensor, TensorBlock, put, relabel, take
from ..network.mixture import Mixture
from ..network.spec import NetworkSpec
from ..network.types import State

__all__ = ["Carrier", "check_blocks", "mean_scales"]

Scales = Mapping[str, np.ndarray]


class Carrier:
    """Carries the tensors and activations of one model into the neurons, widths and scales of the target.

    Output axes average and input axes split; units are first multiplied by `source_scales` and then divided by
    `target_scales`, each to the axis' exponent.

    Parameters
    ----------
    source, target : NetworkSpec
    couplings : mapping of str to Coupling
        One for each group of the target.
    source_scales, target_scales : mapping of str to ndarray
        By the groups of the source and of the target.
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
            self.factor = {name: scales[self.order[name]] / target_scales[name] for name, scales in source_scales.items()}
            for name, c in self.permutations.items():
                if c.signs is not None:
                    self.factor[name] = c.signs * self.factor.get(name, 1.0)

    def state(self, state: State) -> dict[str, Tensor]:
        """Carry all tensors; the result has the target's names."""
        names = {self.correspondence.tensor(name): name for name in self.target.tensors}
        return {names[name]: self.tensor(names[name], state) for name in state}

    def tensor(self, name: str, state: State) -> Tensor:
        """Return one tensor of the target, computed from the source's state."""
        source_name = self.correspondence.tensor(name)
        if self.is_relabelling:
            return relabel(state[source_name], self.source.tensors[source_name], self.order, self.factor)
        return self._by_blocks(state[source_name], self.source.tensors[source_name], self.target.tensors[name])

    def _by_blocks(self, tensor: Tensor, labels: LabelledTensor, target_labels: LabelledTensor) -> Tensor:
        whole = labels.unfold(tensor)
        out = torch.zeros(target_labels.shape, dtype=tensor.dtype, device=tensor.device)
        for before, after in zip(labels.blocks(), target_labels.blocks(), strict=True):
            array = _times(take(whole, before), before, self.source_scales, 1)
            for axis, span in enumerate(after.axes):
                array = self.couplings[span.group].apply(array, axis, span.role, span.odd)
            put(out, after, _times(array, after, self.target_scales, -1))
        return target_labels.fold(out)

    def axis_map(self, name: str, axis: int) -> Tensor:
        """Return the matrix that carries activations along an axis of a tensor, of shape (target size, source size)."""
        source_labels = self.source.tensors[self.correspondence.tensor(name)]
        size, square_labels = source_labels.shape[axis], []
        for labels in (source_labels, self.target.tensors[name]):
            square_labels.append(LabelledTensor("", (labels.shape[axis], size), (labels.spans[axis], ())))
        return self._by_blocks(torch.eye(size, dtype=torch.float64), *square_labels)


def check_blocks(source: NetworkSpec, target: NetworkSpec, correspondence: Correspondence = SAME_NAMES) -> None:
    """Check that tensors of diagonal blocks keep their number of blocks: a copy of a block would only read copied inputs.

    Raises
    ------
    WidthError
        If the number differs.
    """
    for name, target_labels in target.tensors.items():
        labels = source.tensors[correspondence.tensor(name)]
        if labels.diagonal != target_labels.diagonal:
            raise WidthError(
                f"A convolution must have the same number of groups in all models and in the target. Got {labels.diagonal} "
                f"(diagonal blocks of {name!r}) in a model and {target_labels.diagonal} in the target."
            )


def _times(array: Tensor, block: TensorBlock, scales: Scales, sign: int) -> Tensor:
    """Multiply units by their scales, or divide by them if `sign` is -1."""
    for axis, span in enumerate(block.axes):
        if span.exponent and span.group in scales:
            factor = torch.as_tensor(scales[span.group] ** (sign * span.exponent), dtype=array.dtype, device=array.device)
            array = array * along(factor, axis, array.dim())
    return array


def mean_scales(scales: Sequence[Scales], couplings: Sequence[Mapping[str, Coupling]], mixture: Mixture) -> dict[str, np.ndarray]:
    """Return the target's scales: the geometric mean of the models', so that equal models keep theirs."""
    result = {}
    for name in scales[0]:
        pairs = zip(scales, couplings, strict=True)
        logs = [plans[name].apply(torch.as_tensor(np.log(model_scales[name])), 0) for model_scales, plans in pairs]
        result[name] = np.exp(mixture.mean(logs, name).numpy())
    return result
