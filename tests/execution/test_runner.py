"""Networks run operation by operation compute what they compute as a whole."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import networks, randomised
from running import TRACED, at_end, expected, outputs, steps_of, traced
from torch import nn

from sklearn_wbfuse.discovery import floating_state, plain_copy
from sklearn_wbfuse.exceptions import DiscoveryError
from sklearn_wbfuse.execution import Runner, program_of

DOUBLE = torch.zeros((), dtype=torch.float64)


def run_and_forget(runner):
    for k, node in enumerate(runner.nodes):
        runner.run(node)
        runner.forget(k)
    return runner


def assert_computed(runner, network, batches, device):
    for batch, inputs in enumerate(batches):
        torch.testing.assert_close(outputs(runner, batch), expected(network, inputs, device))


def assert_only_outputs_are_held(runner):
    (returned,) = runner.nodes[-1].args
    assert set(runner.values) == {node for node in torch.utils._pytree.tree_leaves(returned) if node not in runner.parameters}


class TestOutputs:
    @given(network=networks())
    def test_several_batches(self, device, network):
        batches = [(network.example,), (network.example.flip(0),), (network.example.flip(1),)]
        runner = run_and_forget(steps_of(network, batches, device))
        assert_computed(runner, network, batches, device)
        assert_only_outputs_are_held(runner)

    @pytest.mark.parametrize("name", TRACED)
    def test_published_architectures_with_the_program_of_another_seed(self, device, name):
        _, batches, program = traced(name, device)
        other = TRACED[name].build(seed=2)[0]
        runner = run_and_forget(steps_of(other, batches, device, program))
        assert_computed(runner, other, batches, device)
        assert_only_outputs_are_held(runner)

    def test_values_stay_in_their_dtype_and_device(self, device):
        network = randomised(MixedInputs(), np.random.default_rng(0))
        runner = at_end(network, *network.inputs(), device=device)
        for node in runner.nodes[:-1]:
            value = runner.read(node, 0)
            if isinstance(value, torch.Tensor):
                assert (value.dtype, value.device.type) == (node.meta["val"].dtype, device.type)

    def test_other_dtypes_are_cast(self, device):
        """A network in single precision and its inputs, with a state in double precision."""
        torch.manual_seed(0)
        network, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).eval(), torch.randn(5, 3)
        program = program_of(network, (x,), DOUBLE.to(device))
        state = {n: t.double().to(device) for n, t in floating_state(network).items()}
        runner = run_and_forget(Runner(program, plain_copy(network), state, [(x,)]))
        torch.testing.assert_close(outputs(runner), expected(network.double(), (x.double(),), device))


class TestState:
    @given(network=networks(), seed=st.integers(0, 99))
    def test_operations_see_the_tensors_of_their_time(self, device, network, seed):
        """A tensor changed just before it is read first is a changed network; after it was read last, nothing has changed."""
        x, rng = (network.example,), np.random.default_rng(seed)
        program = program_of(network, x, DOUBLE.to(device))
        runner = steps_of(network, [x], device, program)
        name = rng.choice(sorted(n for node, n in runner.parameters.items() if node.users))
        readers = [runner.position[user] for node, n in runner.parameters.items() if n == name for user in node.users]
        old = floating_state(network)[name].to(device)
        new = old + torch.as_tensor(rng.uniform(0.1, 0.5, old.shape)).to(old)
        for position, state in ((min(readers), {name: new}), (max(readers) + 1, {})):
            runner = steps_of(network, [x], device, program)
            for k, node in enumerate(runner.nodes):
                if k == position:
                    runner.state[name] = new
                runner.run(node)
                runner.forget(k)
            torch.testing.assert_close(outputs(runner), expected(network, x, device, state))

    def test_the_given_mapping_is_not_changed(self):
        network, x = nn.Linear(3, 2).double().eval(), torch.ones(1, 3, dtype=torch.float64)
        state = floating_state(network)
        runner = Runner(program_of(network, (x,), DOUBLE), network, state, [(x,)])
        runner.state["weight"] = torch.zeros(2, 3)
        assert state["weight"].data_ptr() == network.weight.data_ptr()

    def test_tied_tensors_have_one_name(self, device):
        network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double().eval()
        network[2].weight = network[0].weight
        x = (torch.ones(2, 3, dtype=torch.float64),)
        runner = steps_of(network, [x], device)
        assert set(runner.parameters.values()) == {"0.weight", "0.bias", "2.bias"}
        runner.state["0.weight"] = runner.state["0.weight"] + 1
        state = {"0.weight": runner.state["0.weight"], "2.weight": runner.state["0.weight"]}
        torch.testing.assert_close(outputs(run_and_forget(runner)), expected(network, x, device, state))


class MixedInputs(nn.Module):
    """Numbers and None among the inputs; tensors that are no parameters: buffers of all kinds, an attribute, one in the code."""

    def __init__(self, seed=0):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.linear = nn.Linear(3, 4)
        self.register_buffer("kept", torch.as_tensor(rng.normal(size=4)))
        self.register_buffer("dropped", torch.as_tensor(rng.normal(size=4)), persistent=False)
        self.register_buffer("order", torch.as_tensor(rng.permutation(4)))
        self.inner = nn.Module()
        self.inner.attribute = torch.as_tensor(rng.normal(size=4))
        self.example = torch.zeros(2, 3)

    def inputs(self, seed=0):
        rng = np.random.default_rng(seed)
        return torch.as_tensor(rng.normal(size=(2, 3))), 3, {"b": torch.as_tensor(rng.normal(size=(2, 4))), "a": None}

    def forward(self, x, factor, more):
        y = (
            self.linear(x)[:, self.order] * factor
            + more["b"]
            + torch.tensor([0.5, 0.0, 1.0, 2.0], dtype=torch.float64).to(x.device)
        )
        return {"y": y * self.kept, "rest": (y.exp() * self.dropped * self.inner.attribute.to(x), x)}


class TestWhatIsNotAParameter:
    def test_each_network_has_its_own(self, device):
        first, second = MixedInputs(0).double().eval(), MixedInputs(1).double().eval()
        batches = [first.inputs(0), first.inputs(1)]
        program = program_of(first, batches[0], DOUBLE.to(device))
        for network in (first, second):
            runner = run_and_forget(steps_of(network, batches, device, program))
            assert_computed(runner, network, batches, device)
            assert_only_outputs_are_held(runner)
            assert set(runner.parameters.values()) == {"linear.weight", "linear.bias", "kept"}

    def test_one_placeholder_for_each_input(self, device):
        network = MixedInputs().double().eval()
        runner = steps_of(network, [network.inputs()], device)
        leaves = torch.utils._pytree.tree_leaves(network.inputs())
        held = [runner.values[node][0] for node in runner.inputs]
        assert len(held) == len(leaves) == 4
        for one, other in zip(held, leaves, strict=True):
            assert torch.equal(one.cpu(), other) if isinstance(other, torch.Tensor) else one == other


class InPlace(nn.Module):
    """Operations in place, whose trace has to be made functional, and one that nothing reads."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.alone = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
        self.layer, self.drop, self.example = nn.LayerNorm(3), nn.Dropout(0.5, inplace=True), torch.zeros(2, 2, 3, 3)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        y += self.alone(y)
        y.mean((0, 1)).softmax(0)
        y[:, 0] = 1.0
        return self.drop(self.layer(y.mean((2, 3)).to(y.dtype)))


class TestPrograms:
    def test_batch_norms_keep_their_name_and_nothing_is_unused(self, device):
        network = randomised(InPlace(), np.random.default_rng(0))
        x = (network.example,)
        runner = run_and_forget(steps_of(network, [x], device))
        assert_computed(runner, network, [x], device)
        operations = [str(node.target) for node in runner.nodes if node.op == "call_function"]
        assert operations.count("aten.batch_norm.default") == 2
        assert not [o for o in operations if "native" in o or "softmax" in o or "assert" in o]
        assert all(node.users for node in runner.nodes if node.op == "call_function")

    def test_a_network_that_does_not_run(self):
        with pytest.raises(DiscoveryError, match="does not run"):
            program_of(nn.Linear(3, 2), (torch.zeros(2, 4),), DOUBLE)


class TestHeld:
    def test_kept_until_a_position(self):
        network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Tanh(), nn.Sigmoid()).double().eval()
        runner = steps_of(network, [(torch.ones(1, 3, dtype=torch.float64),)])
        *_, relu, tanh, sigmoid, output = runner.nodes
        runner.keep([runner.inputs[0], relu], runner.position[tanh] + 1)
        runner.keep([relu], 0)  # does not shorten it
        held = []
        for k, node in enumerate(runner.nodes):
            runner.run(node)
            runner.forget(k)
            held.append(set(runner.values))
        assert held[-3:] == [{runner.inputs[0], relu, tanh}, {sigmoid}, {sigmoid}]
        assert [str(output)] == ["output"]

    def test_inputs_and_parameters_that_are_returned(self, device):
        class Returns(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 2)

            def forward(self, x, unused):
                return x, self.linear(x), self.linear.weight

        network, x = Returns().double().eval(), torch.ones(1, 3, dtype=torch.float64)
        runner = run_and_forget(steps_of(network, [(x, x)], device))
        assert_computed(runner, network, [(x, x)], device)
        assert_only_outputs_are_held(runner)
