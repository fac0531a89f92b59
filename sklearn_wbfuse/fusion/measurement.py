"""The agreement of a fitted fusion with its parents, measured on a probe, and a warning if it is poor."""

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
from ..execution.parent_runner import ParentRunner, n_samples_in, select_samples
from ..network.spec import NetworkSpec
from ..network.types import Inputs
from .agreement import Agreement, agreement_of, compares_values

__all__ = ["AgreementMixin", "a_few", "agreement_on", "declared_kind", "fingerprint", "outputs_are", "reason_of", "small_probe"]

_FEW = 200
"""Number of samples for the agreement of a fusion without correction, which is only measured on access."""

AgreementOrReason = tuple[Agreement | None, str | None]
"""An agreement, or the reason why there is none."""

Batches = Sequence[Inputs]
"""The positional arguments of a network, batch by batch."""

_KIND: ContextVar[str | None] = ContextVar("kind", default=None)


@contextlib.contextmanager
def outputs_are(kind: str) -> Iterator[None]:
    """Declare the kind of outputs, "targets", "classes" or "binary", for fits within the context, whatever their labels."""
    token = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(token)


def declared_kind() -> str | None:
    """Return the kind of outputs that the context declares."""
    return _KIND.get()


class AgreementMixin:
    """Adds `agreement_` and `agreement_reason_`.

    With a correction they are measured by `fit`. A fusion without correction is much cheaper than the measurement, which is
    therefore made when they are first accessed, saved, copied or pickled; until then the fusion holds its parents.
    """

    fused_model_: nn.Module
    graph_: NetworkSpec
    _seen: Sequence[str]
    _agreement: AgreementOrReason | Callable[[], AgreementOrReason]

    @property
    def agreement_(self) -> Agreement | None:
        """How often the fused network and its parents predict the same; None if unknown, see `agreement_reason_`."""
        return self._measured()[0]

    @property
    def agreement_reason_(self) -> str | None:
        """The reason why there is no `agreement_`; None if there is one."""
        return self._measured()[1]

    def _measured(self) -> AgreementOrReason:
        check_is_fitted(self)
        if callable(self._agreement):
            self._agreement = self._agreement()
        return self._agreement

    def __getstate__(self) -> Any:
        if "_agreement" in vars(self):
            self._measured()  # so that parents and rows are not copied
        return super().__getstate__()

    def _measure(
        self,
        parents: Sequence[nn.Module],
        parent_runner: ParentRunner | None,
        later: Callable[[], ParentRunner],
        kind: str | None,
        remedies: Sequence[str],
        outputs: Sequence[Any],
    ) -> None:
        """Measure the agreement on the inputs of a probe, or arrange for it; `later` makes the runner of the parents then."""
        if parent_runner is None:
            self._agreement = functools.partial(self._measure_later, parents, fingerprint(self.fused_model_), later, kind)
            return
        self._agreement = agreement_on(parent_runner, self.fused_model_, self.graph_, parent_runner.held_out(), kind, outputs)
        agreement = self._agreement[0]
        if remedies and agreement is not None and agreement.is_poor:
            warnings.warn(_poor_text(agreement, remedies), PoorFusionWarning, stacklevel=5)  # at the call of fit

    def _measure_later(
        self, parents: Sequence[nn.Module], mark: str, later: Callable[[], ParentRunner], kind: str | None
    ) -> AgreementOrReason:
        if fingerprint(self.fused_model_) != mark or [fingerprint(m) for m in parents] != list(self._seen):
            return None, "a network has changed since fit, and it was not measured before"
        try:
            with isolated_random_state(device_of(self.fused_model_)):  # traces run networks
                parent_runner = later()
        except Exception as error:  # networks may raise anything on drawn inputs
            return None, reason_of(error)
        masks = [torch.ones(n_samples_in(batch), dtype=torch.bool) for batch in parent_runner.batches]
        return agreement_on(parent_runner, self.fused_model_, self.graph_, masks, kind)

    def _remedies(self, data: FusionInput | None, source: str, n_models: int) -> list[str]:
        """Return the remedies for a poor fusion, in the order in which to try them."""
        rows = "your rows instead, probe='data'" if data is not None else "unlabelled rows, fit(FusionInput(models, X))"
        remedies = ["more rows" if source == "rows" else rows]
        if hasattr(self, "target_widths"):
            wider = "a wider target, target_widths=1.5" + (", merge='all'" if n_models > 1 else "")
            remedies.append(wider if self.target_widths is None else "a wider target")
        remedies += ["fewer models"] if n_models > 2 else []
        return [*remedies, "another method, see compare(models, X, y, fusions)", "training on from fused_model_.train()"]


def agreement_on(
    parent_runner: ParentRunner,
    fused: nn.Module,
    spec: NetworkSpec,
    masks: Sequence[Tensor],
    kind: str | None,
    fused_outputs: Sequence[Any] = (),
) -> AgreementOrReason:
    """Measure the agreement on the masked samples of each batch, or on whole batches if networks only run on these.

    `fused_outputs` are the fused network's outputs for these samples, if they are known; networks run if their outputs are not.
    """
    models, reason = [*parent_runner.plains, fused], ""
    sizes = [*(p.spec.sizes for p in parent_runner.parents), spec.sizes]
    recorded = [parent_runner.outputs(i) for i in range(len(parent_runner.parents))]
    known = [
        [select_samples(batch, mask) for batch, mask in zip(outputs, masks, strict=True) if mask.any()] if outputs else []
        for outputs in recorded
    ]
    selected = [select_samples(b, mask) for b, mask in zip(parent_runner.batches, masks, strict=True) if mask.any()]
    for whole in (False, True):  # the batch size may be written into the code
        batches = (parent_runner.batches[4::5] or parent_runner.batches) if whole else selected
        try:
            arrays = []
            for model, outputs, size in zip(models, [*known, fused_outputs], sizes, strict=True):
                if outputs and not whole:
                    arrays.append(_in_one(zip(outputs, map(n_samples_in, batches), strict=True)))
                else:
                    model = plain_copy(fused) if model is fused else model
                    arrays.append(_outputs(model, [resized_inputs(b, parent_runner.parents[0].spec, size) for b in batches]))
            obstacle = incomparable(arrays, kind, spec.ends_in_probabilities)
            if obstacle:
                return None, obstacle
            *of_parents, of_fused = (a for a in arrays if a is not None)
            weights, options = [p.weight for p in parent_runner.parents], {"probabilities": spec.ends_in_probabilities}
            return agreement_of(of_fused, of_parents, weights, parent_runner.source, kind=kind, **options), None
        except Exception as error:  # networks may raise anything on drawn inputs
            reason = reason or reason_of(error)
    return None, reason


def a_few(data: FusionInput | None) -> FusionInput | None:
    """Return a few rows that hold neither all others in memory nor the results computed for them."""
    if data is None:
        return None
    part = data[np.random.RandomState(0).permutation(len(data))[:_FEW]]
    part.cache = {}
    return part


def _poor_text(agreement: Agreement, remedies: Sequence[str]) -> str:
    shown, inputs = agreement.shown, agreement.inputs
    if agreement.measure == "predictions":
        text = f"The fused network predicts the same as its parents on {shown(agreement.mean)} of {inputs}"
    else:
        text = f"The outputs of the fused network agree with its parents' on {inputs} by a concordance of {shown(agreement.mean)}"
    text += "" if np.isnan(agreement.among_parents) else f", the parents among themselves {shown(agreement.among_parents)}"
    return f"{text} (see agreement_). What helps, in this order: {'; '.join(remedies)}."


def reason_of(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def small_probe(probe: Any) -> Any:
    """Return a probe of a few samples of the same kind."""
    few = min(probe.n_samples, _FEW)
    return clone(probe).set_params(n_samples=few, n_mixed=0, batch_size=min(probe.batch_size, few))


@torch.no_grad()
def _outputs(model: nn.Module, batches: Batches) -> np.ndarray | None:
    """Return the outputs of a plain network on batches, as by `_in_one`; errors of the network are not caught."""
    with isolated_random_state(device_of(model)), untouched_modules(model):
        return _in_one((pytree.tree_leaves(model(*cast_inputs(batch, model))), n_samples_in(batch)) for batch in batches)


def _in_one(outputs: Iterable[tuple[list[Any], int]]) -> np.ndarray | None:
    """Concatenate the first floating-point output with one row per sample, over batches; None if a batch has none."""
    pieces = []
    for leaves, n in outputs:
        output = next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.dim() and len(t) == n), None)
        if output is None:
            return None
        pieces.append(output.cpu() if output.dtype == torch.float64 else output.cpu().float())
    return torch.cat(pieces).numpy()


def incomparable(arrays: Sequence[np.ndarray | None], kind: str | None, probabilities: bool) -> str | None:
    """Return why outputs of the parents, and of the fused network last, cannot be compared; None if they can."""
    for i, array in enumerate(arrays):
        whose = f"parent {i}" if i < len(arrays) - 1 else "the fused network"
        first = arrays[0]
        if array is None or first is None:
            return f"the outputs of {whose} hold no floating-point tensor with one row per sample"
        if array.shape != first.shape:
            return f"the outputs of {whose} have another shape than those of parent 0, {array.shape} and {first.shape}"
        if np.isnan(array).any() or (compares_values(array, kind, probabilities) and not np.isfinite(array).all()):
            return f"the outputs of {whose} hold NaN or infinite values"
    return None


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the names and values of all floating-point tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in floating_state(model).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
