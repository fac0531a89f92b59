"""What every fusion shares: from a list of modules to couplings, a fused module and transformed modules."""

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
from .agreement import kind_of
from .configs import follow_widths
from .correcting import align, corrections_of, fuse, probe_of, run_on_probe
from .judging import JudgedMixin, a_few, fingerprint, known_kind, small_probe
from .making import Making, common_dtype, discovered, models_of, normalised
from .masking import fused_masks
from .progress import log, tells_progress
from .roles import Roles
from .storage import StorageMixin

__all__ = ["BaseFusion"]


class BaseFusion(JudgedMixin, StorageMixin, HelpfulMixin, TransformerMixin, BaseEstimator, ABC):
    r"""Base of all fusions: a subclass has parameters, and says by `roles` what it is made of.

    A subclass with parameters of its own takes these as ``**options`` and hands them on; they are its parameters too.

    Parameters
    ----------
    weights : list of float, optional
        The proportions :math:`\lambda_i` of the models; equal by default.
    correction : None, str, correction or tuple of them, default=None
        What follows the average, as in `WassersteinFusion`.
    probe : {"auto", "noise", "data"} or Probe, default="auto"
        Inputs for the correction, and for aligners that compare activations.
    example_inputs : tuple of Tensor, Tensor or mapping, optional
        Inputs for the discovery.
    device : str or torch.device, optional
        Where to compute; the models' own by default.
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
    weights: Sequence[float] | None = None  # of estimators whose own __init__ leaves these parameters out
    correction: Any = None
    probe: Any = "auto"
    example_inputs: Any = None
    device: Any = None
    random_state: Any = None
    verbose: int = 0
    _masks: Mapping[str, Mask] = MappingProxyType({})  # of folders that were saved before there were any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(auto_wrap_output_keys=None, **options)
        if "__init__" in vars(cls):
            _say_what_options_are(cls)

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
    @tells_progress
    def fit(self, models: Any, y: Any = None) -> Any:
        """Fuse models.

        Parameters
        ----------
        models : list of Module, or FusionInput
            The parents. They are not changed.
        y : array-like, optional
            Labels or targets of the rows of a FusionInput. Their number is checked; aligners and averagers of your own may learn
            from them, those of this library do not.

        Returns
        -------
        self

        Raises
        ------
        InvalidModelError, NonFiniteError, ArchitectureMismatchError, DiscoveryError, SelfCheckError, WidthError
            See the messages: each says which model, group and shape, and what to do.
        """
        given, data = _checked(models, y)
        kind, roles = known_kind() or kind_of(y), self.roles()
        if not isinstance(roles, Roles):
            raise TypeError(f"{type(self).__name__}.roles must return Roles(aligner, averager). Got {type(roles).__name__}.")
        corrections, probe = corrections_of(self.correction), probe_of(self.probe)
        is_lenient = isinstance(self.correction, str) and self.correction == "auto"
        weights, marks = normalised(self.weights, len(given)), [fingerprint(m) for m in given]
        copied = functools.cache(plain_copy)  # one copy a parent, whoever asks for it
        architectures, target, making = self._prepared(given, data, roles, copied)

        def made(copied: Callable[[nn.Module], nn.Module]) -> list[Parent]:
            return [making.parent(*each, copied) for each in zip(given, architectures, weights, strict=True)]

        def cached(key: Any, compute: Callable[[], Any]) -> Any:
            return compute() if data is None else data.cached((key, marks), compute)

        def later() -> ParentRunner:
            return ParentRunner(made(plain_copy), few, small_probe(probe), np.random.RandomState(0))

        parents, of_first = Parents(made(copied), further=making.further, cached=cached), plain_state(given[0], copied)
        compares, rng = roles.aligner.compares_activations, check_random_state(self.random_state)
        if corrections or compares:
            options = {"is_lenient": is_lenient, "is_needed": compares}
            parents = parents.with_runs(run_on_probe(parents, data, probe, corrections, rng, **options))
        copied.cache_clear()  # what nothing runs takes no memory from here on
        probabilities = target.spec.ends_in_probabilities
        objective = None if data is None or y is None else Objective(data, y, probabilities=probabilities)
        found, parents = align(roles, parents, target, objective, is_lenient=is_lenient)
        runs, corrections = parents.runs, corrections if parents.runs else []
        fused = fuse(roles, parents, found, target, corrections, objective, kind, is_lenient=is_lenient)
        state = fused_masks(fused.state, fused.parents, making.masks)
        self.fused_model_ = write_back(given[0], state, sized=target.plain, reuse_sized=True, template_state=of_first)
        self.fused_model_.to(device_of(given[0]))
        self.graph_, self.n_models_in_ = target.spec, len(given)
        self.couplings_ = [Couplings(plans) for plans in fused.alignment.couplings]
        self.energy_, self.n_iter_, self.history_ = fused.alignment.energy, fused.alignment.n_iter, fused.alignment.history
        self._alignment, self._specs, self._seen = fused.alignment, [a.spec for a in architectures], marks
        self._inputs, self._masks = target.inputs, making.masks
        self._saw_rows = data is not None and self.example_inputs is None
        self._run_once()
        follow_widths(self.fused_model_, given[0], self._inputs)
        few = None if runs else a_few(data)
        remedies = self._remedies(data, runs.source, len(given)) if corrections and runs else []
        self._judge(given, runs, later, kind, remedies, [] if making.masks else fused.outputs)
        return self

    def _prepared(
        self, models: Sequence[nn.Module], data: FusionInput | None, roles: Roles, copied: Callable[[nn.Module], nn.Module]
    ) -> tuple[list[Architecture], Architecture, Making]:
        """The architectures of the models and of the target, and how parents are made."""
        found = discovered(models, data, self.example_inputs, copied)
        warn_of_unread(models, found[0].spec, found[0].check)
        masks = find_masks(models, found[0].check)
        dtype = torch.float64 if masks else common_dtype(models)  # masks that count much leave few digits to weights
        making = Making(found[0].inputs, dtype, self.device, masks)
        architectures = list(map(making.masked, found))
        sizes = roles.aligner.sizes([a.spec for a in architectures])
        for a in dict.fromkeys(architectures[1:]):  # parents of several widths: each must widen without loss
            if a is not architectures[0]:
                a.check_widening(sizes)
        target = making.masked(architectures[0].resized(sizes))
        log.info("fusing %d models of %d groups into widths %s", len(models), len(sizes), list(sizes.values()))
        return architectures, target, replace(making, inputs=target.inputs)

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
        given = validate_models(models_of(models))
        result, fused = [], plain_copy(self.fused_model_)
        for model in given:
            making, mark = self._making([model, self.fused_model_]), fingerprint(model)
            if mark in self._seen:
                i, found = self._seen.index(mark), self._alignment
                spec, state = self._specs[i], making.tensors(model)
            else:
                i, found, parent = 0, *self._matched(model, fused, making)
                spec, state = parent.spec, parent.state
            carrier = Carrier(spec, self.graph_, found.couplings[i], found.source_scales[i], found.target_scales)
            state = ones_where_any(carrier.state(state), self._masks)
            result.append(write_back(self.fused_model_, state, sized=fused, exact=True))
        return result

    def _matched(self, model: nn.Module, fused: nn.Module, making: Making) -> tuple[Alignment, Parent]:
        """A network that the fit has not seen, and its alignment with the fused one."""
        first, other = discover_all([fused, model], self._inputs)
        parent = making.parent(model, making.masked(other))
        return self.roles().aligner.match(parent, making.parent(fused, replace(first, spec=self.graph_))), parent

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
        position = self.position_of(parent)
        back = {}
        for name, coupling in self._alignment.couplings[position].items():
            if not coupling.is_permutation:
                raise FusionError(
                    f"The coupling of group {name!r} of model {position}, of shape {coupling.shape}, is no permutation and can't "
                    "be undone; fit with reg=0 and target_widths that are those of the models."
                )
            back[name] = coupling.inverse()
        own, scales = self._alignment.source_scales[position], self._alignment.target_scales
        carrier = Carrier(self.graph_, self._specs[position], back, scales, own)
        result, fused = [], plain_state(self.fused_model_)
        for number, model in enumerate(validate_models(models_of(models))):
            given = plain_state(model)
            for name, tensor in fused.items():
                shape = getattr(given.get(name), "shape", None)
                if shape != tensor.shape:
                    raise WidthError(
                        f"Model {number} must have the fused model's widths, but {name!r} has shape {shape}, not "
                        f"{tuple(tensor.shape)}; transform brings it there."
                    )
            state = ones_where_any(carrier.state(self._making([model]).tensors(model)), self._masks)
            result.append(write_back(model, state, sized=plain_copy(model), exact=True))
        return result

    def position_of(self, parent: int | nn.Module) -> int:
        """The position of a parent among the models of `fit`, of a network or of a position that may be negative.

        Raises
        ------
        FusionError
            If there is no such parent.
        """
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
    def roles(self) -> Roles:
        """What the fusion is made of, from its parameters."""

    def _making(self, models: Sequence[nn.Module]) -> Making:
        """How networks beside the parents are made, for a computation with these models."""
        return Making(self._inputs, common_dtype(models), self.device, self._masks)

    def _run_once(self) -> None:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched_modules(self.fused_model_):
                self.fused_model_(*cast_inputs(self._inputs, self.fused_model_))
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WidthError(
                f"The fused model does not run at widths {self.graph_.sizes}: {message}. A size may be written into the code."
            ) from error


def _say_what_options_are(cls: Any) -> None:
    """Let the signature name the parameters that ``**options`` hand on, by which scikit-learn knows an estimator."""
    init: Any = vars(cls)["__init__"]
    *own, last = inspect.signature(init).parameters.values()
    if last.kind is last.VAR_KEYWORD:
        names = {p.name for p in own}
        above = inspect.signature(super(cls, cls).__init__).parameters.values()
        handed_on = [p.replace(kind=p.KEYWORD_ONLY) for p in above if p.name not in names]
        init.__signature__ = inspect.Signature([*own, *handed_on])


def _checked(models: Any, y: Any) -> tuple[list[nn.Module], FusionInput | None]:
    """The models, and rows if there are any, as the networks take them."""
    data = models if isinstance(models, FusionInput) else None
    given = validate_models(models_of(models))
    if data is None:
        if y is not None:
            raise InvalidModelError(
                "A list of models came with something else, which would not be looked at. Rows go beside the models: "
                "fit(FusionInput(models, X), y), or fit(models) without data."
            )
        return given, None
    if not len(data):
        raise FusionError("The FusionInput has no rows; give some, or fuse without data: fit(models).")
    if y is not None:
        check_labels(data, y)
    return given, data.taken_by(given[0])
