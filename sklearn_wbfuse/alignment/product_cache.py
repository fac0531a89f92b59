"""A cache of the products of the neurons of each model with the mean of the others, updated when neurons are permuted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .energy import add_product
from .problem import Problem

__all__ = ["ProductCache"]


class ProductCache:
    r"""The products :math:`\sum_p \alpha_p \langle \bar A^{-i}_p, A^i_p \rangle` of neurons with the mean of the other models.

    Rows are the target's neurons, columns the model's, in their present order in the target. If k neurons of an adjacent group
    change, the products of k neurons are added, which never costs more than computing all of them again.

    Parameters
    ----------
    problem : Problem
    moved : list of list of Tensor
        Arrays of each model in the target's neurons; the caller changes them in place.
    """

    def __init__(self, problem: Problem, moved: list[list[Tensor]]):
        self.problem, self.moved = problem, moved
        self.indices = {g: [p for p in problem.features_of([g]) if problem.features[p].alpha] for g in problem.sizes}
        self.cached: dict[tuple[int, str], list[Tensor | None]] = {}

    def is_linear(self, group: str) -> bool:
        """Return whether a group is on at most one axis of every tensor."""
        return all(self.problem.features[p].groups.count(group) == 1 for p in self.indices[group])

    def of(self, i: int, group: str) -> tuple[Tensor | None, Tensor | None]:
        """Return the even and odd products of a group of model i, see `alignment.energy.products`, and cache them."""
        if (i, group) not in self.cached:
            total: list[Tensor | None] = [None, None]
            for p in self.indices[group]:
                feature = self.problem.features[p]
                add_product(total, feature, feature.groups.index(group), self._others(i, p), self.moved[i][p], feature.alpha)
            self.cached[i, group] = total
        even, odd = self.cached[i, group]
        return even, odd

    def _others(self, i: int, p: int) -> Tensor:
        """Return the mean of the other models' arrays."""
        return self.problem.mixture.mean_of_others(i, [arrays[p] for arrays in self.moved])

    def weight(self, i: int) -> float:
        r"""Return :math:`1 - \lambda_i`, the weight of the products of a model in the energy."""
        return 1 - self.problem.mixture.weights[i]

    def invalidate(self, i: int, group: str, units: Tensor | None = None, changes: Mapping[int, Tensor] | None = None) -> None:
        """Update or drop the products that change when neurons of a group of model i change.

        Parameters
        ----------
        i : int
        group : str
        units : Tensor or None
            The neurons that changed; if None, products are dropped.
        changes : mapping of int to Tensor or None
            The changes of these neurons in each feature; None if they were not permuted.
        """
        if units is None or changes is None:
            adjacent = {g for p in self.indices[group] for g in self.problem.features[p].groups}
            permuted = None if changes is None else (i, group)
            self.cached = {key: products for key, products in self.cached.items() if key[1] not in adjacent or key == permuted}
            return
        for (model, other), products in self.cached.items():
            if (model, other) != (i, group):  # the caller permutes the products of the group itself
                for p in self.indices[other]:
                    if p in changes:
                        axis = self.problem.features[p].groups.index(other)
                        self._update(products, p, axis, (i, model), group, units, changes[p])

    def _update(
        self, products: list[Tensor | None], p: int, axis: int, models: tuple[int, int], group: str, units: Tensor, change: Tensor
    ) -> None:
        """Add to the products of the second of two models what the change of a few neurons of the first adds to them."""
        feature, (i, model) = self.problem.features[p], models
        side, rows = feature.groups.index(group), units.to(change.device)
        if i == model:
            add_product(products, feature, axis, self._others(i, p).index_select(side, rows), change, feature.alpha)
            return
        factor = feature.alpha * self.problem.mixture.weights[i] / self.weight(model)
        if side != axis:
            add_product(products, feature, axis, change, self.moved[model][p].index_select(side, rows), factor)
            return
        added: list[Tensor | None] = [None, None]
        add_product(added, feature, axis, change, self.moved[model][p], factor)
        for total, rows_of_total in zip(products, added, strict=True):
            if total is not None and rows_of_total is not None:
                total.index_add_(0, rows, rows_of_total)
