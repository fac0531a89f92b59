"""Activations as features: measured against NumPy, recorded once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import disguised, networks
from running import channels_last, parents_of, steps_of
from torch import nn

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.alignment.activations import activation_features
from sklearn_wbfuse.correction import Probe, Regression
from sklearn_wbfuse.datasets import MLP
from sklearn_wbfuse.discovery import discover
from sklearn_wbfuse.execution import Memory, program_of
from sklearn_wbfuse.execution.parent_runner import ParentRunner
from sklearn_wbfuse.execution.recording import Positions, Recording
from sklearn_wbfuse.execution.sites import regression_sites


def recording(network, batches, cap=10_000, limit=float("inf"), seed=0):
    program = program_of(network, batches[0], torch.zeros((), dtype=torch.float64))
    return Recording(
        lambda b: steps_of(network, [batches[b]], program=program), len(batches), Positions(cap, seed), Memory(limit)
    )


@given(networks(), st.sampled_from([10_000, 7]), st.sampled_from([0, float("inf")]))
def test_recorded_rows_are_those_of_the_whole_value(network, cap, limit):
    batches = (
        [(network.example,), (network.example + network.example.std(),)]
        if network.example.is_floating_point()
        else [(network.example,)]
    )
    recorder = recording(network, batches, cap, limit)
    wanted = {
        recorder.position[e.node]: e.layers[0].channel
        for e in regression_sites(recorder.nodes, recorder.parameters).values()
        if e.layers
    }
    recorder.record(wanted)
    recorder.record({})
    assert recorder.n_runs == 1
    whole = steps_of(network, batches)
    for position, node in enumerate(whole.nodes):
        whole.run(node)
        if position in wanted:
            for batch in range(len(batches)):
                chosen = recorder.chosen(position, wanted[position], batch)
                rows = channels_last(whole.read(node, batch), wanted[position])
                torch.testing.assert_close(recorder.rows(position, wanted[position], batch), rows[chosen])
                assert len(chosen) == min(len(rows), -(-cap // len(batches)) if len(rows) * len(batches) > cap else len(rows))


class TestMeasures:
    def extract_features(self, measure, network=None):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double() if network is None else network
        x = torch.randn(40, 3, dtype=torch.float64)
        features, arrays = activation_features(recording(network, [(x,)]), discover(network, (x[:2],)), measure)
        assert next(f.groups for f in features) == ("0",)
        return arrays[0], network[0](x).detach()

    def test_squared_distances_are_those_before_the_nonlinearity(self):
        array, z = self.extract_features("distance")
        np.testing.assert_allclose(torch.cdist(array, array).square(), np.square(z.T[:, None] - z.T).mean(2), atol=1e-12)

    def test_squared_distances_are_twice_one_minus_the_correlation_after_it(self):
        array, z = self.extract_features("correlation")
        np.testing.assert_allclose(torch.cdist(array, array).square() / 2, 1 - np.corrcoef(z.relu().T), atol=1e-7)

    def test_correlation_does_not_see_scales_and_silent_neurons_are_0(self):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
        before, _ = self.extract_features("correlation", network)
        with torch.no_grad():
            network[0].weight *= 3
            network[0].bias *= 3
            network[0].weight[0] = 0
        after, _ = self.extract_features("correlation", network)
        torch.testing.assert_close(after[1:], before[1:])
        assert not after[0].any()


@pytest.mark.parametrize("measure", ["correlation", "distance"])
@given(network=networks(), seed=st.integers(0, 99))
def test_permuted_copies_fuse_back_by_activations_alone(measure, network, seed):
    copies = [network, disguised(network, np.random.default_rng(seed))]
    options = {"measure": measure, "example_inputs": (network.example,), "random_state": 0, "cost": 0.5}
    fused = WassersteinFusion(probe=Probe("noise", n_samples=60), correction=None, **options).fit(copies).fused_model_
    torch.testing.assert_close(fused(network.example), network(network.example))


def test_parents_run_once_for_all_that_looks_at_them():
    recordings = []

    class Watched(Regression):
        def correct(self, fused, parents):
            recordings.extend(parent.recording for parent in parents)
            return super().correct(fused, parents)

    given_rows = FusionInput([MLP([4, 6, 3]) for _ in range(3)], torch.randn(60, 4))
    fusion = WassersteinFusion(cost=0.5, correction=Watched(), random_state=0).fit(given_rows)
    assert [recording.n_runs for recording in recordings] == [1, 1, 1] and fusion.agreement_ is not None


def test_little_memory_changes_nothing_but_batches():
    models, X = [MLP([4, 6, 3]) for _ in range(2)], torch.randn(30, 4)
    probes = [Probe("data", n_mixed=0), Probe("data", n_mixed=0, working_memory=1e-4)]
    fits = [WassersteinFusion(cost=0.5, probe=p, random_state=0).fit(FusionInput(models, X)).fused_model_ for p in probes]
    torch.testing.assert_close(fits[1](X), fits[0](X))


def test_recordings_of_large_networks_have_fewer_positions():
    """Files stay within a few times the memory."""
    models, X = [MLP([4, 300, 300, 3]) for _ in range(2)], torch.randn(2000, 4)
    parents = parents_of(models, (X[:2],))
    for memory, cap in ((1, 4 * 2**20 // (4 * 2 * 603)), (100, 20_000), (0, 500)):
        probe = Probe("data", n_samples=20, working_memory=memory)
        rng = np.random.RandomState(0)
        parent_runner = ParentRunner(parents, FusionInput(models, X), probe, rng)
        assert [parent_runner.recording(i).positions.cap for i in (0, 1)] == [cap, cap]
