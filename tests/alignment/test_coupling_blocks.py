"""Groups in blocks, on networks that are given as data: attention and convolutions in groups."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_wbfuse.alignment import Carrier
from sklearn_wbfuse.alignment.features import extract_features
from sklearn_wbfuse.alignment.problem import Problem, random_start
from sklearn_wbfuse.alignment.schedules import match_all_to_target, match_to_target, solve_layerwise
from sklearn_wbfuse.alignment.sweeps import entropic_step, solve_joint
from sklearn_wbfuse.exceptions import WidthError
from sklearn_wbfuse.network.couplings import Coupling
from sklearn_wbfuse.network.groups import Group, LabelledTensor, Span, relabel
from sklearn_wbfuse.network.mixture import Mixture
from sklearn_wbfuse.network.spec import NetworkSpec


def axis(group, size, role, odd=False):
    return (Span(group, np.arange(size)[:, None], role, odd=odd),)


def attention(heads=3, d=4, d_value=3, e=6, bias_table=False):
    """Query and key dims, value dims, and the heads that both lie in; signs go with both."""
    qk, v = heads * d, heads * d_value
    tensors = [
        LabelledTensor("q", (qk, e), (axis("qk", qk, "out", True), ())),
        LabelledTensor("k", (qk, e), (axis("qk", qk, "out", True), ())),
        LabelledTensor("v", (v, e), (axis("v", v, "out", True), ())),
        LabelledTensor("o", (5, v), ((), axis("v", v, "in", True))),
    ]
    if bias_table:
        tensors.append(LabelledTensor("table", (7, heads), ((), axis("heads", heads, "out"))))
    groups = [
        Group("heads", heads),
        Group("qk", qk, signable=True, block_group="heads"),
        Group("v", v, signable=True, block_group="heads"),
    ]
    return NetworkSpec({g.name: g for g in groups}, {t.name: t for t in tensors})


def grouped_convolution(blocks=3, d=4, d_out=5):
    """A convolution in groups between two others."""
    a, b = blocks * d, blocks * d_out
    tensors = [
        LabelledTensor("one", (a, 3), (axis("a", a, "out"), ())),
        LabelledTensor("two", (b, a, 3), (axis("b", b, "out"), axis("a", a, "in"), ()), diagonal=blocks),
        LabelledTensor("bias", (b,), (axis("b", b, "out"),)),
        LabelledTensor("three", (6, b), ((), axis("b", b, "in"))),
    ]
    groups = [Group("blocks", blocks), Group("a", a, block_group="blocks"), Group("b", b, block_group="blocks")]
    return NetworkSpec({g.name: g for g in groups}, {t.name: t for t in tensors})


def state(spec, rng):
    return {
        n: t.fold(torch.as_tensor(rng.normal(size=t.shape))) if t.diagonal > 1 else torch.as_tensor(rng.normal(size=t.shape))
        for n, t in spec.tensors.items()
    }


def shuffled(spec, rng):
    """A permutation of blocks and within blocks, and signs."""
    order, sign = {}, {}
    for name, group in spec.groups.items():
        if group.block_group is None:
            order[name] = rng.permutation(group.size)
            continue
        d = group.size // spec.sizes[group.block_group]
        order[name] = np.concatenate([b * d + rng.permutation(d) for b in order[group.block_group]])
        if group.signable:
            sign[name] = rng.choice([-1.0, 1.0], group.size)
    return order, sign


def problem_of(spec, states, weights=None, **options):
    both = [extract_features(spec, s, 1.0) for s in states]
    block_groups = {n: g.block_group for n, g in spec.groups.items() if g.block_group}
    weights = weights or [1 / len(states)] * len(states)
    options = {"sizes": spec.sizes, "source_sizes": [spec.sizes] * len(states), **options}
    return Problem(both[0][0], [arrays for _, arrays in both], mixture=Mixture(weights), block_groups=block_groups, **options)


def keeps_blocks(problem, plans):
    for name, blocks in problem.block_groups.items():
        n, m = plans[blocks].shape
        c = plans[name]
        mass = c.mass.reshape(n, c.shape[0] // n, m, c.shape[1] // m).sum((1, 3))
        np.testing.assert_allclose(mass, plans[blocks].mass, atol=1e-9)


GRAPHS = [attention(), attention(bias_table=True), grouped_convolution(), grouped_convolution(4, 1, 2)]


@given(st.sampled_from(range(len(GRAPHS))), st.integers(0, 2**31 - 1), st.sampled_from([2, 3]))
def test_permuted_copies_are_found(which, seed, count):
    spec, rng = GRAPHS[which], np.random.default_rng(seed)
    first = state(spec, rng)
    moves = [shuffled(spec, rng) for _ in range(count - 1)]
    copies = [{n: relabel(t, spec.tensors[n], *move) for n, t in first.items()} for move in moves]
    problem = problem_of(spec, [first, *copies])
    for start in (solve_layerwise(problem), match_all_to_target(problem, problem.source_arrays[0])):
        solution = solve_joint(problem, start)
        assert start.energy < 1e-12 and solution.energy < 1e-12
        for couplings in solution.plans:
            keeps_blocks(problem, couplings)
        for couplings, (order, _), copy in zip(solution.plans[1:], moves, copies, strict=True):
            blocks = next(iter(spec.groups))
            np.testing.assert_array_equal(order[blocks][couplings[blocks].index], np.arange(spec.sizes[blocks]))
            carried = Carrier(spec, spec, couplings, {}, {}).state(copy)
            for n, t in first.items():
                torch.testing.assert_close(carried[n], t)


@given(st.sampled_from(range(len(GRAPHS))), st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.01]))
def test_sweeps_keep_blocks_and_lower_the_energy(which, seed, reg):
    spec, rng = GRAPHS[which], np.random.default_rng(seed)
    problem = problem_of(spec, [state(spec, rng) for _ in range(3)], reg=reg, random_state=np.random.RandomState(0))
    for start in (solve_layerwise(problem), random_start(problem)):
        solution = solve_joint(problem, start)
        assert solution.energy <= start.energy * (1 + 1e-9)
        for couplings in (*start.plans, *solution.plans):
            keeps_blocks(problem, couplings)


@pytest.mark.parametrize("which", range(len(GRAPHS)))
@pytest.mark.parametrize("swept", [False, True])
@given(st.integers(0, 2**31 - 1), st.sampled_from([2, 3]), st.sampled_from([0.01, 0.3]))
def test_the_entropic_step_keeps_blocks_and_marginals(which, swept, seed, count, reg):
    spec, rng = GRAPHS[which], np.random.default_rng(seed)
    problem = problem_of(spec, [state(spec, rng) for _ in range(count)], reference=count - 1)
    exact = solve_joint(problem, solve_layerwise(problem)) if swept else random_start(problem)
    blurred = entropic_step(replace(problem, reg=reg), exact)
    for couplings, soft in zip(exact.plans, blurred.plans, strict=True):
        keeps_blocks(problem, soft)
        assert max(c.marginal_error() for c in soft.values()) < 1e-9
        if couplings is exact.plans[-1]:
            assert all(np.array_equal(couplings[g].plan, soft[g].plan) for g in couplings)
    assert blurred.energy == pytest.approx(problem.solution(blurred.plans).energy)


@pytest.mark.parametrize("pin", ["heads", "qk"])
def test_pinned_blocks_stay(pin):
    spec, rng = attention(), np.random.default_rng(0)
    problem = problem_of(spec, [state(spec, rng) for _ in range(2)])
    pinned = {"heads": Coupling.identity(3)} | ({"qk": Coupling.identity(12)} if pin == "qk" else {})
    problem = replace(problem, pinned=[pinned for _ in problem.source_arrays])
    for start in (solve_layerwise(problem), random_start(problem)):
        for couplings in solve_joint(problem, start).plans:
            keeps_blocks(problem, couplings)
            assert all(np.array_equal(couplings[g].index, c.index) for g, c in pinned.items())


@pytest.mark.parametrize(("heads", "d", "d_value"), [(6, 4, 3), (3, 6, 5), (6, 2, 2)])
def test_targets_of_other_sizes(heads, d, d_value):
    spec, wide = attention(), attention(heads, d, d_value)
    rng = np.random.default_rng(0)
    states = [state(spec, rng) for _ in range(2)]
    problem = problem_of(spec, states, sizes=wide.sizes)
    for start in (solve_layerwise(problem), random_start(problem)):
        solution = solve_joint(problem, start)
        assert solution.energy <= start.energy * (1 + 1e-9)
        for s, couplings in zip(states, solution.plans, strict=True):
            keeps_blocks(problem, couplings)
            moved = Carrier(spec, wide, couplings, {}, {}).state(s)
            assert {n: t.shape for n, t in moved.items()} == {n: torch.Size(t.shape) for n, t in wide.tensors.items()}


def test_heads_that_do_not_divide_have_their_error():
    rng = np.random.default_rng(0)
    problem = problem_of(attention(), [state(attention(), rng) for _ in range(2)], sizes=attention(4).sizes)
    for schedule in (solve_layerwise, random_start):
        with pytest.raises(WidthError, match=r"'heads' .*multiple of .* 3\. Got 4"):
            schedule(problem)


def test_a_convolution_keeps_its_number_of_groups():
    spec, other = grouped_convolution(), grouped_convolution(6)
    with pytest.raises(WidthError, match=r"number of groups.* 3 \(diagonal blocks of 'two'\) in a model and 6 in the target"):
        Carrier(spec, other, {}, {}, {})


@given(st.integers(0, 2**31 - 1))
def test_a_group_in_blocks_that_stands_twice_in_a_tensor(seed):
    """A residual stream under a group norm: x + W x."""
    rng, blocks, d = np.random.default_rng(seed), 3, 4
    n = blocks * d
    tensors = [
        LabelledTensor("a", (n, 5), (axis("x", n, "out"), ())),
        LabelledTensor("w", (n, n), (axis("x", n, "out"), axis("x", n, "in"))),
        LabelledTensor("b", (3, n), ((), axis("x", n, "in"))),
    ]
    spec = NetworkSpec({g.name: g for g in (Group("g", blocks), Group("x", n, block_group="g"))}, {t.name: t for t in tensors})
    first, (order, _) = state(spec, rng), shuffled(spec, rng)
    copy = {k: relabel(t, spec.tensors[k], order, {}) for k, t in first.items()}
    problem = problem_of(spec, [first, copy])
    solution = solve_joint(problem, solve_layerwise(problem))
    assert solution.energy < 1e-12
    other = problem_of(spec, [first, state(spec, rng), state(spec, rng)])
    start = solve_layerwise(other)
    solution = solve_joint(other, start)
    assert solution.energy <= start.energy * (1 + 1e-9)
    for couplings in solution.plans:
        keeps_blocks(other, couplings)


def test_match_respects_blocks():
    spec, rng = attention(), np.random.default_rng(0)
    one, two = state(spec, rng), state(spec, rng)
    problem = problem_of(spec, [one])
    targets = extract_features(spec, two, 1.0)[1]
    couplings = match_to_target(problem, targets)
    keeps_blocks(problem, couplings)
    assert list(couplings) == ["heads", "qk", "v"]
