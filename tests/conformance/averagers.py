"""What every averager must pass. A subclass gives `make(**parameters)`."""

import numpy as np
import pytest
import torch
from conformance.aligners import parents_of
from conformance.fusers import BUILDERS, assert_same, family
from networks import disguised

from sklearn_wbfuse.alignment import AlignedParents, Identity, WassersteinAligner

ALIGNERS = {"identity": Identity, "wasserstein": WassersteinAligner}


def aligned(models, weights=None, aligner=None, masses=None):
    """Parents aligned, by default as they stand."""
    parents, target = parents_of(models, weights)
    alignment = (aligner or Identity()).align(parents, target.spec)
    alignment.masses = masses or {}
    return AlignedParents.of(parents, alignment, target)


class AveragerConformance:
    """Inherit, and set `make`."""

    def make(self, **parameters):
        raise NotImplementedError

    @pytest.mark.parametrize("aligner", ALIGNERS)
    @pytest.mark.parametrize("name", BUILDERS)
    def test_the_average_of_equal_states_is_that_state(self, name, aligner):
        (model,) = family(name, 1)
        rng = np.random.default_rng(0)
        copies = [disguised(model, rng, scales=True) for _ in range(2)] if aligner == "wasserstein" else [model, model]
        parents = aligned([model, *copies], [0.5, 0.3, 0.2], ALIGNERS[aligner]())
        assert_same(self.make().average(parents), parents[0].state, 1e-9)

    @pytest.mark.parametrize("name", ["mlp with norms", "lstm", "cnn in groups"])
    def test_one_hot_weights_give_that_model(self, name):
        models = family(name, 3)
        parents = aligned(models, [0.0, 1.0, 0.0])
        state = self.make().average(parents)
        assert_same(state, {k: models[1].state_dict()[k] for k in state}, 1e-12)

    @pytest.mark.parametrize("name", BUILDERS)
    def test_all_tensors_of_the_target_and_nothing_of_the_parents_changes(self, name, device):
        models = [m.to(device).float() for m in family(name, 2)]
        parents = aligned(models)
        before = [{k: v.clone() for k, v in p.parent.state.items()} for p in parents]
        state = self.make().average(parents)
        assert {*state} == {*parents.target.spec.tensors}
        for key, tensor in state.items():
            first = parents[0].state[key]
            assert (tensor.shape, tensor.dtype, tensor.device) == (first.shape, first.dtype, first.device), key
            assert torch.isfinite(tensor).all()
        for parent, old in zip(parents, before, strict=True):
            assert_same(parent.parent.state, old)

    @pytest.mark.parametrize("name", ["mlp", "resnet"])
    def test_the_order_of_parents_of_equal_weights_does_not_matter(self, name):
        models = family(name, 3)
        first, second = (self.make().average(aligned(parents)) for parents in (models, models[::-1]))
        assert_same(first, second, 1e-12)
        assert_same(self.make().average(aligned(models)), first)

    def test_neurons_of_one_owner_have_its_rows(self):
        models = family("mlp with norms", 2)
        masses = {"linears.0": np.array([[1.0] * 5 + [0.0] * 3, [0.0] * 3 + [1.0] * 5])}
        state = self.make().average(aligned(models, masses=masses))
        plain = self.make().average(aligned(models))
        for key in ("linears.0.weight", "linears.0.bias", "norms.0.weight", "norms.0.running_var"):
            tensors = [m.state_dict()[key] for m in models]
            torch.testing.assert_close(state[key][:3], tensors[0][:3], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(state[key][5:], tensors[1][5:], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(state[key][3:5], plain[key][3:5], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state["linears.2.weight"], plain["linears.2.weight"], rtol=1e-12, atol=1e-12)
