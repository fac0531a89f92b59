"""What every fusion shares: from a list of modules to couplings, a fused module and transformed modules."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..alignment import carry_state
from ..alignment.alignment import Alignment, Network
from ..base import HelpfulMixin, short_text
from ..couplings import Coupling, Couplings
from ..data.fusion_input import FusionInput, rows_of
from ..data.scores import check_labels, outputs, score_outputs
from ..exceptions import FusionError, InvalidModelError, WidthError
from ..execution.probing import Probing
from ..graph import (
    Architecture,
    apart,
    cast_inputs,
    device_of,
    discover_all,
    floating_state,
    plain_copy,
    plain_state,
    validate_models,
    write_back,
)
from ..graph.constants import warn_of_unread
from ..graph.contexts import untouched_modules
from ..graph.masks import Mask, find_masks, masked_graph, masked_state, ones_where_any
from ..groups import Graph
from .configs import follow_widths
from .correcting import CorrectedMixin
from .judging import JudgedMixin, a_few, fingerprint, small_probe
from .masking import compared, fused_masks
from .progress import log, tells_progress
from .storage import StorageMixin

__all__ = ["Alignment", "BaseFusion", "Network"]

Remember = Callable[[Any, Callable[[], Any]], Any]


class BaseFusion(CorrectedMixin, JudgedMixin, StorageMixin, HelpfulMixin, TransformerMixin, BaseEstimator):
    """Base of all fusions: subclasses say how neurons are coupled.

    A subclass implements `_sizes` (the target's widths), `_align` (couplings of the parents) and `_align_new` (couplings of
    one further network with the fused one).
    """

    __metadata_request__fit = {"models": UNUSED}
    __metadata_request__transform = {"models": UNUSED}

    weights: Sequence[float] | None
    example_inputs: Any
    device: Any
    correction: Any
    probe: Any
    random_state: Any
    verbose: int
    _masks: Mapping[str, Mask] = MappingProxyType({})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(auto_wrap_output_keys=None, **options)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    @tells_progress
    def fit(self, models: Any, y: Any = None) -> Any:
        """Fuse models.

        Parameters
        ----------
        models : list of Module, or FusionInput
            The parents. They are not changed.
        y : array-like, optional
            Labels or targets of the rows of a FusionInput. Their number is checked, and nothing is learnt from them.

        Returns
        -------
        self

        Raises
        ------
        InvalidModelError, NonFiniteError, ArchitectureMismatchError, DiscoveryError, SelfCheckError, WidthError
            See the messages: each says which model, group and shape, and what to do.
        """
        data = models if isinstance(models, FusionInput) else None
        parents = validate_models(_models_of(models))
        if y is not None and data is None:
            raise InvalidModelError(
                "A list of models came with something else, which would not be looked at. Rows go beside the models: "
                "fit(FusionInput(models, X), y), or fit(models) without data."
            )
        if data is not None and not len(data):
            raise FusionError("The FusionInput has no rows; give some, or fuse without data: fit(models).")
        if y is not None and data is not None:
            check_labels(data, y)
        data = None if data is None else data.taken_by(parents[0])
        lambda_, corrections, probe = self._lambda(len(parents)), self._corrections(), self._probe()
        copied = functools.cache(plain_copy)  # one copy a parent, whoever asks for it
        architectures = self._architectures(parents, data, copied)
        warn_of_unread(parents, architectures[0].graph, architectures[0].check)
        self._masks = find_masks(parents, architectures[0].check)
        architectures = [self._masked(a) for a in architectures]
        sizes = self._sizes([a.graph for a in architectures])
        target = self._masked(self._target(architectures, sizes))
        log.info("fusing %d models of %d groups into widths %s", len(parents), len(sizes), list(sizes.values()))
        dtype = torch.float64 if self._masks else _common_dtype(parents)  # masks that count much leave few digits to weights
        networks = [self._network(m, a.graph, dtype, copied) for m, a in zip(parents, architectures, strict=True)]
        self._inputs, self._saw_rows = target.inputs, data is not None and self.example_inputs is None
        probing = None
        if corrections or self._compares_activations:
            probing = self._probing(list(map(copied, parents)), networks, architectures, lambda_, data, probe)
        own = plain_state(parents[0], copied)
        copied.cache_clear()  # what nothing runs takes no memory from here on
        self._seen = [fingerprint(m) for m in parents]

        def remember(key: Any, compute: Callable[[], Any]) -> Any:
            return compute() if data is None else data.cached((key, self._seen), compute)

        found, probing = self._aligned(networks, target.graph, lambda_, probing=probing, remember=remember)
        corrections = corrections if probing else []
        kind = self._kind_of(y)
        found, states, fused, said = self._corrected(found, corrections, probing, networks, target, lambda_, kind)
        self.graph_ = target.graph
        self.couplings_ = [Couplings(plans) for plans in found.couplings]
        self.energy_, self.n_iter_, self.history_ = found.energy, found.n_iter, found.history
        self.n_models_in_ = len(parents)
        fused = fused_masks(fused, [s for s, w in zip(states, lambda_, strict=True) if w], self._masks)
        self.fused_model_ = write_back(parents[0], fused, sized=target.plain, takes=True, own=own)
        self.fused_model_.to(device_of(parents[0]))
        self._alignment = found
        self._graphs = [a.graph for a in architectures]
        self._run_once()
        follow_widths(self.fused_model_, parents[0], self._inputs)
        few = None if probing else a_few(data)

        def later() -> Probing:
            states = [self._network(m, a.graph, dtype).state for m, a in zip(parents, architectures, strict=True)]
            plains = list(map(plain_copy, parents))
            return Probing(plains, states, architectures, lambda_, few, small_probe(probe), np.random.RandomState(0))

        remedies = self._remedies(data, probing.source, len(parents)) if corrections and probing else []
        self._judge(parents, probing, later, kind, remedies, [] if self._masks else said)
        return self

    def transform(self, models: Any) -> list[nn.Module]:
        """Carry models into the neuron order, widths and scales of the fused model.

        Models seen in `fit` use their stored couplings, others are matched to `fused_model_`. With exact couplings and at equal
        or integer-multiple widths the results compute the functions of the models that they came from; entropic couplings,
        `reg` > 0, mix neurons.

        Parameters
        ----------
        models : list of Module, or FusionInput

        Returns
        -------
        list of Module
            New modules in eval mode.
        """
        check_is_fitted(self)
        given = validate_models(_models_of(models))
        result, plain = [], plain_copy(self.fused_model_)
        for model in given:
            dtype = _common_dtype([model, self.fused_model_])
            mark = fingerprint(model)
            if mark in self._seen:
                i = self._seen.index(mark)
                graph, plans, own = self._graphs[i], self._alignment.couplings[i], self._alignment.source_scales[i]
                target_scales, network = self._alignment.target_scales, self._network(model, self._graphs[i], dtype)
            else:
                graph = masked_graph(discover_all([plain, model], self._inputs)[1].graph, self._masks)
                network = self._network(model, graph, dtype)
                fused = self._network(self.fused_model_, self.graph_, dtype)
                found = self._align_new(network, fused)
                plans, own, target_scales = found.couplings[0], found.source_scales[0], found.target_scales
            state = carry_state(network.state, graph, self.graph_, plans, own, target_scales)
            state = ones_where_any(state, self._masks)
            result.append(write_back(self.fused_model_, state, sized=plain, exact=True))
        return result

    def inverse_transform(self, models: Any, parent: int | nn.Module = 0) -> list[nn.Module]:
        r"""Carry models from the neuron order and scales of the fused model into those of a parent.

        `transform` carries the parent's parameters by a linear map A; this is :math:`A^{-1}`. Then
        ``inverse_transform(transform([other]), parent)`` is `other` aligned to the parent, and
        ``inverse_transform([fused_model_], parent)`` the fused network in the parent's order.

        Parameters
        ----------
        models : list of Module, or FusionInput
            Of the fused model's widths. They are not changed.
        parent : int or Module
            A model that `fit` was given, or its position. All its couplings must be permutations, with signs or without.

        Returns
        -------
        list of Module
            New modules in eval mode.

        Raises
        ------
        FusionError
            If there is no such parent, or its couplings can't be undone.
        """
        check_is_fitted(self)
        position = self._position(parent)
        back = {}
        for name, coupling in self._alignment.couplings[position].items():
            if coupling.index is None:
                raise FusionError(
                    f"The coupling of group {name!r} of model {position}, of shape {coupling.shape}, is no permutation and can't "
                    "be undone; fit with reg=0 and target_widths that are those of the models."
                )
            order = np.argsort(coupling.index)
            back[name] = Coupling(index=order, signs=None if coupling.signs is None else coupling.signs[order])
        own, scales = self._alignment.source_scales[position], self._alignment.target_scales
        result, fused = [], plain_state(self.fused_model_)
        for number, model in enumerate(validate_models(_models_of(models))):
            given = plain_state(model)
            for name, tensor in fused.items():
                shape = getattr(given.get(name), "shape", None)
                if shape != tensor.shape:
                    raise WidthError(
                        f"Model {number} must have the fused model's widths, but {name!r} has shape {shape}, not "
                        f"{tuple(tensor.shape)}; transform brings it there."
                    )
            network = self._network(model, self.graph_, _common_dtype([model]))
            state = carry_state(network.state, self.graph_, self._graphs[position], back, scales, own)
            state = ones_where_any(state, self._masks)
            result.append(write_back(model, state, sized=plain_copy(model), exact=True))
        return result

    def _position(self, parent: int | nn.Module) -> int:
        if isinstance(parent, nn.Module):
            mark = fingerprint(validate_models([parent])[0])
            if mark in self._seen:
                return self._seen.index(mark)
            raise FusionError("That network is no parent of the fusion; give one that it was fitted on, unchanged.")
        if not isinstance(parent, Integral) or not -len(self._seen) <= parent < len(self._seen):
            raise FusionError(f"parent must be a parent or its position, 0 to {len(self._seen) - 1}. Got {short_text(parent)}.")
        return parent % len(self._seen)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy of the fused model where `y` holds classes (class k is output k), R2 where it is continuous.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
            Rows; models that a FusionInput carries are not looked at.
        y : array-like of shape (n_samples, ...)
        sample_weight : array-like of shape (n_samples,), optional

        Raises
        ------
        TypeError
            If given models instead of rows.
        """
        check_is_fitted(self)
        data = rows_of(X)
        check_labels(data, y)
        predicted = outputs(self.fused_model_, data)
        return score_outputs(predicted, y, sample_weight, probabilities=self.graph_.ends_in_probabilities)

    @abstractmethod
    def _sizes(self, parents: list[Graph]) -> dict[str, int]:
        """Sizes of the target's groups."""

    @abstractmethod
    def _align(
        self, networks: list[Network], target: Graph, weights: list[float], probing: Probing | None, remember: Remember
    ) -> Alignment:
        """Couplings of the parents; `probing` runs them where activations are compared.

        ``remember(key, compute)`` is what `compute` returned for the same key and the same models, where fits share a
        FusionInput.
        """

    @abstractmethod
    def _align_new(self, network: Network, fused: Network) -> Alignment:
        """Couplings of one further network with the fused one."""

    def _lambda(self, n_models: int) -> list[float]:
        if self.weights is None:
            return [1 / n_models] * n_models
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.shape != (n_models,):
            raise FusionError(f"weights must have one entry per model: {n_models}. Got shape {weights.shape}.")
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise FusionError(f"weights must be finite, at least 0 and not all 0. Got {weights.tolist()}.")
        return (weights / weights.sum()).tolist()

    def _architectures(
        self, parents: list[nn.Module], data: FusionInput | None, copied: Callable[[nn.Module], nn.Module] = plain_copy
    ) -> list[Architecture]:
        inputs = dict(self.example_inputs) if isinstance(self.example_inputs, Mapping) else self.example_inputs
        if data is None:
            return discover_all(parents, inputs, list(map(copied, parents)))
        example = data.taken_by(parents[0]).tensors(parents[0], slice(0, 2)) if inputs is None else inputs
        return data.cached(inputs, lambda: apart(discover_all(parents, example, list(map(copied, parents)))))

    def _target(self, architectures: list[Architecture], sizes: dict[str, int]) -> Architecture:
        first = architectures[0]
        for a in dict.fromkeys(architectures):  # parents of several widths: each must widen without loss
            if a is not first:
                a.check_widening(sizes)
        return first.resized(sizes)

    def _network(
        self, model: nn.Module, graph: Graph, dtype: torch.dtype, copied: Callable[[nn.Module], nn.Module] = plain_copy
    ) -> Network:
        try:
            device = torch.device(self.device) if self.device is not None else device_of(model)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise FusionError(
                f"device={self.device!r} can't be used: {str(error).splitlines()[0]}. Give one that this machine has, such as "
                "'cpu', or None for the models' own."
            ) from error
        state = {name: tensor.to(device, dtype) for name, tensor in plain_state(model, copied).items()}
        state = masked_state(state, self._masks)
        return Network(graph, state, compared(state, self._masks))

    def _masked(self, architecture: Architecture) -> Architecture:
        graph = masked_graph(architecture.graph, self._masks)
        return architecture if graph is architecture.graph else replace(architecture, graph=graph)

    def _run_once(self) -> None:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched_modules(self.fused_model_):
                self.fused_model_(*cast_inputs(self._inputs, self.fused_model_))
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WidthError(
                f"The fused model does not run at widths {self.graph_.sizes}: {message}. A size may be written into the code."
            ) from error


def _models_of(given: Any) -> Any:
    return given.models if isinstance(given, FusionInput) else given


def _common_dtype(models: Sequence[nn.Module]) -> torch.dtype:
    """Where to compute: in double precision if a model has any."""
    double = any(t.dtype == torch.float64 for model in models for t in floating_state(model).values())
    return torch.float64 if double else torch.float32
