"""Published architectures, against tables of their neuron groups that are written by hand."""

import functools
import warnings
from collections import defaultdict

import numpy as np
import pytest
import torch
from architectures import FIXTURES

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.exceptions import FusionWarning


@functools.cache
def built(name):
    """A network, its table and its inputs."""
    return FIXTURES[name].build()


@functools.cache
def fused_with_permuted_copy(name):
    """A network and a permuted copy, fused: what the fit discovers serves both checks, and a warning about it is an error."""
    network, table, inputs = built(name)
    twin = table.permuted(np.random.default_rng(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusionWarning)
        return WassersteinFusion(example_inputs=inputs, correction=None).fit([network, twin])


def outputs(network, inputs):
    with torch.no_grad():
        out = network(*inputs)
    return torch.cat([o.flatten() for o in (out if isinstance(out, tuple) else (out,))])


def assert_computes_the_same(network, other, inputs, tolerance):
    expected = outputs(network, inputs)
    assert expected.std() > 0
    assert (outputs(other, inputs) - expected).abs().max() < tolerance * expected.abs().max()


def blocks_of(groups):
    """For each unit, that is the set of its (tensor, axis, position), all units of its block; None for one without a block."""
    block_of, members = {}, defaultdict(set)
    for keys, within, count in groups:
        for u, key in enumerate(keys):
            block_of[key] = None if within is None else (within, u * count // len(keys))
            members[block_of[key]].add(key)
    return {key: block and frozenset(members[block]) for key, block in block_of.items()}


def coverage(table, spec):
    """The share of the table's units that the graph has, standing exactly there and in the same blocks."""
    expected = blocks_of((g.keys(), g.block_group, g.blocks) for g in table.groups())
    units = {name: [set() for _ in range(group.size)] for name, group in spec.groups.items()}
    for name in spec.groups:
        for tensor, axis, span in spec.axes(name):
            for unit, row in zip(units[name], span.index.tolist(), strict=True):
                unit |= {(tensor.name, axis, p) for p in row}
    keys = {name: [frozenset(unit) for unit in members] for name, members in units.items()}
    discovered = blocks_of((keys[name], g.block_group, spec.sizes.get(g.block_group)) for name, g in spec.groups.items())
    return np.mean([discovered.get(key, "missing") == block for key, block in expected.items()])


@pytest.mark.parametrize("name", FIXTURES)
def test_the_table_holds(name):
    network, table, inputs = built(name)
    assert_computes_the_same(network, table.permuted(np.random.default_rng(1)), inputs, 1e-9)


@pytest.mark.parametrize("name", FIXTURES)
def test_groups_are_those_of_the_table(name):
    assert coverage(built(name)[1], fused_with_permuted_copy(name).graph_) >= 0.95


@pytest.mark.parametrize("name", FIXTURES)
def test_a_permuted_copy_fuses_back(name):
    network, _, inputs = built(name)
    assert_computes_the_same(network, fused_with_permuted_copy(name).fused_model_, inputs, 1e-6)
