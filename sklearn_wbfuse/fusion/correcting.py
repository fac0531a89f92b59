"""What follows an alignment: the parents' mean, its corrections, and the choice among several starts."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from sklearn.base import clone
from sklearn.utils import check_random_state
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..alignment import carry_map, carry_state, mean_state
from ..alignment.alignment import Alignment, Network
from ..base import short_text
from ..correction import CORRECTIONS
from ..data.fusion_input import FusionInput
from ..exceptions import FusionWarning, did_you_mean
from ..execution import PROBES, Parent, Probe
from ..execution.probing import MAX_ROWS, Probing, chosen_of, rows_in
from ..graph import Architecture, cast_inputs, write_back
from ..graph.contexts import untouched_modules
from ..graph.modules import lent
from .judging import agreement_on, why
from .progress import log

__all__ = ["CorrectedMixin"]

_CAP = 1e12
"""Multiply-adds that correction="auto" lets all networks spend on its samples, half a minute of one core."""

_AT_ONCE = 6
"""So many values of the size of its largest one a network may hold at once."""

_LOCK = threading.Lock()
"""Held while settings of PyTorch that all threads share are others."""

_FEWEST = 64
"""Samples that it takes whatever they cost."""


class CorrectedMixin:
    """Adds corrections to a fusion: by name, as instances, or "auto", which never raises where none would do."""

    correction: Any
    probe: Any
    random_state: Any
    _align: Any

    @property
    def _is_lenient(self) -> bool:
        return isinstance(self.correction, str) and self.correction == "auto"

    @property
    def _compares_activations(self) -> bool:
        """Whether activations are compared even without a correction."""
        return False

    def _probe(self) -> Probe:
        """The probe that the parameter names or is."""
        given = getattr(self, "probe", "auto")
        probe = Probe(given) if isinstance(given, str) else given
        if not isinstance(probe, Probe):
            raise TypeError(f"probe must be 'auto', 'noise', 'data', one of {list(PROBES)}, or a Probe. Got {short_text(probe)}.")
        probe._validate_params()
        return probe

    def _corrections(self) -> list[Any]:
        """The corrections that the parameter names or is, in order."""
        if self._is_lenient:
            return [CORRECTIONS["regression"]()]
        given = self.correction if isinstance(self.correction, (tuple, list)) else [self.correction]
        found = []
        for correction in given:
            if correction is None:
                continue
            if isinstance(correction, str):
                if correction not in CORRECTIONS:
                    hint = did_you_mean(correction, ["auto", *CORRECTIONS])
                    raise ValueError(f"correction={correction!r} is unknown; there are 'auto' and {list(CORRECTIONS)}.{hint}")
                correction = CORRECTIONS[correction]()
            if isinstance(correction, type) or not hasattr(correction, "correct"):
                raise TypeError(
                    f"correction must be None, 'auto', one of {list(CORRECTIONS)}, a correction such as Regression(ridge=0.1), "
                    f"or a tuple of these. Got {short_text(correction)}."
                )
            correction._validate_params()
            found.append(correction)
        return found

    def _probing(
        self,
        plains: Sequence[nn.Module],
        networks: Sequence[Network],
        architectures: Sequence[Architecture],
        weights: Sequence[float],
        data: FusionInput | None,
        probe: Probe,
    ) -> Probing | None:
        """The parents on the inputs of the probe; None, with a warning, where "auto" has none and nothing else needs them."""
        rng = check_random_state(self.random_state)
        mixes = any(getattr(c, "uses_mixtures", False) for c in self._corrections())
        given = plains, [n.state for n in networks], architectures, weights, data
        if not self._is_lenient:
            return Probing(*given, _sized(probe, architectures, capped=False), rng, mixes=mixes)
        try:
            return Probing(*given, _sized(probe, architectures, capped=True), rng, mixes=mixes)
        except Exception as error:  # whatever networks do on inputs that they do not know
            if self._compares_activations:
                raise
            _warn_without(error)
            return None

    def _aligned(self, networks: list[Network], *given: Any, probing: Probing | None, remember: Any) -> Any:
        """The alignment and what it was made with: no probe, with a warning, where "auto" finds that networks fail on it."""
        try:
            return self._align(networks, *given, probing, remember), probing
        except Exception as error:
            if probing is None or not self._is_lenient or self._compares_activations:
                raise
            found = self._align(networks, *given, None, remember)
            _warn_without(error)
            return found, None

    def _corrected(
        self,
        found: Alignment,
        corrections: Sequence[Any],
        probing: Probing | None,
        networks: Sequence[Network],
        target: Architecture,
        weights: Sequence[float],
        kind: str | None,
    ) -> tuple[Alignment, list[dict[str, Tensor]], dict[str, Tensor], list[Any]]:
        """The alignment of the best start, the networks carried by it, their mean after the corrections, and what that returns
        for held-out samples of the probe, where it is known.
        """
        starts, failure = [], None
        for start in [found, *found.others] if corrections else [found]:
            states = [
                carry_state(n.state, n.graph, target.graph, plans, own, start.target_scales)
                for n, plans, own in zip(networks, start.couplings, start.source_scales, strict=True)
            ]
            fused, said = mean_state(states, weights), list[Any]()
            for correction in corrections:
                assert probing is not None
                try:
                    fused, said = _corrected_by(probing, correction, start, target, fused)
                except Exception as error:
                    if not self._is_lenient:
                        raise
                    failure = error
            starts.append((start, states, fused, said))
        if failure is not None:
            _warn_without(failure)
        if len(starts) == 1 or probing is None:
            return starts[0]
        shares = []
        for _, _, fused, said in starts:
            model = write_back(probing.plains[0], fused, sized=target.plain)
            agreement, _ = agreement_on(probing, model, target.graph, probing.held_out(), kind, said)
            shares.append(float("-inf") if agreement is None else agreement.mean)
        best = max(range(len(starts)), key=shares.__getitem__)  # the first, of least energy, where none can be told
        log.info("agreement with the parents by start, least energy first: %s", [round(s, 4) for s in shares])
        kept, states, fused, said = starts[best]
        return replace(kept, history=found.history, others=[]), states, fused, said


@torch.no_grad()
def _corrected_by(
    probing: Probing, correction: Any, found: Alignment, target: Architecture, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[Any]]:
    """The tensors of the fused network after a correction, and what it returns for held-out samples if it ran."""
    fused = probing.of_target(target, state)
    parents, max_rows = [], getattr(correction, "max_rows", MAX_ROWS)
    for i, (architecture, weight) in enumerate(zip(probing.architectures, probing.weights, strict=True)):
        if weight:
            carry = functools.partial(
                carry_map,
                source=architecture.graph,
                target=target.graph,
                couplings=found.couplings[i],
                source_scales=found.source_scales[i],
                target_scales=found.target_scales,
            )
            parents.append(Parent(probing.recording(i, max_rows), weight, carry, probing.has_rows_alone))
    correction.correct(fused, parents)
    ran = all(node in fused.values or node in fused.parameters for node in fused.returned if isinstance(node, Node))
    chosen = enumerate(probing.held_out() if ran else [])
    return fused.state, [chosen_of(fused.outputs(batch), c) for batch, c in chosen if c.any()]


def _warn_without(error: Exception) -> None:
    warnings.warn(
        f"The fused network is not corrected: {why(error)} Give rows, fit(FusionInput(models, X)), or say correction=None.",
        FusionWarning,
        stacklevel=6,  # at the call of fit
    )


def _sized(probe: Probe, architectures: Sequence[Architecture], *, capped: bool) -> Probe:
    """The probe with batches so small that what a network holds on the way takes no more than activations may, and, if capped,
    with so few samples that all networks together spend at most `_CAP` multiply-adds on them.
    """
    work = [(rows_in(a.inputs), *work_of(a.plain, a.inputs)) for a in dict.fromkeys(architectures)]
    adds, size = (max(one[k] / max(one[0], 1) for one in work) for k in (1, 2))
    n_samples = probe.n_samples
    if capped:
        steps = 3 * probe.n_steps / 2  # of every other sample, forwards and twice as much back
        most = _CAP / max(adds * (len(architectures) * (1 + steps) + 1), 1.0)
        n_samples = min(n_samples, max(_FEWEST, int(most)))
    batch_size = min(probe.batch_size, n_samples, int(probe.budget / max(_AT_ONCE * size, 1.0)))
    return clone(probe).set_params(n_samples=n_samples, batch_size=max(1, batch_size))


@torch.no_grad()
def work_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[float, int]:
    """How many multiplications and additions a network needs for inputs, as PyTorch counts them, and the bytes of its largest
    value.
    """
    with lent(model), untouched_modules(model), torch.random.fork_rng(devices=[]), _in_products():
        counter, largest = FlopCounterMode(display=False), _Largest([*model.parameters(), *model.buffers()])
        with counter, largest:
            model(*cast_inputs(inputs, model))
    return counter.get_total_flops() / 2, largest.size


class _Largest(TorchDispatchMode):
    """Remembers the bytes of the largest value that an operation returns, views of given tensors aside."""

    def __init__(self, given: Sequence[Tensor]):
        super().__init__()
        self.size, self.given = 0, {t.untyped_storage().data_ptr() for t in given if t.layout == torch.strided}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        tensors = [t for t in pytree.tree_leaves(returned) if isinstance(t, Tensor) and t.layout == torch.strided]
        own = [t for t in tensors if t.untyped_storage().data_ptr() not in self.given]
        self.size = max([self.size, *(t.numel() * t.element_size() for t in own)])
        return returned


@contextlib.contextmanager
def _in_products() -> Iterator[None]:
    """Recurrent layers and attention run as the products that they consist of: fused kernels count as nothing."""
    with _LOCK, _without_fused_kernels(), sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


@contextlib.contextmanager
def _without_fused_kernels() -> Iterator[None]:
    is_fast, had_mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
        torch.backends.mkldnn.enabled = had_mkldnn
