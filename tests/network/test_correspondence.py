"""Parents whose tensors and groups have other names than the target's."""

import dataclasses

import numpy as np
import pytest
import torch
from conformance.aligners import parents_of
from conformance.fusers import assert_same, family
from torch import nn

from sklearn_wbfuse import discover
from sklearn_wbfuse.alignment import AlignedParents, Alignment, Carrier
from sklearn_wbfuse.discovery import floating_state
from sklearn_wbfuse.network.correspondence import SAME_NAMES, Correspondence
from sklearn_wbfuse.network.couplings import Coupling, Permutation, Plan


class Renamed(Correspondence):
    """The parent's names have a prefix."""

    def group(self, target):
        return f"old.{target}"

    def tensor(self, target):
        return f"old.{target}"

    def position(self, target):
        return target + 1


class Wrapped(nn.Module):
    """A network as a part of another, which gives other names to all of it."""

    def __init__(self, inner):
        super().__init__()
        self.old, self.example = inner, inner.example

    def forward(self, *x):
        return self.old(*x)


def couplings_of(spec, rng, *, plans):
    """Permutations with signs where these may be, which respect blocks; or plans that mix all units."""
    orders = spec.orders(rng.permutation)
    if plans:
        return {name: Coupling.identity(n) if _is_block(spec, name) else _mixed(rng, n) for name, n in spec.sizes.items()}
    signs = {n: rng.choice([-1.0, 1.0], g.size) if g.signable else None for n, g in spec.groups.items()}
    return {name: Permutation(order, signs[name]) for name, order in orders.items()}


def _is_block(spec, name):
    return spec.groups[name].block_group is not None or any(g.block_group == name for g in spec.groups.values())


def _mixed(rng, n):
    return Plan((np.eye(n)[rng.permutation(n)] + np.eye(n)[rng.permutation(n)]) / (2 * n))


@pytest.mark.parametrize("plans", [False, True])
@pytest.mark.parametrize("name", ["mlp with norms", "lstm", "cnn in groups"])
def test_a_carrier_goes_by_the_correspondence(name, plans):
    (model,), rng = family(name, 1), np.random.default_rng(0)
    spec, renamed = (discover(m, (model.example,)) for m in (model, Wrapped(model)))
    couplings = couplings_of(spec, rng, plans=plans)
    scales = {n: rng.uniform(0.5, 2, g.size) for n, g in spec.groups.items() if g.scalable}
    targets = {n: rng.uniform(0.5, 2, g.size) for n, g in spec.groups.items() if g.scalable}
    same = Carrier(spec, spec, couplings, scales, targets)
    other = Carrier(renamed, spec, couplings, {f"old.{n}": c for n, c in scales.items()}, targets, Renamed())
    state = floating_state(model)
    assert_same(dict(sorted(other.state(floating_state(Wrapped(model))).items())), dict(sorted(same.state(state).items())), 1e-12)
    key = next(n for n, labels in spec.tensors.items() if labels.spans[0])
    torch.testing.assert_close(other.axis_map(key, 0), same.axis_map(key, 0))


def test_a_parent_of_other_names_is_aligned_and_averaged_with_the_target():
    models = family("mlp with norms", 2)
    parents, target = parents_of(models)
    (wrapped,), _ = parents_of([Wrapped(models[1])])
    wrapped = dataclasses.replace(wrapped, weight=0.5, correspondence=Renamed())
    identity = {name: Coupling.identity(n) for name, n in target.spec.sizes.items()}
    alignment = Alignment([identity, identity], [{}, {}], {})
    same, other = (AlignedParents.of([parents[0], p], alignment, target) for p in (parents[1], wrapped))
    assert_same(other[1].state, same[1].state)
    for name, labels in target.spec.tensors.items():
        mean = [a.mixture.mean_tensor([p.tensor(name) for p in a], labels) for a in (other, same)]
        assert torch.equal(*mean)
    rows = torch.randn(7, 8, dtype=torch.float64)
    assert torch.equal(*(a[1].carried(rows, ("linears.0.weight", 0)) for a in (other, same)))
    assert other[1].position(3) == 4 and same[1].position(3) == 3


def test_the_same_names_are_the_default():
    assert SAME_NAMES.group("a") == SAME_NAMES.tensor("a") == "a" and SAME_NAMES.position(5) == 5
    assert parents_of(family("mlp", 1))[0][0].correspondence is SAME_NAMES
