"""Parents run on the probe's inputs: what costs of activations and corrections are computed from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from ..barycenter import Feature, carry_map
from ..correction import (
    Parent,
    Probe,
    activation_features,
    ascended,
    between,
    coloured,
    is_drawn,
    mixed,
    procedural,
    read_as,
    repeated,
    rows_to_compare,
    rows_within,
    shares,
    units_of,
    with_tokens,
)
from ..correction.recording import Positions, Recording
from ..correction.regression import HELD_OUT
from ..exceptions import DiscoveryError, FusionError, NonFiniteError
from ..graph import Architecture, Memory, Steps, plain_copy, program_of, resized_inputs
from ..groups import Graph
from ..probes import zipf_chain
from .alignment import Alignment
from .data import FusionInput

__all__ = ["Probing", "chosen_of", "rows_in"]

_FEWEST = 5
"""Rows below which no correction makes sense."""

_ENOUGH = 50
"""Held-out samples that tell a share."""

_ROWS = 20000
"""Positions of a value that are recorded, unless a correction says how many."""

_FILES = 4
"""What the parents' recordings take, in files for the most part, may be so many times what memory holds."""

Activations = tuple[list[Feature], list[Tensor]]


class Probing:
    """The parents and the inputs that they are run on.

    Parameters
    ----------
    models : list of Module
        The parents.
    states : list of dict
        Their tensors in the dtype and on the device of computation.
    architectures : list of Architecture
    weights : list of float
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
        models: Sequence[nn.Module],
        states: Sequence[Mapping[str, Tensor]],
        architectures: Sequence[Architecture],
        weights: Sequence[float],
        data: FusionInput | None,
        probe: Probe,
        rng: np.random.RandomState,
        *,
        mixes: bool = False,
    ):
        self.plains = [plain_copy(m) for m in models]
        self.states, self.architectures, self.weights = states, architectures, weights
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

    def steps(self, i: int, batches: Sequence[tuple[Any, ...]] | None = None) -> Steps:
        """A parent at its start, on the probe's inputs or on others."""
        given = self.batches if batches is None else batches
        return self._steps(self.architectures[i], self.plains[i], self.states[i], given)

    def recording(self, i: int, max_rows: int = _ROWS) -> Recording:
        """A parent, recorded at so many positions; it runs once for all that want the same number."""
        if (i, max_rows) not in self.recordings:
            positions = self._positions(max_rows)
            self.recordings[i, max_rows] = self._recording(lambda batch: self.steps(i, [self.batches[batch]]), positions)
        return self.recordings[i, max_rows]

    def _positions(self, max_rows: int) -> Positions:
        """The same for all parents; fewer where files would grow much larger than what memory may hold."""
        if max_rows not in self.positions:
            units = sum(units_of(self.steps(i, self.batches[:1])) for i in range(len(self.plains)))
            self.positions[max_rows] = Positions(rows_within(_FILES * self.memory.limit, units, max_rows), self.seed)
        return self.positions[max_rows]

    def _recording(self, steps: Callable[[int], Steps], positions: Positions) -> Recording:
        return Recording(steps, len(self.batches), positions, self.memory)

    def _of_batch(self, program: Any, plain: nn.Module, state: Mapping[str, Tensor]) -> Callable[[int], Steps]:
        return lambda batch: Steps(program, plain, state, [self.batches[batch]])

    @torch.no_grad()
    def activations(
        self, measure: str, further: Sequence[tuple[nn.Module, Mapping[str, Tensor], Graph]] = ()
    ) -> list[Activations]:
        """Of every parent, and of further networks of the target's widths, activations as features of neurons."""
        recordings = [self.recording(i) for i in range(len(self.plains))]
        n_rows = rows_to_compare(recordings)
        pairs = zip(recordings, self.architectures, strict=True)
        found = [activation_features(r, a.graph, measure, n_rows) for r, a in pairs]
        for model, state, graph in further:
            plain = plain_copy(model)
            program = program_of(plain, self.batches[0], next(iter(state.values())))
            own = self._recording(self._of_batch(program, plain, state), recordings[0].positions)
            found.append(activation_features(own, graph, measure, n_rows))
        return found

    @torch.no_grad()
    def corrected(
        self, correction: Any, found: Alignment, target: Architecture, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[Any]]:
        """The tensors of the fused network after a correction, and what it returns for held-out samples if it ran."""
        fused = self._steps(target, target.plain, state, self.batches, self.memory)
        parents, max_rows = [], getattr(correction, "max_rows", _ROWS)
        for i, (architecture, weight) in enumerate(zip(self.architectures, self.weights, strict=True)):
            if weight:
                carry = functools.partial(
                    carry_map,
                    source=architecture.graph,
                    target=target.graph,
                    couplings=found.couplings[i],
                    source_scales=found.source_scales[i],
                    target_scales=found.target_scales,
                )
                parents.append(Parent(self.recording(i, max_rows), weight, carry, self.has_rows_alone))
        correction.correct(fused, parents)
        ran = all(node in fused.values or node in fused.parameters for node in fused.returned if isinstance(node, Node))
        chosen = enumerate(self.held_out() if ran else [])
        return fused.state, [chosen_of(fused.outputs(batch), c) for batch, c in chosen if c.any()]

    def _steps(
        self,
        architecture: Architecture,
        plain: nn.Module,
        state: Mapping[str, Tensor],
        batches: Sequence[tuple[Any, ...]],
        memory: Memory | None = None,
    ) -> Steps:
        own = [resized_inputs(b, self.architectures[0].graph, architecture.graph.sizes) for b in batches]
        key = id(architecture)
        if key not in self.programs:
            self.programs[key] = program_of(architecture.plain, own[0], next(iter(state.values()), torch.zeros(())))
        return Steps(self.programs[key], plain, state, own, memory)

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
        images = {leaf: r for leaf, r in read_as("auto", self.steps(0, batches)).items() if r.kind == "images"}
        n_unmixed = int(self.n_unmixed)
        for batch, drawn in zip(batches, procedural(images, batches, rows, self.generator), strict=True):
            number = len(batch[0]) - n_unmixed
            chosen, share = torch.randint(len(rows[0]), (number,), generator=self.generator), shares(number, self.generator)
            for leaf in images:
                batch[leaf][n_unmixed:] = between(rows[leaf][chosen], drawn[leaf][n_unmixed:], share)

    def _drawn(self, probe: Probe) -> tuple[list[tuple[Any, ...]], str]:
        """Inputs from a procedure, or noise, and what they are."""
        examples = self.architectures[0].inputs
        white = self._white(probe, examples)
        first = self.steps(0, white)
        strings = None if probe.kind == "noise" else zipf_chain
        with_strings = [with_tokens(first, batch, self.generator, strings) for batch in white]
        leaves = zip(pytree.tree_leaves(with_strings[0]), pytree.tree_leaves(examples), strict=True)
        if not any(is_drawn(t) or (isinstance(t, Tensor) and not _repeats(t, e)) for t, e in leaves):
            raise FusionError(
                "Noise can't be drawn for inputs that are neither floating nor tokens of an embedding; give rows: "
                "fit(FusionInput(models, X))."
            )
        found = {} if probe.kind == "noise" else read_as(probe.kind, self.steps(0, with_strings))
        floating = [k for k, t in enumerate(pytree.tree_leaves(white[0])) if is_drawn(t)]
        drawn = with_strings
        if set(found) != set(floating) or "sequences" in {r.kind for r in found.values()}:
            networks = [self.steps(i, with_strings) for i in range(len(self.plains))]
            drawn = coloured(networks, self.weights, examples, self.generator)
        drawn = procedural(found, drawn, examples, self.generator)
        if "images" in {r.kind for r in found.values()}:
            plains = [p for p, w in zip(self.plains, self.weights, strict=True) if w]
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
                self.steps(0, white)
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
