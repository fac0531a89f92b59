"""Values under a budget of memory come back as they were."""

import pytest
import torch
from architectures import FIXTURES
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.discovery import floating_state, plain_copy
from sklearn_wbfuse.execution import Held, Memory, Runner, program_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]


@st.composite
def values(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    tensor = (10 * torch.randn(shape)).to(draw(st.sampled_from(DTYPES)))
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor.transpose(0, -1)[1:]  # a view of a larger storage
    return draw(st.sampled_from([tensor, (tensor, 3.0), [tensor, None, (tensor + tensor,)]]))


def same(a, b):
    flat = [torch.utils._pytree.tree_flatten(v) for v in (a, b)]
    pairs = zip(flat[0][0], flat[1][0], strict=True)
    return flat[0][1] == flat[1][1] and all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@given(st.lists(values(), max_size=5), st.sampled_from([0, 40, 200, float("inf")]))
def test_values_come_back_and_memory_is_kept(given_values, limit):
    memory = Memory(limit)
    held = [Held(memory, [v, v]) for v in given_values]
    assert memory.used <= limit
    for value, both in zip(given_values, held, strict=True):
        assert len(both) == 2 and all(same(restored, value) for restored in both) and same(both[1:][0], value)
    files = [p for both in held for p in both.values if hasattr(p, "exists")]
    assert len(files) == memory.n_filed and all(p.exists() for p in files)
    for both in held:
        both.release()
    assert memory.used == 0 and not any(p.exists() for p in files)


@pytest.mark.parametrize("name", ["resnet50", "attentive_lstm", "bert"])
def test_networks_run_from_files_to_the_same_bits(name):
    network, _, x = FIXTURES[name].build()
    plain, state = plain_copy(network), floating_state(plain_copy(network))
    program, results = program_of(plain, x, next(iter(state.values()))), []
    for memory in (Memory(), Memory(0)):
        runner = Runner(program, plain, state, [x, x], memory)
        for k, node in enumerate(runner.nodes):
            runner.run(node)
            runner.forget(k)
        results.append(runner.outputs(1))
        assert (memory.n_filed > 0) == (memory.limit == 0)
    assert same(*results)
