"""The parents on the inputs of a probe, which costs of activations and corrections are computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..data.fusion_input import FusionInput
from ..discovery import Architecture, resized_inputs
from ..exceptions import DiscoveryError, FusionError, NonFiniteError
from ..network.types import Inputs, State
from ..probes import zipf_chain
from .ascent import gradient_ascent
from .memory import Memory
from .parent import Parent
from .probe import (
    Probe,
    coloured_noise,
    interpolated,
    is_drawn,
    mixed_rows,
    mixing_shares,
    white_noise,
    with_procedural,
    with_tokens,
)
from .reading import read_as
from .recording import Positions, Recording
from .runner import Runner, program_of
from .sites import RegressionSite, regression_sites

__all__ = ["HELD_OUT", "MAX_ROWS", "ParentRunner", "n_positions_within", "n_recorded_units", "n_samples_in", "select_samples"]

HELD_OUT = 5
"""Every fifth sample is held out, for the step lengths of regressions and for the agreement of the fused network."""

_FEWEST = 5
"""Number of rows below which no correction makes sense."""

_FEW_ROWS = 500
"""Number of positions that are recorded whatever memory they take."""

_ENOUGH = 50
"""Number of held-out samples that is enough to estimate a share."""

MAX_ROWS = 20000
"""Number of recorded positions of a value, unless a correction asks for another."""

_FILES = 4
"""Size of the parents' recordings, mostly in files, relative to the memory limit."""


class ParentRunner:
    """The parents and the inputs that they are run on.

    Parameters
    ----------
    parents : list of Parent
    data : FusionInput or None
    probe : Probe
    rng : RandomState
    mixes : bool, default=False
        Whether to add mixed rows.

    Attributes
    ----------
    batches : list of tuple
        The inputs.
    source : str
        The kind of the inputs: "rows" of the data, or the kinds that were drawn, such as "noise".
    """

    def __init__(
        self,
        parents: Sequence[Parent],
        data: FusionInput | None,
        probe: Probe,
        rng: np.random.RandomState,
        *,
        mixes: bool = False,
    ):
        self.parents, self.plains = list(parents), [p.plain for p in parents]
        self.generator = torch.Generator().manual_seed(int(rng.randint(np.iinfo(np.int32).max)))
        self.programs: dict[int, Any] = {}
        self.memory = Memory(probe.budget)
        self.recordings: dict[tuple[int, int], Recording] = {}
        self.positions: dict[int, Positions] = {}
        self.n_unmixed: float = float("inf")  # samples of a batch before its mixed rows
        if probe.kind == "data" and data is None:
            raise FusionError("probe='data' needs rows. Got models alone; fit(FusionInput(models, X)).")
        if data is None or probe.kind not in ("auto", "data"):
            self.batches, self.source = self._drawn(probe)
        else:
            self.batches, self.source = self._rows(data, probe, rng, mixes), "rows"
        self.seed = int(torch.randint(2**31, (), generator=self.generator))

    def held_out(self) -> list[Tensor]:
        """Return masks of the samples of every batch that no regression is fitted on: unmixed rows if there are enough of them,
        and all samples if too few are held out.
        """
        sizes = list(map(n_samples_in, self.batches))
        index = torch.arange(sum(sizes)).split(sizes)
        held_out = [i % HELD_OUT == HELD_OUT - 1 for i in index]
        unmixed = [mask & (torch.arange(n) < self.n_unmixed) for mask, n in zip(held_out, sizes, strict=True)]
        for masks in (unmixed, held_out):
            if sum(int(mask.sum()) for mask in masks) >= _ENOUGH:
                return masks
        return [torch.ones_like(mask) for mask in held_out]

    def outputs(self, i: int) -> Sequence[Any]:
        """Return the flat outputs of a parent for each batch; nothing if it has not run on all of them."""
        return next((r.outputs for (parent, _), r in self.recordings.items() if parent == i and r.outputs), [])

    @property
    def has_rows_alone(self) -> bool:
        """Whether all inputs are unmixed rows of data."""
        return self.source == "rows" and self.n_unmixed == float("inf")

    def mark(self) -> str:
        """Return a hash of the inputs and of the random state: with the same hash the same networks have the same activations."""
        digest = hashlib.blake2b(self.generator.get_state().numpy().tobytes(), digest_size=16)
        for leaf in pytree.tree_leaves(self.batches):
            if isinstance(leaf, Tensor):
                digest.update(leaf.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def runner(self, i: int, batches: Sequence[Inputs] | None = None) -> Runner:
        """Return a runner of a parent, on the probe's inputs or on others."""
        parent = self.parents[i]
        return self._runner(parent.architecture, self.plains[i], parent.state, self.batches if batches is None else batches)

    def recording(self, i: int, max_rows: int = MAX_ROWS) -> Recording:
        """Return the recording of a parent at up to `max_rows` positions; the same one for the same number."""
        if (i, max_rows) not in self.recordings:
            positions = self._positions(max_rows)
            self.recordings[i, max_rows] = self._recording(lambda batch: self.runner(i, [self.batches[batch]]), positions)
        return self.recordings[i, max_rows]

    def _positions(self, max_rows: int) -> Positions:
        """Return positions for all parents, fewer than `max_rows` if files would grow much larger than the memory limit."""
        if max_rows not in self.positions:
            units = sum(n_recorded_units(self.runner(i, self.batches[:1])) for i in range(len(self.parents)))
            self.positions[max_rows] = Positions(n_positions_within(_FILES * self.memory.limit, units, max_rows), self.seed)
        return self.positions[max_rows]

    def record_further(self, network: Parent) -> Recording:
        """Return the recording of a further network of the target's widths, at the positions of the parents' recordings."""
        plain, state = network.plain, network.state
        program = program_of(plain, self.batches[0], next(iter(state.values())))
        positions = self.recording(0).positions
        return self._recording(lambda batch: Runner(program, plain, state, [self.batches[batch]]), positions)

    def _recording(self, runner: Callable[[int], Runner], positions: Positions) -> Recording:
        return Recording(runner, len(self.batches), positions, self.memory)

    def target_runner(self, target: Architecture, state: State) -> Runner:
        """Return a runner of the fused network on the probe's inputs."""
        return self._runner(target, self._plain_of(target), state, self.batches, self.memory)

    def _plain_of(self, architecture: Architecture) -> nn.Module:
        """Return a network of an architecture: a parent if possible, since other fits may run the architecture's own network."""
        plains = (plain for p, plain in zip(self.parents, self.plains, strict=True) if p.architecture.plain is architecture.plain)
        return next(plains, architecture.plain)

    def _runner(
        self,
        architecture: Architecture,
        plain: nn.Module,
        state: State,
        batches: Sequence[Inputs],
        memory: Memory | None = None,
    ) -> Runner:
        resized = [resized_inputs(b, self.parents[0].spec, architecture.spec.sizes) for b in batches]
        key = id(architecture.plain)
        if key not in self.programs:
            self.programs[key] = program_of(self._plain_of(architecture), resized[0], next(iter(state.values()), torch.zeros(())))
        return Runner(self.programs[key], plain, state, resized, memory)

    def _rows(self, data: FusionInput, probe: Probe, rng: np.random.RandomState, mixes: bool) -> list[Inputs]:
        """Return rows of the data, and mixed rows behind them, in batches of one size."""
        n = len(data)
        if n < _FEWEST:
            raise FusionError(f"Activations need at least {_FEWEST} rows. Got {n}; give more rows, or set probe='noise'.")
        parts = [data[rng.permutation(n)[: probe.n_samples]].tensors(self.plains[0])]
        for k, tensor in enumerate(parts[0]):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(f"Rows must be finite. Got NaN or infinite values in input {k}.")
        n_mixed = min(probe.n_mixed, probe.n_samples - len(parts[0][0])) if mixes else 0
        if n_mixed and all(t.is_floating_point() for t in parts[0]):
            parts.append(mixed_rows(parts[0], n_mixed, self.generator))
        count = -(-sum(len(p[0]) for p in parts) // probe.batch_size)
        pieces = [_split(p, count) for p in parts]
        batches = [tuple(torch.cat(same) for same in zip(*both, strict=True)) for both in zip(*pieces, strict=True)]
        if len(parts) > 1:
            self.n_unmixed = len(pieces[0][0][0])
            self._mix_images(parts[0], batches)
        return batches

    def _mix_images(self, rows: tuple[Tensor, ...], batches: list[tuple[Tensor, ...]]) -> None:
        """Replace the mixed rows of images by mixtures of a row and a drawn image."""
        images = {leaf: r for leaf, r in read_as("auto", self.runner(0, batches)).items() if r.kind == "images"}
        n_unmixed = int(self.n_unmixed)
        for batch, drawn in zip(batches, with_procedural(images, batches, rows, self.generator), strict=True):
            number = len(batch[0]) - n_unmixed
            indices, shares = (
                torch.randint(len(rows[0]), (number,), generator=self.generator),
                mixing_shares(number, self.generator),
            )
            for leaf in images:
                batch[leaf][n_unmixed:] = interpolated(rows[leaf][indices], drawn[leaf][n_unmixed:], shares)

    def _drawn(self, probe: Probe) -> tuple[list[Inputs], str]:
        """Draw inputs from a procedure, or noise; return them and their kinds."""
        examples = self.parents[0].architecture.inputs
        white = self._white(probe, examples)
        first = self.runner(0, white)
        strings = None if probe.kind == "noise" else zipf_chain
        with_strings = [with_tokens(first, batch, self.generator, strings) for batch in white]
        leaves = zip(pytree.tree_leaves(with_strings[0]), pytree.tree_leaves(examples), strict=True)
        if not any(is_drawn(t) or (isinstance(t, Tensor) and not _repeats(t, e)) for t, e in leaves):
            raise FusionError(
                "Inputs can only be drawn if they are floating-point or tokens of an embedding. Got neither; give rows: "
                "fit(FusionInput(models, X))."
            )
        readings = {} if probe.kind == "noise" else read_as(probe.kind, self.runner(0, with_strings))
        floating = [k for k, t in enumerate(pytree.tree_leaves(white[0])) if is_drawn(t)]
        drawn = with_strings
        if set(readings) != set(floating) or "sequences" in {r.kind for r in readings.values()}:
            networks = [self.runner(i, with_strings) for i in range(len(self.parents))]
            drawn = coloured_noise(networks, [p.weight for p in self.parents], examples, self.generator)
        drawn = with_procedural(readings, drawn, examples, self.generator)
        if "images" in {r.kind for r in readings.values()}:
            plains = [plain for p, plain in zip(self.parents, self.plains, strict=True) if p.weight]
            image_leaves = [k for k, r in readings.items() if r.kind == "images"]
            drawn = [gradient_ascent(plains, batch, image_leaves, probe.n_steps, self.generator) for batch in drawn]
        kinds = [r.kind for r in readings.values()] or (["noise"] if floating or probe.kind == "noise" else ["tokens"])
        return drawn, " and ".join(dict.fromkeys(kinds))

    def _white(self, probe: Probe, examples: Sequence[Any]) -> list[Inputs]:
        """Return white noise in batches of a size on which the networks run."""
        count = -(-probe.n_samples // probe.batch_size)
        for size in (-(-probe.n_samples // count), n_samples_in(examples)):
            white = [white_noise(examples, size, self.generator) for _ in range(-(-probe.n_samples // size))]
            try:
                self.runner(0, white)
                break
            except DiscoveryError:  # the batch size may be written into the code
                self.programs.clear()
                if size == n_samples_in(examples):
                    raise
        return white


def n_samples_in(batch: Any) -> int:
    """Return the number of samples of inputs, the size of the first dimension of the first tensor."""
    return next((len(t) for t in pytree.tree_leaves(batch) if isinstance(t, Tensor) and t.dim()), 1)


def select_samples(values: Any, mask: Tensor) -> Any:
    """Select samples of inputs or outputs by a mask; tensors with another number of rows are unchanged."""
    n = len(mask)
    return pytree.tree_map(lambda t: t[mask.to(t.device)] if isinstance(t, Tensor) and t.dim() and len(t) == n else t, values)


def _repeats(tensor: Tensor, example: Tensor) -> bool:
    """Return whether a tensor consists of repeated rows of an example."""
    return torch.equal(tensor, example[torch.arange(len(tensor)) % len(example)] if tensor.dim() else example)


def _split(rows: Sequence[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """Split rows into `count` batches of one size; the last ones are filled up with rows of the first."""
    n = len(rows[0])
    size = -(-n // count)
    index = torch.arange(count * size) % n
    return [tuple(t[index[k * size : (k + 1) * size]] for t in rows) for k in range(count)]


def n_positions_within(n_bytes: float, units: int, n_max: int) -> int:
    """Return how many positions of `units` units fit into `n_bytes` in single precision; at least a few, at most `n_max`."""
    return int(min(n_max, max(_FEW_ROWS, n_bytes / (4 * max(units, 1)))))


def n_recorded_units(network: Recording | Runner) -> int:
    """Return how many numbers are recorded of a network per position, at all its sites."""
    return sum(map(_units, regression_sites(network.nodes, network.parameters).values()))


def _units(site: RegressionSite) -> int:
    """Return how many numbers are recorded per position of a site."""
    if site.cells:
        return sum(w.meta["val"].shape[0] for w in site.node.args[2])  # type: ignore[union-attr]
    return int(site.node.meta["val"].shape[site.layers[0].channel])
