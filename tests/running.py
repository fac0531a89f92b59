"""Runners and parents of given networks: at the first operation, at the end, and what a network computes by itself."""

import copy
import dataclasses
import functools

import torch
from architectures import FIXTURES
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from sklearn_wbfuse.discovery import discover_all, floating_state, plain_copy
from sklearn_wbfuse.execution import Runner, program_of
from sklearn_wbfuse.fusion.parent_factory import ParentFactory, common_dtype

TRACED = {
    name: dataclasses.replace(f, options={**f.options, **({"depth": 2} if name in ("vit", "bert", "gpt") else {})})
    for name, f in FIXTURES.items()
}
"""The published architectures; transformers, whose blocks are all alike, with two of them."""


def placed(batches, device):
    """Inputs on a device."""
    return [pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), tuple(batch)) for batch in batches]


def steps_of(network, batches, device="cpu", program=None):
    """A network in double precision at its first operation; `batches` are tuples of inputs."""
    plain = plain_copy(network).to(device)
    state = floating_state(plain)
    program = program_of(plain, batches[0], next(iter(state.values()))) if program is None else program
    return Runner(program, plain, state, placed(batches, device))


def parents_of(networks, inputs):
    """Networks as the parents of a fusion in equal parts."""
    made = ParentFactory(inputs, common_dtype(networks))
    pairs = zip(map(plain_copy, networks), discover_all(networks, inputs), strict=True)
    return [made.parent(plain, architecture, 1 / len(networks)) for plain, architecture in pairs]


def at_end(network, *inputs, device="cpu"):
    """A network that has computed everything on one batch, and holds it."""
    runner = steps_of(network, [inputs], device)
    for node in runner.nodes:
        runner.run(node)
    return runner


def outputs(runner, batch=0):
    """What the network returns, as a flat list."""
    (returned,) = runner.nodes[-1].args
    return pytree.tree_leaves(map_arg(returned, lambda node: runner.read(node, batch)))


def expected(network, inputs, device="cpu", state=None):
    """The same, computed by the network itself, perhaps with another state."""
    network = copy.deepcopy(network).to(device)
    with torch.no_grad():
        return pytree.tree_leaves(torch.func.functional_call(network, state or {}, placed([inputs], device)[0]))


@functools.cache
def traced(name, device):
    """A network of `TRACED`, two batches of inputs, and its program."""
    network, _, first = TRACED[name].build()
    like = next(iter(floating_state(network).values())).to(device)
    return network, [first, TRACED[name].build(seed=1)[2]], program_of(network, first, like)


def channels_last(y, channel):
    """Activations as rows, shape (positions, channels)."""
    return y.movedim(channel, -1).reshape(-1, y.shape[channel])
