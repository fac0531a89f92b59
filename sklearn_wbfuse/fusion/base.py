"""The base of all fusions: from a list of modules to couplings, a fused module and transformed modules."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..alignment import Alignment, Carrier
from ..base import HelpfulMixin, short_text
from ..data import FusionInput, Objective, check_labels, outputs, rows_of, score_outputs
from ..discovery import Architecture, cast_inputs, device_of, discover_all, plain_copy, plain_state, validate_models, write_back
from ..discovery.constants import warn_of_unread
from ..discovery.isolation import untouched_modules
from ..discovery.masks import Mask, find_masks, ones_where_any
from ..exceptions import FusionError, InvalidModelError, WidthError
from ..execution import Parent, ParentRunner, Parents
from ..network.couplings import Couplings
from .agreement import label_kind
from .configs import follow_widths
from .masking import fused_masks
from .measurement import AgreementMixin, a_few, declared_kind, fingerprint, small_probe
from .parent_factory import ParentFactory, architectures_of, common_dtype, models_of, normalised_weights
from .pipeline import align, corrections_of, fuse, probe_of, run_on_probe
from .progress import log, logs_progress
from .roles import Roles
from .storage import StorageMixin

__all__ = ["BaseFusion"]


class BaseFusion(AgreementMixin, StorageMixin, HelpfulMixin, TransformerMixin, BaseEstimator, ABC):
    r"""Base of all fusions: a subclass has parameters, and its method `roles` returns the roles that they define.

    A subclass with further parameters accepts these as ``**options`` and passes them on; they are its parameters too.

    Parameters
    ----------
    weights : list of float, optional
        The weights :math:`\lambda_i` of the models; equal by default.
    correction : None, str, correction or tuple of them, default=None
        Corrections of the averaged network, as in `WassersteinFusion`.
    probe : {"auto", "noise", "data"} or Probe, default="auto"
        Inputs for the correction, and for aligners that compare activations.
    example_inputs : tuple of Tensor, Tensor or mapping, optional
        Inputs for the discovery.
    device : str or torch.device, optional
        The device of computation; the models' own by default.
    random_state : int, RandomState or None, default=None
    verbose : int, default=0
    """

    __metadata_request__fit = {"models": UNUSED}
    __metadata_request__transform = {"models": UNUSED}

    _parameter_constraints: ClassVar[dict] = {
        "weights": ["array-like", None],
        "correction": "no_validation",
        "probe": "no_validation",
        "example_inputs": "no_validation",
        "device": "no_validation",
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }
    weights: Sequence[float] | None = None  # for estimators whose own __init__ omits these parameters
    correction: Any = None
    probe: Any = "auto"
    example_inputs: Any = None
    device: Any = None
    random_state: Any = None
    verbose: int = 0
    _masks: Mapping[str, Mask] = MappingProxyType({})  # for folders that were saved before masks existed

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(auto_wrap_output_keys=None, **options)
        if "__init__" in vars(cls):
            _name_options(cls)

    def __init__(
        self,
        *,
        weights: Sequence[float] | None = None,
        correction: Any = None,
        probe: Any = "auto",
        example_inputs: Any = None,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.weights = weights
        self.correction = correction
        self.probe = probe
        self.example_inputs = example_inputs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    @logs_progress
    def fit(self, models: Any, y: Any = None) -> Any:
        """Fuse models.

        Parameters
        ----------
        models : list of Module, or FusionInput
            The parents. They are not modified.
        y : array-like, optional
            Labels or targets of the rows of a FusionInput. Aligners and averagers of your own may use them; those of this
            library only check their number.

        Returns
        -------
        self

        Raises
        ------
        InvalidModelError, NonFiniteError, ArchitectureMismatchError, DiscoveryError, SelfCheckError, WidthError
            The message says which model, group and shape is wrong, and what to do.
        """
        networks, data = _checked(models, y)
        kind, roles = declared_kind() or label_kind(y), self.roles()
        if not isinstance(roles, Roles):
            raise TypeError(f"{type(self).__name__}.roles must return Roles(aligner, averager). Got {type(roles).__name__}.")
        corrections, probe = corrections_of(self.correction), probe_of(self.probe)
        is_lenient = isinstance(self.correction, str) and self.correction == "auto"
        weights, marks = normalised_weights(self.weights, len(networks)), [fingerprint(m) for m in networks]
        copied = functools.cache(plain_copy)  # one copy per parent, whoever needs it
        architectures, target, factory = self._prepared(networks, data, roles, copied)

        def make_parents(copied: Callable[[nn.Module], nn.Module]) -> list[Parent]:
            return [factory.parent(*arguments, copied) for arguments in zip(networks, architectures, weights, strict=True)]

        def cached(key: Any, compute: Callable[[], Any]) -> Any:
            return compute() if data is None else data.cached((key, marks), compute)

        def later() -> ParentRunner:
            return ParentRunner(make_parents(plain_copy), few, small_probe(probe), np.random.RandomState(0))

        parents = Parents(make_parents(copied), further=factory.further, cached=cached)
        first_state = plain_state(networks[0], copied)
        compares, rng = roles.aligner.compares_activations, check_random_state(self.random_state)
        if corrections or compares:
            options = {"is_lenient": is_lenient, "is_needed": compares}
            parents = parents.with_runs(run_on_probe(parents, data, probe, corrections, rng, **options))
        copied.cache_clear()  # release copies that nothing runs
        probabilities = target.spec.ends_in_probabilities
        objective = None if data is None or y is None else Objective(data, y, probabilities=probabilities)
        alignment, parents = align(roles, parents, target, objective, is_lenient=is_lenient)
        runs, corrections = parents.runs, corrections if parents.runs else []
        fused = fuse(roles, parents, alignment, target, corrections, objective, kind, is_lenient=is_lenient)
        state = fused_masks(fused.state, fused.parents, factory.masks)
        self.fused_model_ = write_back(networks[0], state, sized=target.plain, reuse_sized=True, template_state=first_state)
        self.fused_model_.to(device_of(networks[0]))
        self.graph_, self.n_models_in_ = target.spec, len(networks)
        self.couplings_ = [Couplings(plans) for plans in fused.alignment.couplings]
        self.energy_, self.n_iter_, self.history_ = fused.alignment.energy, fused.alignment.n_iter, fused.alignment.history
        self._alignment, self._specs, self._seen = fused.alignment, [a.spec for a in architectures], marks
        self._inputs, self._masks = target.inputs, factory.masks
        self._saw_rows = data is not None and self.example_inputs is None
        self._run_once()
        follow_widths(self.fused_model_, networks[0], self._inputs)
        few = None if runs else a_few(data)
        remedies = self._remedies(data, runs.source, len(networks)) if corrections and runs else []
        self._measure(networks, runs, later, kind, remedies, [] if factory.masks else fused.outputs)
        return self

    def _prepared(
        self, models: Sequence[nn.Module], data: FusionInput | None, roles: Roles, copied: Callable[[nn.Module], nn.Module]
    ) -> tuple[list[Architecture], Architecture, ParentFactory]:
        """Return the architectures of the models and of the target, and the factory of parents."""
        discovered = architectures_of(models, data, self.example_inputs, copied)
        warn_of_unread(models, discovered[0].spec, discovered[0].check)
        masks = find_masks(models, discovered[0].check)
        dtype = torch.float64 if masks else common_dtype(models)  # masks of large weight leave few digits for weights
        factory = ParentFactory(discovered[0].inputs, dtype, self.device, masks)
        architectures = list(map(factory.masked, discovered))
        sizes = roles.aligner.sizes([a.spec for a in architectures])
        for architecture in dict.fromkeys(architectures[1:]):  # each of several widths must widen without loss
            if architecture is not architectures[0]:
                architecture.check_widening(sizes)
        target = factory.masked(architectures[0].resized(sizes))
        log.info("fusing %d models of %d groups into widths %s", len(models), len(sizes), list(sizes.values()))
        return architectures, target, replace(factory, inputs=target.inputs)

    def transform(self, models: Any) -> list[nn.Module]:
        """Carry models into the neuron order, widths and scales of the fused model.

        Models seen in `fit` use their stored couplings, others are matched to `fused_model_`. With exact couplings, and widths
        equal to the models' or a multiple of them, the results compute the same functions as the models; entropic couplings
        (`reg` > 0) mix neurons.

        Parameters
        ----------
        models : list of Module, or FusionInput

        Returns
        -------
        list of Module
            New modules in eval mode.
        """
        check_is_fitted(self)
        networks = validate_models(models_of(models))
        result, fused = [], plain_copy(self.fused_model_)
        for model in networks:
            factory, mark = self._factory([model, self.fused_model_]), fingerprint(model)
            if mark in self._seen:
                i, alignment = self._seen.index(mark), self._alignment
                spec, state = self._specs[i], factory.tensors(model)
            else:
                i, alignment, parent = 0, *self._matched(model, fused, factory)
                spec, state = parent.spec, parent.state
            carrier = Carrier(spec, self.graph_, alignment.couplings[i], alignment.source_scales[i], alignment.target_scales)
            state = ones_where_any(carrier.state(state), self._masks)
            result.append(write_back(self.fused_model_, state, sized=fused, exact=True))
        return result

    def _matched(self, model: nn.Module, fused: nn.Module, factory: ParentFactory) -> tuple[Alignment, Parent]:
        """Align a network that was not part of the fit with the fused one."""
        first, other = discover_all([fused, model], self._inputs)
        parent = factory.parent(model, factory.masked(other))
        return self.roles().aligner.match(parent, factory.parent(fused, replace(first, spec=self.graph_))), parent

    def inverse_transform(self, models: Any, parent: int | nn.Module = 0) -> list[nn.Module]:
        r"""Carry models from the neuron order and scales of the fused model into those of a parent.

        `transform` carries the parent's parameters by a linear map A; this is :math:`A^{-1}`. Then
        ``inverse_transform(transform([other]), parent)`` is `other` aligned to the parent, and
        ``inverse_transform([fused_model_], parent)`` the fused network in the parent's order.

        Parameters
        ----------
        models : list of Module, or FusionInput
            Models of the fused model's widths. They are not modified.
        parent : int or Module
            A model of `fit`, or its position. All its couplings must be permutations, with or without signs.

        Returns
        -------
        list of Module
            New modules in eval mode.

        Raises
        ------
        FusionError
            If there is no such parent, or its couplings cannot be inverted.
        """
        check_is_fitted(self)
        position = self.position_of(parent)
        inverses = {}
        for name, coupling in self._alignment.couplings[position].items():
            if not coupling.is_permutation:
                raise FusionError(
                    f"All couplings of a parent must be permutations to be inverted. Got a plan of shape {coupling.shape} for "
                    f"group {name!r} of model {position}; fit with reg=0 and the models' own widths."
                )
            inverses[name] = coupling.inverse()
        source_scales, target_scales = self._alignment.source_scales[position], self._alignment.target_scales
        carrier = Carrier(self.graph_, self._specs[position], inverses, target_scales, source_scales)
        result, fused = [], plain_state(self.fused_model_)
        for number, model in enumerate(validate_models(models_of(models))):
            state = plain_state(model)
            for name, tensor in fused.items():
                shape = getattr(state.get(name), "shape", None)
                if shape != tensor.shape:
                    raise WidthError(
                        f"Model {number} must have the fused model's widths, {name!r} of shape {tuple(tensor.shape)}. Got shape "
                        f"{None if shape is None else tuple(shape)}; use transform first."
                    )
            state = ones_where_any(carrier.state(self._factory([model]).tensors(model)), self._masks)
            result.append(write_back(model, state, sized=plain_copy(model), exact=True))
        return result

    def position_of(self, parent: int | nn.Module) -> int:
        """Return the position of a parent among the models of `fit`, given the network or a position that may be negative.

        Raises
        ------
        FusionError
            If there is no such parent.
        """
        if isinstance(parent, nn.Module):
            mark = fingerprint(validate_models([parent])[0])
            if mark in self._seen:
                return self._seen.index(mark)
            raise FusionError("parent must be a network that the fusion was fitted on, unchanged. Got another network.")
        if not isinstance(parent, Integral) or not -len(self._seen) <= parent < len(self._seen):
            raise FusionError(f"parent must be a parent or its position, 0 to {len(self._seen) - 1}. Got {short_text(parent)}.")
        return parent % len(self._seen)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of the fused model if `y` holds classes (class k is output k), or R2 if it is continuous.

        Parameters
        ----------
        X : FusionInput, or array-like of shape (n_samples, ...)
            Rows; the models of a FusionInput are ignored.
        y : array-like of shape (n_samples, ...)
        sample_weight : array-like of shape (n_samples,), optional

        Raises
        ------
        TypeError
            If X is a list of models.
        """
        check_is_fitted(self)
        data = rows_of(X)
        check_labels(data, y)
        predicted = outputs(self.fused_model_, data)
        return score_outputs(predicted, y, sample_weight, probabilities=self.graph_.ends_in_probabilities)

    @abstractmethod
    def roles(self) -> Roles:
        """Return the roles that the parameters define."""

    def _factory(self, models: Sequence[nn.Module]) -> ParentFactory:
        """Return the factory of parents for a computation with these models."""
        return ParentFactory(self._inputs, common_dtype(models), self.device, self._masks)

    def _run_once(self) -> None:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched_modules(self.fused_model_):
                self.fused_model_(*cast_inputs(self._inputs, self.fused_model_))
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WidthError(
                f"The fused model must run at its widths, {self.graph_.sizes}. Got: {message}. A size may be written into the "
                "code."
            ) from error


def _name_options(cls: Any) -> None:
    """Add the parameters that ``**options`` passes on to the signature, from which scikit-learn reads parameters."""
    init: Any = vars(cls)["__init__"]
    *new, last = inspect.signature(init).parameters.values()
    if last.kind is last.VAR_KEYWORD:
        names = {p.name for p in new}
        inherited = inspect.signature(super(cls, cls).__init__).parameters.values()
        passed_on = [p.replace(kind=p.KEYWORD_ONLY) for p in inherited if p.name not in names]
        init.__signature__ = inspect.Signature([*new, *passed_on])


def _checked(models: Any, y: Any) -> tuple[list[nn.Module], FusionInput | None]:
    """Return the models, and the rows, if there are any, as the networks read them."""
    data = models if isinstance(models, FusionInput) else None
    networks = validate_models(models_of(models))
    if data is None:
        if y is not None:
            raise InvalidModelError(
                "y needs rows. Got a list of models alone; fit(FusionInput(models, X), y), or fit(models) without data."
            )
        return networks, None
    if not len(data):
        raise FusionError("A FusionInput must have rows. Got none; give some, or fuse without data: fit(models).")
    if y is not None:
        check_labels(data, y)
    return networks, data.taken_by(networks[0])
