"""Comparison of fusions with their controls."""

from __future__ import annotations

import reprlib
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import clone
from torch import Tensor, nn

from ..base import label_of, short_text
from ..data.fusion_input import FusionInput, noise_like, rows_of
from ..data.scores import are_probabilities, as_array, class_scores, holds_targets, outputs, score_outputs
from ..discovery import validate_models
from ..exceptions import FusionError, PoorFusionWarning
from ..fusion import VanillaAveraging, WassersteinFusion
from ..fusion.base import BaseFusion
from ..fusion.measurement import outputs_are
from ..fusion.parent_factory import architectures_of
from ..network.spec import NetworkSpec
from .predictors import FusionClassifier, FusionRegressor
from .table import Comparison, counted, n_parameters

__all__ = ["compare", "unaligned"]

PREDICTORS = (FusionClassifier, FusionRegressor)
BATCH_SIZE = 200  # of fusions that are not in a predictor


def compare(
    models: Sequence[nn.Module], X: Any, y: Any, fusions: Any = None, *, X_fit: Any = None, verbose: bool = True
) -> Comparison:
    """Fuse models in several ways and score the results together with their controls.

    The controls are every parent, the best parent, the ensemble of the parents (an upper baseline), the plain average of their
    parameters (a lower baseline) and, for each fusion with a `correction`, the same correction of the plain average.

    Parameters
    ----------
    models : list of Module
        The parents. They are not modified.
    X : array-like or Tensor of shape (n_samples, ...), or tuple of them
        Rows to score on; a tuple for networks with several inputs. The fits use at most the first two rows, as examples for the
        discovery.
    y : array-like of shape (n_samples, ...)
        Labels (class k is output k), scored by accuracy, or continuous targets, scored by R2.
    fusions : estimator or list of estimators, optional
        The fusions to compare, ``WassersteinFusion()`` by default; with an empty list only the controls are scored. The
        estimators are cloned and not modified. Predictors among them define how the outputs of all networks are interpreted:
        with a `FusionRegressor` the score is R2 for any `y`; a `FusionClassifier` defines the labels of the outputs by `classes`,
        and by `outputs` whether these are probabilities. Predictors must not contradict each other.
    X_fit : like X, optional
        Unlabelled rows for the fits, other than those of `X`: the fits receive ``FusionInput(models, X_fit)``. Without them
        ``probe="auto"`` means noise.
    verbose : bool, default=True
        Print the table.

    Returns
    -------
    Comparison
        The rows of the table, a list of one dict each. It prints as the table, has a `metric` and a `title`, and
        ``to_frame()`` converts it to a ``pandas.DataFrame``. The keys of a row, None if there is no value:

        - ``name``: for a fusion with the parameters that are not at their defaults;
        - ``score``: accuracy or R2, as by `score` of the fusions. The ensemble is the mean softmax output for classes, and the
          mean output for targets, single logits and probabilities;
        - ``to_parents``: the score minus the parents' mean;
        - ``agreement``: the agreement of a fusion with its parents, the mean of ``agreement_.with_parents`` over parents of
          nonzero weight. It needs no labels and is measured on the inputs of the fit, not on `X`. None for controls;
        - ``parameters``: their number, for the ensemble in all parents;
        - ``seconds``: the duration of the fit. Finding the neuron groups has a row of its own, since all fits share it; a fusion
          with its own `example_inputs` finds them again;
        - ``note``: "below its best parent", and "alignment did not help" with a suggestion if the fusion is no better than the
          same without alignment. A fusion that raises a FusionError or NotImplementedError has no score, and the message here;
        - ``estimator``: the fitted fusion.

        Warnings about a poor agreement are not shown, since the table contains this information.

    Raises
    ------
    InvalidModelError, NonFiniteError, ArchitectureMismatchError, DiscoveryError, SelfCheckError
        If the models cannot be fused.
    FusionError
        If `X`, `y` and `X_fit` do not match or have no rows, a label has no output, or predictors contradict each other.
    TypeError
        If an entry of `fusions` is no estimator.

    Examples
    --------
    Two networks that only differ in the order of their neurons:

    >>> import copy, torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> a = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> b, order = copy.deepcopy(a), torch.tensor([3, 0, 4, 2, 1])
    >>> for of_a, of_b in ((a[0].weight, b[0].weight), (a[0].bias, b[0].bias), (a[2].weight.T, b[2].weight.T)):
    ...     of_b.data[:] = of_a.data[order]
    >>> X = torch.randn(50, 4)
    >>> rows = compare([a, b], X, a(X).argmax(1))
    2 networks; accuracy on 50 rows. The fits saw no data.
    <BLANKLINE>
    network                              accuracy  to parents  agrees  parameters  seconds  note
    -----------------------------------  --------  ----------  ------  ----------  -------  -------------------------------------
    parent 0                              100.00%       +0.00                  43
    parent 1                              100.00%       +0.00                  43
    parents, mean                         100.00%       +0.00
    best parent                           100.00%       +0.00                  43           parent 0
    ensemble                              100.00%       +0.00                  86
    finding the neuron groups                                                         ...  once, for all fits
    plain average                          74.00%      -26.00                  43     ...
    WassersteinFusion()                   100.00%       +0.00  100.0%          43     ...
    VanillaAveraging(correction='auto')  ...  the same correction without alignment
    >>> rows = compare([a, b], X, a(X).argmax(1), verbose=False)
    >>> [(row["name"], row["score"]) for row in rows[-3:-1]]
    [('plain average', 0.74), ('WassersteinFusion()', 1.0)]
    """
    parents = validate_models(models)
    estimators = _estimators(fusions)
    rows, y = _labelled(X, y)
    shared = FusionInput(parents, (rows[:2] if X_fit is None else _other_rows(X_fit, rows)).arrays)
    start = time.perf_counter()
    architectures = architectures_of(parents, shared)  # stored in shared.cache
    seconds = time.perf_counter() - start
    discovery = dict(shared.cache)
    score = _Score(y, estimators, architectures[0].spec)
    table, mean, best = _rows_of_parents(parents, rows, score)
    table.append(_row("finding the neuron groups", seconds=seconds, note="once, for all fits"))
    controls: list[tuple[list[Any], dict[str, Any]]] = []
    below_best: list[tuple[Any, dict[str, Any]]] = []
    for name, estimator, note in _with_controls(estimators):
        to_fit, data = _without_data(estimator, shared) if X_fit is None else (clone(estimator), shared)
        shared.cache.clear()  # fits share the discovery only
        shared.cache.update(discovery)
        row = _row_of_fusion(name, to_fit, data, rows, score, is_control=note is not None)
        if row["score"] is not None:
            row["to_parents"] = row["score"] - mean
            row["note"] = ("below its best parent" if row["score"] < best else "") if note is None else note
        table.append(row)
        if isinstance(_fusion_of(estimator), VanillaAveraging):
            controls.append((_identity(_fusion_of(estimator)), row))
        elif row["score"] is not None and row["score"] < best:
            below_best.append((estimator, row))
    for estimator, row in below_best:
        control = _identity(unaligned(estimator))
        if any(row["score"] <= other["score"] for key, other in controls if key == control and other["score"] is not None):
            row["note"] += f"; alignment did not help{_suggestion(_fusion_of(estimator), X_fit)}"
    data_of_fits = "no data" if X_fit is None else f"{counted(shared, 'other row')}, without labels"
    title = f"{counted(parents, 'network')}; {score.metric} on {counted(rows, 'row')}. The fits saw {data_of_fits}."
    comparison = Comparison(table, score.metric, title)
    if verbose:
        print(comparison, flush=True)
    return comparison


def _row(name: str, **values: Any) -> dict[str, Any]:
    """Return one row of the table, with None for missing values."""
    keys = ("score", "to_parents", "agreement", "parameters", "seconds")
    return {"name": name, **dict.fromkeys(keys), "note": "", "estimator": None, **values}


def _estimators(fusions: Any) -> list[Any]:
    """Return a list of estimators.

    Raises
    ------
    TypeError
        If an entry is no estimator; the message names the first one.
    """
    if fusions is None:
        return [WassersteinFusion()]
    is_single = isinstance(fusions, (type, nn.Module, str)) or not isinstance(fusions, Iterable)
    estimators = [fusions] if is_single else list(fusions)
    for position, fusion in enumerate(estimators):
        kind = type(fusion).__name__
        if isinstance(fusion, type):
            wrong = f"the class {fusion.__name__}; give an instance, {fusion.__name__}()"
        elif isinstance(fusion, nn.Module):
            wrong = f"a network, {kind}; networks go first: compare(models, X, y, fusions)"
        elif not (hasattr(fusion, "fit") and hasattr(fusion, "get_params")):
            wrong = f"{kind}; give fusions such as WassersteinFusion()"
        else:
            continue
        raise TypeError(f"fusions[{position}] must be an estimator. Got {wrong}.")
    return estimators


def _labelled(X: Any, y: Any) -> tuple[FusionInput, np.ndarray]:
    """Return rows and their labels after checking that their numbers agree."""
    rows = rows_of(X)
    labels = as_array(y)
    if not len(rows):
        raise FusionError("X must have at least one row. Got none.")
    if not labels.shape or len(labels) != len(rows):
        got = f"y has {len(labels)}" if labels.shape else f"y is {short_text(y)}"
        raise FusionError(
            f"X has {len(rows)} rows but {got}; give one label per row. Put several inputs of a network into a tuple, not a list."
        )
    return rows, labels


def _other_rows(X_fit: Any, scored: FusionInput) -> FusionInput:
    """Return rows for the fits after checking that they are not the rows to score on."""
    rows = rows_of(X_fit)
    if not len(rows):
        raise FusionError("X_fit must have rows. Got none; leave it out to fuse without data.")
    if any(_share_memory(for_fit, for_score) for for_fit in rows.arrays for for_score in scored.arrays):
        raise FusionError("X_fit must hold other rows than X. Got rows that share memory with X; give others, or none.")
    return rows


def _share_memory(*pair: Any) -> bool:
    """Return whether two arrays have elements in common; on other devices than the CPU, whether they are the same tensor."""
    if any(isinstance(a, Tensor) and a.device.type != "cpu" for a in pair):
        return pair[0] is pair[1]
    bits = [a.detach().view(torch.int16) if a.dtype == torch.bfloat16 else a for a in pair]
    first, second = (a.detach().numpy() if isinstance(a, Tensor) else a for a in bits)
    return np.shares_memory(first, second)


def _rows_of_parents(parents: list[nn.Module], rows: FusionInput, score: _Score) -> tuple[list[dict[str, Any]], float, float]:
    """Return the rows of the parents, their mean, the best and the ensemble; and the scores of the mean and the best."""
    predicted = [outputs(parent, rows) for parent in parents]
    scores = [score(outputs, f"parent {i}") for i, outputs in enumerate(predicted)]
    sizes = [n_parameters(parent) for parent in parents]
    mean, best = float(np.mean(scores)), int(np.argmax(scores))
    stacked = np.stack(predicted).astype(np.float64)
    if score.metric == "accuracy" and not score.probabilities and stacked.ndim > 2 and stacked.shape[2] > 1:
        stacked = softmax(stacked, axis=2)
    table = [_row(f"parent {i}", score=value, parameters=size) for i, (value, size) in enumerate(zip(scores, sizes, strict=True))]
    table.append(_row("parents, mean", score=mean))
    table.append(_row("best parent", score=scores[best], parameters=sizes[best], note=f"parent {best}"))
    table.append(_row("ensemble", score=score(stacked.mean(0), "the ensemble"), parameters=sum(sizes)))
    for row in table:
        row["to_parents"] = row["score"] - mean
    return table, mean, scores[best]


def _row_of_fusion(name: str, estimator: Any, data: Any, rows: FusionInput, score: _Score, *, is_control: bool) -> dict[str, Any]:
    """Fit and score an estimator; errors of this library go into the note."""
    row = _row(name)
    try:
        start = time.perf_counter()
        with warnings.catch_warnings(), outputs_are("targets" if score.metric == "R2" else "binary"):
            warnings.simplefilter("ignore", PoorFusionWarning)  # the row shows the agreement
            estimator.fit(data)
        row["seconds"] = time.perf_counter() - start
        if not hasattr(estimator, "fused_model_"):
            raise TypeError(f"fusions must have a fused_model_ after fit, as WassersteinFusion() has. {name} has none.")
        row["estimator"], row["parameters"] = estimator, n_parameters(estimator.fused_model_)
        row["agreement"] = None if is_control else _agreement(estimator)
        batch_size = estimator.batch_size if isinstance(estimator, PREDICTORS) else BATCH_SIZE
        predicted = outputs(estimator.fused_model_, rows, batch_size)
        row["score"] = score(predicted, "the fused network")
    except (FusionError, NotImplementedError) as error:
        row["note"] = f"{type(error).__name__}: {error}"
    return row


class _Score:
    """Scores like the fusions, or like the predictors among them, but raises an error for outputs that are not finite."""

    def __init__(self, y: np.ndarray, fusions: list[Any], spec: NetworkSpec):
        self.y, self.probabilities, self.classifier = y, spec.ends_in_probabilities, None
        classifiers = [f for f in fusions if isinstance(f, FusionClassifier)]
        regressors = [f for f in fusions if isinstance(f, FusionRegressor)]
        if classifiers and regressors:
            raise FusionError(
                f"fusions must not mix classifiers and regressors. Got {label_of(classifiers[0])} and "
                f"{label_of(regressors[0])}; compare them in two calls."
            )
        if regressors and y.dtype.kind not in "biuf":
            raise FusionError(f"A FusionRegressor needs numbers in y. Got {y.dtype}.")
        if classifiers:
            self.probabilities = _common_kind(classifiers, spec)
            self.classifier = FusionClassifier(classes=classifiers[0].classes)
        is_continuous = bool(regressors) or (not classifiers and holds_targets(y))
        self.metric = "R2" if is_continuous else "accuracy"

    def __call__(self, predicted: np.ndarray, whose: str) -> float:
        if not np.isfinite(predicted).all() if self.metric == "R2" else np.isnan(predicted).any():
            raise FusionError(f"The outputs of {whose} hold NaN or infinite values.")
        y, classifier = self.y, self.classifier
        if classifier is not None:  # columns in the order of the sorted classes, which breaks ties
            columns = class_scores(predicted, self.probabilities)
            classifier.classes_, order = classifier._sorted_classes(columns.shape[1])
            classifier._check_known(y)
            predicted, y = columns[:, order], np.searchsorted(classifier.classes_, y)
        return score_outputs(predicted, y, probabilities=self.probabilities, is_continuous=self.metric == "R2", whose=whose)


def _common_kind(classifiers: list[FusionClassifier], spec: NetworkSpec) -> bool:
    """Return whether classifiers interpret outputs as probabilities; they must agree on that and on the classes."""

    def interpretation(classifier: FusionClassifier) -> dict[str, Any]:
        classes = None if classifier.classes is None else as_array(classifier.classes).tolist()
        probabilities = are_probabilities(classifier.outputs, spec)
        is_default = classes is None or classes == list(range(np.size(classes)))
        return {"classes": "0, 1, ..." if is_default else classes, "outputs": "probabilities" if probabilities else "logits"}

    first = interpretation(classifiers[0])
    for classifier in classifiers[1:]:
        for name, value in interpretation(classifier).items():
            if value != first[name]:
                raise FusionError(
                    f"The predictors among fusions must agree on {name}. Got {reprlib.repr(first[name])} of "
                    f"{label_of(classifiers[0])} and {reprlib.repr(value)} of {label_of(classifier)}; compare them in two calls."
                )
    return first["outputs"] == "probabilities"


def _with_controls(fusions: list[Any]) -> list[tuple[str, Any, str | None]]:
    """Return name, estimator and note of all fits; the note of a fusion, None, will depend on its score.

    A correction without alignment is fitted once for all fusions that only differ in their alignment.
    """
    fits: list[tuple[str, Any, str | None]] = [("plain average", VanillaAveraging(), "")]
    corrected = [_identity(f) for f in map(_fusion_of, fusions) if isinstance(f, VanillaAveraging)]
    for fusion in fusions:
        fits.append((label_of(fusion), fusion, None))
        control = unaligned(fusion)
        if getattr(control, "correction", None) is not None and _identity(control) not in corrected:
            corrected.append(_identity(control))
            fits.append((label_of(control), control, "the same correction without alignment"))
    counts: Counter[str] = Counter()
    for position, (name, estimator, note) in enumerate(fits):
        counts[name] += 1
        if counts[name] > 1:
            fits[position] = (f"{name} #{counts[name]}", estimator, note)
    return fits


def unaligned(fusion: Any) -> Any:
    """Return the plain average that only differs from a fusion in the alignment."""
    options = _fusion_of(fusion).get_params(deep=False)
    names = ["weights"] if options.get("correction") is None else list(VanillaAveraging().get_params())
    return VanillaAveraging(**{name: value for name, value in options.items() if name in names})


def _suggestion(fusion: Any, X_fit: Any) -> str:
    """Return options that may improve the alignment of a fusion."""
    options = fusion.get_params(deep=False)
    suggestions = ["X_fit=..."] if X_fit is None else []
    if "cost" in options:
        suggestions.append("cost=0.5" if options["cost"] in ("weight", "auto") else "cost='weight'")
    suggestions += ["n_init=4"] if options.get("n_init") == 1 else []
    return f", try {', '.join(suggestions)}" if suggestions else ""


def _agreement(estimator: Any) -> float | None:
    """Return the mean agreement with the parents of a fitted fusion, or of that of a predictor."""
    agreement = getattr(getattr(estimator, "fusion_", estimator), "agreement_", None)
    return None if agreement is None else agreement.mean


def _fusion_of(estimator: Any) -> Any:
    """Return the fusion that a predictor fits, or the estimator itself if it is no predictor."""
    if not isinstance(estimator, PREDICTORS):
        return estimator
    return WassersteinFusion() if estimator.fusion is None else estimator.fusion


def _identity(estimator: Any) -> list[Any]:
    """Return the parameters in a form that can be compared: tensors, arrays and lists by their identity."""
    values = estimator.get_params(deep=False).values()
    plain = (type(None), str, int, float)
    return [
        v if isinstance(v, plain) or (isinstance(v, tuple) and all(isinstance(e, plain) for e in v)) else id(v) for v in values
    ]


def _without_data(estimator: Any, shared: FusionInput) -> tuple[Any, Any]:
    """Return a clone of an estimator and its input, such that the fit only uses the models and example inputs.

    `shared` holds two rows: an estimator that might use them as data receives the list of models and similar noise instead.
    """
    cloned, options = clone(estimator), estimator.get_params(deep=True)
    probes = [name for name in options if name.removeprefix("fusion__") in ("probe", "probe__kind")]
    changed: dict[str, Any] = {name: "noise" for name in probes if options[name] == "auto"}
    if isinstance(_fusion_of(estimator), BaseFusion) and all(options[name] != "data" for name in probes):
        return cloned.set_params(**changed), shared
    for name in ("example_inputs", "fusion__example_inputs"):
        if name in options and options[name] is None:
            changed[name] = noise_like(shared.taken_by(shared.models[0]).tensors(shared.models[0]))
    return cloned.set_params(**changed), list(shared.models)
