"""What every aligner must pass. A subclass gives `make(**parameters)` and says what it finds."""

import numpy as np
import pytest
from conformance.fusers import BUILDERS, assert_same, family
from networks import MLP, disguised, randomised

from sklearn_wbfuse.alignment import AlignedParents
from sklearn_wbfuse.discovery import discover_all, plain_copy
from sklearn_wbfuse.exceptions import WidthError
from sklearn_wbfuse.execution import Parents
from sklearn_wbfuse.fusion.parent_factory import ParentFactory, common_dtype

_FOUND = {}


def parents_of(models, weights=None):
    """Parents as a fit makes them, and the first one's architecture; a network of `BUILDERS` is discovered once."""
    plain, inputs = [plain_copy(m) for m in models], (models[0].example,)
    key = tuple((repr(m), str(inputs[0].dtype)) for m in models)
    if key not in _FOUND:
        _FOUND[key] = discover_all(plain, inputs)
    making, weights = ParentFactory(inputs, common_dtype(models)), weights or [1 / len(models)] * len(models)
    made = [making.parent(*args) for args in zip(plain, _FOUND[key], weights, strict=True)]
    return Parents(made, further=making.further), _FOUND[key][0]


class AlignerConformance:
    """Inherit, and set `make`.

    `moves` says whether it finds permutations, `scales` whether scales and signs as well.
    """

    moves = True
    scales = False

    def make(self, **parameters):
        raise NotImplementedError

    def aligned(self, models, weights=None):
        parents, target = parents_of(models, weights)
        sizes = self.make().sizes([p.spec for p in parents])
        target = target.resized(sizes)
        return parents, target, self.make().align(parents, target.spec)

    def copies(self, name, count=2):
        """A network, and copies that an aligner carries onto it."""
        (model,) = family(name, 1)
        rng = np.random.default_rng(1)
        return [model, *(disguised(model, rng, scales=self.scales) if self.moves else model for _ in range(count))]

    @pytest.mark.parametrize("name", BUILDERS)
    def test_carried_copies_are_equal(self, name):
        models = self.copies(name)
        parents, target, alignment = self.aligned(models)
        first, *others = (p.state for p in AlignedParents.of(parents, alignment, target))
        for other in others:
            assert_same(other, first, 1e-9)
        assert all(c.is_permutation for plans in alignment.couplings for c in plans.values())
        assert not alignment.energy > 1e-9

    @pytest.mark.parametrize("name", BUILDERS)
    def test_every_group_of_every_parent_is_coupled_and_inputs_are_unchanged(self, name):
        models = family(name, 3)
        parents, architecture = parents_of(models, [0.5, 0.3, 0.2])
        before = [{k: v.clone() for k, v in p.state.items()} for p in parents]
        aligner = self.make()
        sizes = aligner.sizes([p.spec for p in parents])
        first, second = (aligner.align(parents, architecture.resized(sizes).spec) for _ in range(2))
        assert len(first.couplings) == len(first.source_scales) == len(parents)
        for parent, plans, again in zip(parents, first.couplings, second.couplings, strict=True):
            assert list(plans) == list(parent.spec.groups) and {*plans} == {*models[0].truth.sizes}
            for group, coupling in plans.items():
                assert coupling.shape == (sizes[group], parent.spec.sizes[group])
                assert coupling.marginal_error() < 1e-9
                assert coupling.same_as(again[group], 0.0)
        for parent, old in zip(parents, before, strict=True):
            assert_same(parent.state, old)

    @pytest.mark.parametrize("name", BUILDERS)
    def test_blocks_move_as_a_whole(self, name):
        _, target, alignment = self.aligned(family(name, 2))
        for plans in alignment.couplings:
            for group, blocks in ((g.name, g.block_group) for g in target.spec.groups.values() if g.block_group):
                outer = plans[blocks].mass
                n, m = outer.shape
                inner = plans[group].mass
                inner = inner.reshape(n, len(inner) // n, m, -1).sum((1, 3))
                np.testing.assert_allclose(inner, outer, atol=1e-12)

    @pytest.mark.parametrize("name", ["mlp", "resnet", "lstm", "cnn in groups"])
    def test_a_further_copy_matches_the_fused_network(self, name):
        model, copy = self.copies(name, 1)
        (fused, further), target = parents_of([model, copy])
        alignment = self.make().match(further, fused)
        assert len(alignment.couplings) == 1
        (carried,) = AlignedParents.of([further], alignment, target)
        assert_same(carried.state, fused.state, 1e-9)

    def test_unequal_widths_are_aligned_or_a_named_error(self):
        models = [randomised(MLP([5, n, 6, 3]), np.random.default_rng(n)) for n in (8, 4)]
        parents, target = parents_of(models)
        try:
            sizes = self.make().sizes([p.spec for p in parents])
        except WidthError as error:
            assert all(word in str(error) for word in ("'linears.0'", "8", "4", "model 1"))
            return
        alignment = self.make().align(parents, target.resized(sizes).spec)
        for parent, plans in zip(parents, alignment.couplings, strict=True):
            assert {g: c.shape for g, c in plans.items()} == {g: (sizes[g], n) for g, n in parent.spec.sizes.items()}
