"""Parents run on the probe's inputs: what costs of activations and corrections are computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..data.fusion_input import FusionInput
from ..discovery import Architecture, resized_inputs
from ..exceptions import DiscoveryError, FusionError, NonFiniteError
from ..probes import zipf_chain
from .ascent import ascended
from .memory import Memory
from .parent import Parent
from .probe import Probe, between, coloured, is_drawn, mixed, procedural, repeated, shares, with_tokens
from .reading import read_as
from .recording import Positions, Recording
from .runner import Runner, program_of
from .sites import RegressionSite, regression_sites

__all__ = ["HELD_OUT", "MAX_ROWS", "ParentRunner", "chosen_of", "rows_in", "rows_within", "units_of"]

HELD_OUT = 5
"""Every fifth sample is held out: it tells regressions how far to go, and how much the fused network agrees."""

_FEWEST = 5
"""Rows below which no correction makes sense."""

_FEW_ROWS = 500
"""Positions that are looked at whatever they take."""

_ENOUGH = 50
"""Held-out samples that tell a share."""

MAX_ROWS = 20000
"""Positions of a value that are recorded, unless a correction says how many."""

_FILES = 4
"""What the parents' recordings take, in files for the most part, may be so many times what memory holds."""


class ParentRunner:
    """The parents and the inputs that they are run on.

    Parameters
    ----------
    parents : list of Parent
    data : FusionInput or None
    probe : Probe
    rng : RandomState
    mixes : bool, default=False
        Whether mixtures are added to rows.

    Attributes
    ----------
    batches : list of tuple
        The inputs.
    source : str
        What they are: "rows" of the data, or "noise".
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
        self.n_unmixed: float = float("inf")  # samples of a batch before its mixtures
        if probe.kind == "data" and data is None:
            raise FusionError("probe='data' needs data: fit(FusionInput(models, X)).")
        if data is None or probe.kind not in ("auto", "data"):
            self.batches, self.source = self._drawn(probe)
        else:
            self.batches, self.source = self._rows(data, probe, rng, mixes), "rows"
        self.seed = int(torch.randint(2**31, (), generator=self.generator))

    def held_out(self) -> list[Tensor]:
        """Of every batch the samples that no regression is fitted on: of rows without mixtures if these are enough; all, if there
        are few.
        """
        sizes = list(map(rows_in, self.batches))
        index = torch.arange(sum(sizes)).split(sizes)
        out = [i % HELD_OUT == HELD_OUT - 1 for i in index]
        rows = [o & (torch.arange(n) < self.n_unmixed) for o, n in zip(out, sizes, strict=True)]
        for chosen in (rows, out):
            if sum(int(c.sum()) for c in chosen) >= _ENOUGH:
                return chosen
        return [torch.ones_like(o) for o in out]

    def outputs(self, i: int) -> Sequence[Any]:
        """What a parent returned for each batch, flat; empty if it has not run on all of them."""
        return next((r.outputs for (parent, _), r in self.recordings.items() if parent == i and r.outputs), [])

    @property
    def has_rows_alone(self) -> bool:
        """Whether the inputs are rows of data without mixtures."""
        return self.source == "rows" and self.n_unmixed == float("inf")

    def mark(self) -> str:
        """Hash of the inputs and of what is drawn: activations of the same networks are the same where it is."""
        digest = hashlib.blake2b(self.generator.get_state().numpy().tobytes(), digest_size=16)
        for leaf in pytree.tree_leaves(self.batches):
            if isinstance(leaf, Tensor):
                digest.update(leaf.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def runner(self, i: int, batches: Sequence[tuple[Any, ...]] | None = None) -> Runner:
        """A parent at its start, on the probe's inputs or on others."""
        given = self.batches if batches is None else batches
        own = self.parents[i]
        return self._runner(own.architecture, self.plains[i], own.state, given)

    def recording(self, i: int, max_rows: int = MAX_ROWS) -> Recording:
        """A parent, recorded at so many positions; it runs once for all that want the same number."""
        if (i, max_rows) not in self.recordings:
            positions = self._positions(max_rows)
            self.recordings[i, max_rows] = self._recording(lambda batch: self.runner(i, [self.batches[batch]]), positions)
        return self.recordings[i, max_rows]

    def _positions(self, max_rows: int) -> Positions:
        """The same for all parents; fewer where files would grow much larger than what memory may hold."""
        if max_rows not in self.positions:
            units = sum(units_of(self.runner(i, self.batches[:1])) for i in range(len(self.parents)))
            self.positions[max_rows] = Positions(rows_within(_FILES * self.memory.limit, units, max_rows), self.seed)
        return self.positions[max_rows]

    def record_further(self, network: Parent) -> Recording:
        """A further network of the target's widths, recorded where the parents are."""
        plain, state = network.plain, network.state
        program = program_of(plain, self.batches[0], next(iter(state.values())))
        positions = self.recording(0).positions
        return self._recording(lambda batch: Runner(program, plain, state, [self.batches[batch]]), positions)

    def _recording(self, runner: Callable[[int], Runner], positions: Positions) -> Recording:
        return Recording(runner, len(self.batches), positions, self.memory)

    def of_target(self, target: Architecture, state: Mapping[str, Tensor]) -> Runner:
        """The fused network at its start, on the inputs."""
        return self._runner(target, self._plain_of(target), state, self.batches, self.memory)

    def _plain_of(self, architecture: Architecture) -> nn.Module:
        """A network of the architecture: a parent where there is one, since other fits may run what the architecture holds."""
        own = (plain for p, plain in zip(self.parents, self.plains, strict=True) if p.architecture.plain is architecture.plain)
        return next(own, architecture.plain)

    def _runner(
        self,
        architecture: Architecture,
        plain: nn.Module,
        state: Mapping[str, Tensor],
        batches: Sequence[tuple[Any, ...]],
        memory: Memory | None = None,
    ) -> Runner:
        own = [resized_inputs(b, self.parents[0].spec, architecture.spec.sizes) for b in batches]
        key = id(architecture.plain)
        if key not in self.programs:
            self.programs[key] = program_of(self._plain_of(architecture), own[0], next(iter(state.values()), torch.zeros(())))
        return Runner(self.programs[key], plain, state, own, memory)

    def _rows(self, data: FusionInput, probe: Probe, rng: np.random.RandomState, mixes: bool) -> list[tuple[Any, ...]]:
        """Rows of the data and mixtures of them, in batches of one size, rows before mixtures."""
        n = len(data)
        if n < _FEWEST:
            raise FusionError(f"Activations of {n} rows say too little; give a FusionInput with more rows, or probe='noise'.")
        parts = [data[rng.permutation(n)[: probe.n_samples]].tensors(self.plains[0])]
        for k, tensor in enumerate(parts[0]):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(f"Input {k} has NaN or infinite values; activations are computed on finite rows.")
        n_mixed = min(probe.n_mixed, probe.n_samples - len(parts[0][0])) if mixes else 0
        if n_mixed and all(t.is_floating_point() for t in parts[0]):
            parts.append(mixed(parts[0], n_mixed, self.generator))
        count = -(-sum(len(p[0]) for p in parts) // probe.batch_size)
        pieces = [_split(p, count) for p in parts]
        batches = [tuple(torch.cat(same) for same in zip(*both, strict=True)) for both in zip(*pieces, strict=True)]
        if len(parts) > 1:
            self.n_unmixed = len(pieces[0][0][0])
            self._mix_images(parts[0], batches)
        return batches

    def _mix_images(self, rows: tuple[Tensor, ...], batches: list[tuple[Tensor, ...]]) -> None:
        """Behind the rows of each batch, where images are read, in place of mixtures of two rows those of a row and a drawing."""
        images = {leaf: r for leaf, r in read_as("auto", self.runner(0, batches)).items() if r.kind == "images"}
        n_unmixed = int(self.n_unmixed)
        for batch, drawn in zip(batches, procedural(images, batches, rows, self.generator), strict=True):
            number = len(batch[0]) - n_unmixed
            chosen, share = torch.randint(len(rows[0]), (number,), generator=self.generator), shares(number, self.generator)
            for leaf in images:
                batch[leaf][n_unmixed:] = between(rows[leaf][chosen], drawn[leaf][n_unmixed:], share)

    def _drawn(self, probe: Probe) -> tuple[list[tuple[Any, ...]], str]:
        """Inputs from a procedure, or noise, and what they are."""
        examples = self.parents[0].architecture.inputs
        white = self._white(probe, examples)
        first = self.runner(0, white)
        strings = None if probe.kind == "noise" else zipf_chain
        with_strings = [with_tokens(first, batch, self.generator, strings) for batch in white]
        leaves = zip(pytree.tree_leaves(with_strings[0]), pytree.tree_leaves(examples), strict=True)
        if not any(is_drawn(t) or (isinstance(t, Tensor) and not _repeats(t, e)) for t, e in leaves):
            raise FusionError(
                "Noise can't be drawn for inputs that are neither floating nor tokens of an embedding; give rows: "
                "fit(FusionInput(models, X))."
            )
        found = {} if probe.kind == "noise" else read_as(probe.kind, self.runner(0, with_strings))
        floating = [k for k, t in enumerate(pytree.tree_leaves(white[0])) if is_drawn(t)]
        drawn = with_strings
        if set(found) != set(floating) or "sequences" in {r.kind for r in found.values()}:
            networks = [self.runner(i, with_strings) for i in range(len(self.parents))]
            drawn = coloured(networks, [p.weight for p in self.parents], examples, self.generator)
        drawn = procedural(found, drawn, examples, self.generator)
        if "images" in {r.kind for r in found.values()}:
            plains = [plain for p, plain in zip(self.parents, self.plains, strict=True) if p.weight]
            moving = [k for k, r in found.items() if r.kind == "images"]
            drawn = [ascended(plains, batch, moving, probe.n_steps, self.generator) for batch in drawn]
        kinds = [r.kind for r in found.values()] or (["noise"] if floating or probe.kind == "noise" else ["tokens"])
        return drawn, " and ".join(dict.fromkeys(kinds))

    def _white(self, probe: Probe, examples: Sequence[Any]) -> list[tuple[Any, ...]]:
        """White noise in batches of a size that the networks take."""
        count = -(-probe.n_samples // probe.batch_size)
        for size in (-(-probe.n_samples // count), rows_in(examples)):
            white = [repeated(examples, size, self.generator) for _ in range(-(-probe.n_samples // size))]
            try:
                self.runner(0, white)
                break
            except DiscoveryError:  # the batch size may be written into the code
                self.programs.clear()
                if size == rows_in(examples):
                    raise
        return white


def rows_in(batch: Any) -> int:
    """How many samples there are in inputs: the first dimension of the first tensor."""
    return next((len(t) for t in pytree.tree_leaves(batch) if isinstance(t, Tensor) and t.dim()), 1)


def chosen_of(values: Any, chosen: Tensor) -> Any:
    """Some samples of inputs or outputs; tensors without as many rows stay as they are."""
    n = len(chosen)
    return pytree.tree_map(lambda t: t[chosen.to(t.device)] if isinstance(t, Tensor) and t.dim() and len(t) == n else t, values)


def _repeats(tensor: Tensor, example: Tensor) -> bool:
    """Whether a tensor is made of an example's rows alone."""
    return torch.equal(tensor, example[torch.arange(len(tensor)) % len(example)] if tensor.dim() else example)


def _split(rows: Sequence[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """Rows in so many batches of one size; the last ones are filled up with rows of the first."""
    n = len(rows[0])
    size = -(-n // count)
    index = torch.arange(count * size) % n
    return [tuple(t[index[k * size : (k + 1) * size]] for t in rows) for k in range(count)]


def rows_within(n_bytes: float, units: int, most: int) -> int:
    """How many positions of so many units take at most so many bytes in single precision; at least a few, if there are."""
    return int(min(most, max(_FEW_ROWS, n_bytes / (4 * max(units, 1)))))


def units_of(network: Recording | Runner) -> int:
    """How many numbers are recorded of a network for each position, of all its equations."""
    return sum(map(_units, regression_sites(network.nodes, network.parameters).values()))


def _units(site: RegressionSite) -> int:
    """How many rows the features of an equation have."""
    if site.cells:
        return sum(w.meta["val"].shape[0] for w in site.at.args[2])  # type: ignore[union-attr]
    return int(site.at.meta["val"].shape[site.layers[0].channel])
