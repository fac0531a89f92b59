"""Products of each group's neurons in a model with those of the other models, kept until a neighbour changes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .energy import add_product
from .problem import Problem

__all__ = ["ProductCache"]


class ProductCache:
    r"""The products :math:`\sum_p \alpha_p \langle \bar A^{-i}_p, A^i_p \rangle` of neurons with the mean of the others.

    Their rows are the target's neurons, their columns the model's, in the order in which the target has them now. Where k
    neurons of a neighbour change, the products of k neurons are added, which is never more than computing them anew.

    Parameters
    ----------
    problem : Problem
    moved : list of list of Tensor
        Arrays of each model in the target's neurons; they are changed by the caller.
    """

    def __init__(self, problem: Problem, moved: list[list[Tensor]]):
        self.problem, self.moved = problem, moved
        self.at = {g: [p for p in problem.features_of([g]) if problem.features[p].alpha] for g in problem.sizes}
        self.kept: dict[tuple[int, str], list[Tensor | None]] = {}

    def linear(self, group: str) -> bool:
        """Whether a group stands at most once in every tensor."""
        return all(self.problem.features[p].groups.count(group) == 1 for p in self.at[group])

    def of(self, i: int, group: str) -> tuple[Tensor | None, Tensor | None]:
        """Products of the axes that stay as they are, and of those that change sign with the group; they are kept."""
        if (i, group) not in self.kept:
            total: list[Tensor | None] = [None, None]
            for p in self.at[group]:
                feature = self.problem.features[p]
                add_product(total, feature, feature.groups.index(group), self._others(i, p), self.moved[i][p], feature.alpha)
            self.kept[i, group] = total
        even, odd = self.kept[i, group]
        return even, odd

    def _others(self, i: int, p: int) -> Tensor:
        """The mean of the other models' arrays."""
        return self.problem.mixture.mean_of_others(i, [own[p] for own in self.moved])

    def weight(self, i: int) -> float:
        r"""What the products of a model are to be multiplied by, :math:`1 - \lambda_i`."""
        return 1 - self.problem.mixture.weights[i]

    def changed(self, i: int, group: str, units: Tensor | None = None, changes: Mapping[int, Tensor] | None = None) -> None:
        """Keep what is still true after a model's neurons of a group have changed.

        Parameters
        ----------
        i : int
        group : str
        units : Tensor or None
            The neurons that did, if products are to be updated.
        changes : mapping of int to Tensor or None
            By how much, for each feature; None if they were not permuted.
        """
        if units is None or changes is None:
            beside = {g for p in self.at[group] for g in self.problem.features[p].groups}
            permuted = None if changes is None else (i, group)
            self.kept = {key: kept for key, kept in self.kept.items() if key[1] not in beside or key == permuted}
            return
        for (model, own), kept in self.kept.items():
            if (model, own) != (i, group):  # these are permuted by the caller
                for p in self.at[own]:
                    if p in changes:
                        axis = self.problem.features[p].groups.index(own)
                        self._update(kept, p, axis, (i, model), group, units, changes[p])

    def _update(
        self, kept: list[Tensor | None], p: int, axis: int, of: tuple[int, int], group: str, units: Tensor, change: Tensor
    ) -> None:
        """Add the products of a few neurons by which one model changed to those of a model."""
        feature, (i, model) = self.problem.features[p], of
        side, rows = feature.groups.index(group), units.to(change.device)
        if i == model:
            add_product(kept, feature, axis, self._others(i, p).index_select(side, rows), change, feature.alpha)
            return
        factor = feature.alpha * self.problem.mixture.weights[i] / self.weight(model)
        if side != axis:
            add_product(kept, feature, axis, change, self.moved[model][p].index_select(side, rows), factor)
            return
        part: list[Tensor | None] = [None, None]
        add_product(part, feature, axis, change, self.moved[model][p], factor)
        for total, more in zip(kept, part, strict=True):
            if total is not None and more is not None:
                total.index_add_(0, rows, more)
