"""What every rule and adapter must pass. A subclass lists networks in which its operation stands between two linear layers."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.discovery import Architecture, floating_state, plain_copy
from sklearn_wbfuse.layers.operations import TABLE
from sklearn_wbfuse.network.groups import relabel


@dataclass(eq=False)
class Case:
    """A network, its inputs, and its groups by hand: name -> size."""

    build: Any
    shape: tuple
    groups: dict
    scalable: set = field(default_factory=set)
    signable: set = field(default_factory=set)
    block_groups: dict = field(default_factory=dict)
    redundant: tuple = ()  # tensors that the outputs do not depend on: a bias of keys moves all scores alike
    widens: bool = True
    integers: int = 0


@functools.cache
def prepared(case, device):
    """The network of a case with random values, its inputs and its spec: once for all checks, which only read them."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = case.build().double().eval()
    with torch.no_grad():
        for name, tensor in floating_state(model).items():
            positive = "var" in name
            tensor.copy_(torch.as_tensor(rng.uniform(0.5, 1.5, tensor.shape) if positive else rng.normal(size=tensor.shape)))
    drawn = rng.integers(0, case.integers, case.shape) if case.integers else rng.normal(size=case.shape)
    inputs = (torch.as_tensor(drawn).to(device),)
    model.to(device)
    return model, inputs, Architecture.of(model, inputs).spec


class AdapterConformance:
    """Inherit, and set `cases`: name -> Case."""

    cases: dict = {}

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases.values(), ids=list(self.cases))

    @pytest.fixture
    def network(self, case, device):
        """A network, its inputs and its spec, and a generator of random numbers."""
        return *prepared(case, device), np.random.default_rng(1)

    def test_groups_are_those_of_the_hand_written_table(self, case, network):
        _, _, spec, _ = network
        assert spec.sizes == case.groups
        assert {n: g.block_group for n, g in spec.groups.items() if g.block_group} == case.block_groups
        assert {n for n, g in spec.groups.items() if g.scalable} == case.scalable
        assert {n for n, g in spec.groups.items() if g.signable} == case.signable

    def test_every_operation_is_in_the_table(self, case, network):
        _, _, spec, _ = network
        names = {name.removeprefix("aten::") for name, _, _ in spec.operations if name.startswith("aten::")}
        assert names and names <= set(TABLE)

    def test_permuting_scaling_and_flipping_every_group_keeps_the_outputs(self, case, network):
        model, inputs, spec, rng = network
        order = spec.orders(rng.permutation)
        factor = {n: np.ones(g.size) for n, g in spec.groups.items()}
        for name, group in spec.groups.items():
            factor[name] *= rng.uniform(0.5, 2, group.size) if group.scalable else 1
            factor[name] *= rng.choice([-1, 1], group.size) if group.signable else 1
        moved = {n: relabel(t, spec.tensors[n], order, factor) for n, t in floating_state(model).items()}
        expected = model(*inputs)
        assert (torch.func.functional_call(model, moved, inputs) - expected).abs().max() < 1e-9 * (1 + expected.abs().max())

    def test_leaving_out_a_claimed_axis_changes_the_outputs(self, case, network):
        model, inputs, spec, _ = network
        expected = model(*inputs)
        rolled = spec.orders(lambda n: np.roll(np.arange(n), 1))
        for family in spec.permutation_units:
            order = {name: rolled[name] for name in family}
            state = floating_state(model)
            moved = {n: relabel(t, spec.tensors[n], order, {}) for n, t in state.items()}
            for tensor in {t.name for name in family if spec.groups[name].size > 1 for t, _, _ in spec.axes(name)}:
                if tensor not in case.redundant and not torch.equal(moved[tensor], state[tensor]):
                    wrong = {**moved, tensor: state[tensor]}
                    assert (torch.func.functional_call(model, wrong, inputs) - expected).abs().max() > 1e-9, (family, tensor)

    def test_permuted_copies_fuse_back(self, case, network):
        model, inputs, spec, rng = network
        order = spec.orders(rng.permutation)
        twin = plain_copy(model)
        twin.load_state_dict({n: relabel(t, spec.tensors[n], order, {}) for n, t in floating_state(model).items()}, strict=False)
        fused = WassersteinFusion(example_inputs=inputs, correction=None).fit([model, twin]).fused_model_
        expected = model(*inputs)
        assert (fused(*inputs) - expected).abs().max() < 1e-8 * (1 + expected.abs().max())

    def test_twice_the_widths_compute_the_same(self, case, network):
        if not case.widens or not case.groups:
            pytest.skip("this operation does not widen")
        model, inputs, _, _ = network
        wide = WassersteinFusion(target_widths=2.0, example_inputs=inputs, correction=None).fit([model]).fused_model_
        expected = model(*inputs)
        assert (wide(*inputs) - expected).abs().max() < 1e-9 * (1 + expected.abs().max())
