"""What a fitted fusion knows of how well it went: its agreement with its parents, and a warning where that is poor."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..data.fusion_input import FusionInput
from ..discovery import cast_inputs, device_of, floating_state, plain_copy, resized_inputs
from ..discovery.isolation import isolated_random_state, untouched_modules
from ..exceptions import PoorFusionWarning
from ..execution.parent_runner import ParentRunner, chosen_of, rows_in
from ..network.spec import NetworkSpec
from .agreement import Agreement, agreement_of, tell_values

__all__ = ["JudgedMixin", "a_few", "agreement_on", "fingerprint", "known_kind", "outputs_are", "small_probe", "why"]

_FEW = 200
"""Samples for the agreement of a fusion without correction, which nothing but a question needs."""

Verdict = tuple[Agreement | None, str | None]
"""An agreement, or the reason why there is none."""

Batches = Sequence[tuple[Any, ...]]


_KIND: ContextVar[str | None] = ContextVar("kind", default=None)


@contextlib.contextmanager
def outputs_are(kind: str) -> Iterator[None]:
    """Fits within know what outputs are, "targets", "classes" or "binary", whatever their labels tell."""
    token = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(token)


def known_kind() -> str | None:
    """What outputs are known to be."""
    return _KIND.get()


class JudgedMixin:
    """Adds `agreement_` and `agreement_reason_`.

    With a correction they are measured by `fit`. A fusion without is much cheaper than its measurement: there they are measured
    when they are first asked for, saved, copied or pickled, and until then the fusion holds its parents.
    """

    fused_model_: nn.Module
    graph_: NetworkSpec
    _seen: Sequence[str]
    _verdict: Verdict | Callable[[], Verdict]

    @property
    def agreement_(self) -> Agreement | None:
        """How much the fused network and its parents predict alike; None where that can't be told, see `agreement_reason_`."""
        return self._judged()[0]

    @property
    def agreement_reason_(self) -> str | None:
        """Why there is no `agreement_`; None if there is one."""
        return self._judged()[1]

    def _judged(self) -> Verdict:
        check_is_fitted(self)
        if callable(self._verdict):
            self._verdict = self._verdict()
        return self._verdict

    def __getstate__(self) -> Any:
        if "_verdict" in vars(self):
            self._judged()  # parents and rows stay here
        return super().__getstate__()

    def _judge(
        self,
        parents: Sequence[nn.Module],
        parent_runner: ParentRunner | None,
        later: Callable[[], ParentRunner],
        kind: str | None,
        remedies: Sequence[str],
        said: Sequence[Any],
    ) -> None:
        """Measure the agreement on the inputs of a probe, at once where there is one; `later` makes one."""
        if parent_runner is None:
            self._verdict = functools.partial(self._judge_later, parents, fingerprint(self.fused_model_), later, kind)
            return
        self._verdict = agreement_on(parent_runner, self.fused_model_, self.graph_, parent_runner.held_out(), kind, said)
        agreement = self._verdict[0]
        if remedies and agreement is not None and agreement.is_poor:
            warnings.warn(_told(agreement, remedies), PoorFusionWarning, stacklevel=5)  # at the call of fit

    def _judge_later(
        self, parents: Sequence[nn.Module], mark: str, later: Callable[[], ParentRunner], kind: str | None
    ) -> Verdict:
        if fingerprint(self.fused_model_) != mark or [fingerprint(m) for m in parents] != list(self._seen):
            return None, "a network has changed since fit, and it was not asked for before"
        try:
            with isolated_random_state(device_of(self.fused_model_)):  # traces run networks
                parent_runner = later()
        except Exception as error:  # whatever inputs can't be drawn
            return None, why(error)
        every = [torch.ones(rows_in(b), dtype=torch.bool) for b in parent_runner.batches]
        return agreement_on(parent_runner, self.fused_model_, self.graph_, every, kind)

    def _remedies(self, data: FusionInput | None, source: str, n_models: int) -> list[str]:
        """What helps against a poor fusion, in the order in which it should be tried."""
        rows = "your rows instead, probe='data'" if data is not None else "rows without labels, fit(FusionInput(models, X))"
        helps = ["more rows" if source == "rows" else rows]
        if hasattr(self, "target_widths"):
            wider = "a wider target, target_widths=1.5" + (", merge='all'" if n_models > 1 else "")
            helps.append(wider if self.target_widths is None else "a wider target")
        helps += ["fewer models"] if n_models > 2 else []
        return [*helps, "another method, see compare(models, X, y, fusions)", "training on from fused_model_.train()"]


def agreement_on(
    parent_runner: ParentRunner,
    fused: nn.Module,
    spec: NetworkSpec,
    chosen: Sequence[Tensor],
    kind: str | None,
    said: Sequence[Any] = (),
) -> Verdict:
    """The agreement on some samples of each batch, or on whole batches of the probe where networks take no others.

    `said` is what the fused network returns for these samples, where that is known; what is not known is run.
    """
    models, reason = [*parent_runner.plains, fused], ""
    sizes = [*(p.spec.sizes for p in parent_runner.parents), spec.sizes]
    some = list(zip(parent_runner.batches, chosen, strict=True))
    recorded = [parent_runner.outputs(i) for i in range(len(parent_runner.parents))]
    known = [[chosen_of(o, c) for o, c in zip(own, chosen, strict=True) if c.any()] if own else [] for own in recorded]
    for whole in (False, True):  # the batch size may be written into the code
        given = (parent_runner.batches[4::5] or parent_runner.batches) if whole else [chosen_of(b, c) for b, c in some if c.any()]
        try:
            arrays = []
            for model, own, size in zip(models, [*known, said], sizes, strict=True):
                if own and not whole:
                    arrays.append(_in_one(zip(own, map(rows_in, given), strict=True)))
                else:
                    model = plain_copy(fused) if model is fused else model
                    arrays.append(_outputs(model, [resized_inputs(b, parent_runner.parents[0].spec, size) for b in given]))
            found = incomparable(arrays, kind, spec.ends_in_probabilities)
            if found:
                return None, found
            *others, own_output = (a for a in arrays if a is not None)
            options: Any = {"kind": kind, "probabilities": spec.ends_in_probabilities}
            return agreement_of(
                own_output, others, [p.weight for p in parent_runner.parents], parent_runner.source, **options
            ), None
        except Exception as error:  # a network may do anything on inputs that it does not know
            reason = reason or why(error)
    return None, reason


def a_few(data: FusionInput | None) -> FusionInput | None:
    """A few rows, which do not hold all others in memory, nor what was computed on them."""
    if data is None:
        return None
    part = data[np.random.RandomState(0).permutation(len(data))[:_FEW]]
    part.cache = {}
    return part


def _told(agreement: Agreement, remedies: Sequence[str]) -> str:
    shown, on = agreement.shown, agreement.inputs
    if agreement.measure == "predictions":
        text = f"The fused network predicts the same as its parents on {shown(agreement.mean)} of {on}"
    else:
        text = f"The outputs of the fused network agree with its parents' on {on} by a concordance of {shown(agreement.mean)}"
    text += "" if np.isnan(agreement.among_parents) else f", the parents among themselves {shown(agreement.among_parents)}"
    return f"{text} (see agreement_). What helps, in this order: {'; '.join(remedies)}."


def why(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def small_probe(probe: Any) -> Any:
    """A probe of a few samples of the same kind."""
    few = min(probe.n_samples, _FEW)
    return clone(probe).set_params(n_samples=few, n_mixed=0, batch_size=min(probe.batch_size, few))


@torch.no_grad()
def _outputs(model: nn.Module, batches: Batches) -> np.ndarray | None:
    """What a plain network says of batches, in one array; None where its outputs hold no floating tensor with such rows.

    Raises
    ------
    Exception
        Whatever the network raises.
    """
    with isolated_random_state(device_of(model)), untouched_modules(model):
        return _in_one((pytree.tree_leaves(model(*cast_inputs(batch, model))), rows_in(batch)) for batch in batches)


def _in_one(outputs: Iterable[tuple[list[Any], int]]) -> np.ndarray | None:
    """Of what a network returns for batches of so many samples, the first floating tensor with a row for each."""
    pieces = []
    for leaves, n in outputs:
        found = next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.dim() and len(t) == n), None)
        if found is None:
            return None
        pieces.append(found.cpu() if found.dtype == torch.float64 else found.cpu().float())
    return torch.cat(pieces).numpy()


def incomparable(arrays: Sequence[np.ndarray | None], kind: str | None, probabilities: bool) -> str | None:
    """Why outputs of the parents, and of the fused network last, can't be compared."""
    for i, array in enumerate(arrays):
        whose = f"parent {i}" if i < len(arrays) - 1 else "the fused network"
        first = arrays[0]
        if array is None or first is None:
            return f"the outputs of {whose} hold no floating tensor with one row per sample"
        if array.shape != first.shape:
            return f"the outputs of {whose} have another shape than those of parent 0, {array.shape} and {first.shape}"
        if np.isnan(array).any() or (tell_values(array, kind, probabilities) and not np.isfinite(array).all()):
            return f"the outputs of {whose} hold NaN or infinite values"
    return None


def fingerprint(model: nn.Module) -> str:
    """Hash of names and values of all floating tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in floating_state(model).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
