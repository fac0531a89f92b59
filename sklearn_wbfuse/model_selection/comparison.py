"""Fusions side by side with their controls."""

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
BATCH_SIZE = 200  # of what is no predictor


def compare(
    models: Sequence[nn.Module], X: Any, y: Any, fusions: Any = None, *, X_fit: Any = None, verbose: bool = True
) -> Comparison:
    """Fuse models in several ways and score the results beside their controls.

    The controls are every parent, the best of them, their ensemble (the ceiling), the plain average of their parameters (the
    floor) and, for each fusion with a `correction`, the same correction of the plain average.

    Parameters
    ----------
    models : list of Module
        The parents. They are not changed.
    X : array-like or Tensor of shape (n_samples, ...), or tuple of them
        Rows that everything is scored on; a tuple for networks with several inputs. The fits see the first two rows at most,
        as examples for the discovery.
    y : array-like of shape (n_samples, ...)
        Labels (class k is output k), scored by accuracy, or continuous targets, scored by R2.
    fusions : estimator or list of estimators, optional
        What to compare, ``WassersteinFusion()`` by default; an empty list gives the controls alone. The estimators are cloned
        and stay as they are. Predictors among them say how the outputs of all networks of the table are read: with a
        `FusionRegressor` the score is R2, whatever `y` holds; a `FusionClassifier` names the labels of the outputs by `classes`,
        and says by `outputs` whether these are probabilities. Predictors that disagree are refused.
    X_fit : like X, optional
        Rows without labels for the fits, other than those of `X`: the fits get ``FusionInput(models, X_fit)``. Without them
        ``probe="auto"`` means noise.
    verbose : bool, default=True
        Print the table.

    Returns
    -------
    Comparison
        The rows of the table, a list of one dict each; it prints as the table, has its `metric` and `title`, and
        ``to_frame()`` makes a ``pandas.DataFrame`` of it. Keys of a row, None where there is no value:

        - ``name``: that of a fusion shows the parameters that are not at their defaults;
        - ``score``: accuracy or R2, as `score` of the fusions gives it; that of the ensemble is of the mean softmax output for
          classes, of the mean output for targets, single logits and probabilities;
        - ``to_parents``: the score less the mean of the parents';
        - ``agreement``: of a fusion with its parents, the mean of ``agreement_.with_parents`` over parents that have a weight; it
          needs no label, and is measured on what the fit saw, not on `X`. None for controls, whose estimators have it too;
        - ``parameters``: how many there are; the ensemble has those of all parents;
        - ``seconds``: of the fit. Finding the neuron groups has a row of its own, since the fits share it and nothing else; a
          fusion with `example_inputs` of its own finds them again;
        - ``note``: what there is to say: "below its best parent", and "alignment did not help", with what to try, where that is
          no better than the same without alignment. A fusion that raises a FusionError, or that needs
          what is not built yet, keeps its row: no score, and the message here;
        - ``estimator``: the fitted fusion.

        A fusion that would warn of a poor agreement says so by these alone.

    Raises
    ------
    InvalidModelError, NonFiniteError, ArchitectureMismatchError, DiscoveryError, SelfCheckError
        The models can't be fused by anything.
    FusionError
        `X`, `y` and `X_fit` do not fit together or have no rows, a label has no output, or predictors disagree.
    TypeError
        An entry of `fusions` is no estimator.

    Examples
    --------
    Two networks that differ in the order of their neurons alone:

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
    given = _estimators(fusions)
    rows, y = _labelled(X, y)
    shared = FusionInput(parents, (rows[:2] if X_fit is None else _other_rows(X_fit, rows)).arrays)
    start = time.perf_counter()
    architectures = architectures_of(parents, shared)  # kept in shared.cache
    seconds = time.perf_counter() - start
    kept = dict(shared.cache)
    score = _Score(y, given, architectures[0].spec)
    table, mean, best = _of_parents(parents, rows, score)
    table.append(_row("finding the neuron groups", seconds=seconds, note="once, for all fits"))
    controls: list[tuple[list[Any], dict[str, Any]]] = []
    losers: list[tuple[Any, dict[str, Any]]] = []
    for name, estimator, note in _with_controls(given):
        ready, data = _without_data(estimator, shared) if X_fit is None else (clone(estimator), shared)
        shared.cache.clear()  # of what other fits left there
        shared.cache.update(kept)
        row = _of_fusion(name, ready, data, rows, score, judged=note is None)
        if row["score"] is not None:
            row["to_parents"] = row["score"] - mean
            row["note"] = ("below its best parent" if row["score"] < best else "") if note is None else note
        table.append(row)
        if isinstance(_inside(estimator), VanillaAveraging):
            controls.append((_identity(_inside(estimator)), row))
        elif row["score"] is not None and row["score"] < best:
            losers.append((estimator, row))
    for estimator, row in losers:
        alone = _identity(unaligned(estimator))
        if any(row["score"] <= other["score"] for key, other in controls if key == alone and other["score"] is not None):
            row["note"] += f"; alignment did not help{_what_to_try(_inside(estimator), X_fit)}"
    seen = "no data" if X_fit is None else f"{counted(shared, 'other row')}, without labels"
    title = f"{counted(parents, 'network')}; {score.metric} on {counted(rows, 'row')}. The fits saw {seen}."
    found = Comparison(table, score.metric, title)
    if verbose:
        print(found, flush=True)
    return found


def _row(name: str, **values: Any) -> dict[str, Any]:
    """One row of the table, None where nothing is given."""
    keys = ("score", "to_parents", "agreement", "parameters", "seconds")
    return {"name": name, **dict.fromkeys(keys), "note": "", "estimator": None, **values}


def _estimators(fusions: Any) -> list[Any]:
    """A list of estimators.

    Raises
    ------
    TypeError
        Naming the first entry that is none.
    """
    if fusions is None:
        return [WassersteinFusion()]
    alone = isinstance(fusions, (type, nn.Module, str)) or not isinstance(fusions, Iterable)
    given = [fusions] if alone else list(fusions)
    for position, fusion in enumerate(given):
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
    return given


def _labelled(X: Any, y: Any) -> tuple[FusionInput, np.ndarray]:
    """Rows and their labels, as many of the one as of the other."""
    rows = rows_of(X)
    labels = as_array(y)
    if not len(rows):
        raise FusionError("There are no rows to score on; X needs at least one.")
    if not labels.shape or len(labels) != len(rows):
        got = f"y has {len(labels)}" if labels.shape else f"y is {short_text(y)}"
        raise FusionError(
            f"X has {len(rows)} rows but {got}; give one label per row. Several inputs of a network go into a tuple, not a list."
        )
    return rows, labels


def _other_rows(X_fit: Any, scored: FusionInput) -> FusionInput:
    """Rows for the fits, which must not be those that are scored."""
    rows = rows_of(X_fit)
    if not len(rows):
        raise FusionError("X_fit has no rows; leave it out to fuse without data.")
    if any(_share_memory(own, array) for own in rows.arrays for array in scored.arrays):
        raise FusionError("X_fit is X or shares memory with it; give the fits other rows than those they are scored on, or none.")
    return rows


def _share_memory(*pair: Any) -> bool:
    """Whether two arrays have elements in common; beyond the CPU, whether they are one tensor."""
    if any(isinstance(a, Tensor) and a.device.type != "cpu" for a in pair):
        return pair[0] is pair[1]
    bits = [a.detach().view(torch.int16) if a.dtype == torch.bfloat16 else a for a in pair]
    first, second = (a.detach().numpy() if isinstance(a, Tensor) else a for a in bits)
    return np.shares_memory(first, second)


def _of_parents(parents: list[nn.Module], rows: FusionInput, score: _Score) -> tuple[list[dict[str, Any]], float, float]:
    """Rows of the parents, their mean, the best and the ensemble; the scores of the mean and of the best."""
    predicted = [outputs(parent, rows) for parent in parents]
    scores = [score(own, f"parent {i}") for i, own in enumerate(predicted)]
    sizes = [n_parameters(parent) for parent in parents]
    mean, best = float(np.mean(scores)), int(np.argmax(scores))
    stacked = np.stack(predicted).astype(np.float64)
    if score.metric == "accuracy" and not score.probabilities and stacked.ndim > 2 and stacked.shape[2] > 1:
        stacked = softmax(stacked, axis=2)
    table = [_row(f"parent {i}", score=own, parameters=size) for i, (own, size) in enumerate(zip(scores, sizes, strict=True))]
    table.append(_row("parents, mean", score=mean))
    table.append(_row("best parent", score=scores[best], parameters=sizes[best], note=f"parent {best}"))
    table.append(_row("ensemble", score=score(stacked.mean(0), "the ensemble"), parameters=sum(sizes)))
    for row in table:
        row["to_parents"] = row["score"] - mean
    return table, mean, scores[best]


def _of_fusion(name: str, estimator: Any, data: Any, rows: FusionInput, score: _Score, *, judged: bool) -> dict[str, Any]:
    """Fit and score; an error of this library goes into the note."""
    row = _row(name)
    try:
        start = time.perf_counter()
        with warnings.catch_warnings(), outputs_are("targets" if score.metric == "R2" else "binary"):
            warnings.simplefilter("ignore", PoorFusionWarning)  # the row says how good it is
            estimator.fit(data)
        row["seconds"] = time.perf_counter() - start
        if not hasattr(estimator, "fused_model_"):
            raise TypeError(f"{name} has no fused_model_ after fit; compare takes fusions such as WassersteinFusion().")
        row["estimator"], row["parameters"] = estimator, n_parameters(estimator.fused_model_)
        row["agreement"] = _agreement(estimator) if judged else None
        batch_size = estimator.batch_size if isinstance(estimator, PREDICTORS) else BATCH_SIZE
        predicted = outputs(estimator.fused_model_, rows, batch_size)
        row["score"] = score(predicted, "the fused network")
    except (FusionError, NotImplementedError) as error:
        row["note"] = f"{type(error).__name__}: {error}"
    return row


class _Score:
    """As `score` of the fusions or of the predictors among them, but no score where outputs are not numbers."""

    def __init__(self, y: np.ndarray, fusions: list[Any], spec: NetworkSpec):
        self.y, self.probabilities, self.classifier = y, spec.ends_in_probabilities, None
        classifiers = [f for f in fusions if isinstance(f, FusionClassifier)]
        regressors = [f for f in fusions if isinstance(f, FusionRegressor)]
        if classifiers and regressors:
            raise FusionError(
                f"y holds classes or targets, but fusions hold {label_of(classifiers[0])} and {label_of(regressors[0])}; "
                "compare classifiers and regressors in two calls."
            )
        if regressors and y.dtype.kind not in "biuf":
            raise FusionError(f"A FusionRegressor needs numbers in y. Got {y.dtype}.")
        if classifiers:
            self.probabilities = _read(classifiers, spec)
            self.classifier = FusionClassifier(classes=classifiers[0].classes)
        is_continuous = bool(regressors) or (not classifiers and holds_targets(y))
        self.metric = "R2" if is_continuous else "accuracy"

    def __call__(self, predicted: np.ndarray, whose: str) -> float:
        if not np.isfinite(predicted).all() if self.metric == "R2" else np.isnan(predicted).any():
            raise FusionError(f"The outputs of {whose} hold NaN or infinite values.")
        y, classifier = self.y, self.classifier
        if classifier is not None:  # columns in the order of the sorted classes, which decides ties
            columns = class_scores(predicted, self.probabilities)
            classifier.classes_, order = classifier._sorted_classes(columns.shape[1])
            classifier._check_known(y)
            predicted, y = columns[:, order], np.searchsorted(classifier.classes_, y)
        return score_outputs(predicted, y, probabilities=self.probabilities, is_continuous=self.metric == "R2", whose=whose)


def _read(classifiers: list[FusionClassifier], spec: NetworkSpec) -> bool:
    """Whether classifiers take outputs for probabilities; they must agree on that and on the classes."""

    def meant(classifier: FusionClassifier) -> dict[str, Any]:
        classes = None if classifier.classes is None else as_array(classifier.classes).tolist()
        probabilities = are_probabilities(classifier.outputs, spec)
        default = classes is None or classes == list(range(np.size(classes)))
        return {"classes": "0, 1, ..." if default else classes, "outputs": "probabilities" if probabilities else "logits"}

    first = meant(classifiers[0])
    for classifier in classifiers[1:]:
        for name, value in meant(classifier).items():
            if value != first[name]:
                raise FusionError(
                    f"The predictors among fusions must agree on {name}. {label_of(classifiers[0])} says "
                    f"{reprlib.repr(first[name])} and {label_of(classifier)} {reprlib.repr(value)}; compare them in two calls."
                )
    return first["outputs"] == "probabilities"


def _with_controls(fusions: list[Any]) -> list[tuple[str, Any, str | None]]:
    """Name, estimator and note of everything to be fitted; the note of a fusion, None, depends on its score.

    A correction without alignment is fitted once for all fusions that differ in their alignment alone.
    """
    found: list[tuple[str, Any, str | None]] = [("plain average", VanillaAveraging(), "")]
    corrected = [_identity(f) for f in map(_inside, fusions) if isinstance(f, VanillaAveraging)]
    for fusion in fusions:
        found.append((label_of(fusion), fusion, None))
        control = unaligned(fusion)
        if getattr(control, "correction", None) is not None and _identity(control) not in corrected:
            corrected.append(_identity(control))
            found.append((label_of(control), control, "the same correction without alignment"))
    seen: Counter[str] = Counter()
    for position, (name, estimator, note) in enumerate(found):
        seen[name] += 1
        if seen[name] > 1:
            found[position] = (f"{name} #{seen[name]}", estimator, note)
    return found


def unaligned(fusion: Any) -> Any:
    """The plain average that differs from a fusion in the alignment alone; without a correction nothing is drawn."""
    options = _inside(fusion).get_params(deep=False)
    names = ["weights"] if options.get("correction") is None else list(VanillaAveraging().get_params())
    return VanillaAveraging(**{name: value for name, value in options.items() if name in names})


def _what_to_try(fusion: Any, X_fit: Any) -> str:
    """What may help the alignment of a fusion, of what it does not do yet."""
    options = fusion.get_params(deep=False)
    tries = ["X_fit=..."] if X_fit is None else []
    if "cost" in options:
        tries.append("cost=0.5" if options["cost"] in ("weight", "auto") else "cost='weight'")
    tries += ["n_init=4"] if options.get("n_init") == 1 else []
    return f", try {', '.join(tries)}" if tries else ""


def _agreement(estimator: Any) -> float | None:
    """How much a fitted fusion, or that of a predictor, agrees with its parents."""
    found = getattr(getattr(estimator, "fusion_", estimator), "agreement_", None)
    return None if found is None else found.mean


def _inside(estimator: Any) -> Any:
    """The fusion that a predictor fits; any other estimator is its own."""
    if not isinstance(estimator, PREDICTORS):
        return estimator
    return WassersteinFusion() if estimator.fusion is None else estimator.fusion


def _identity(estimator: Any) -> list[Any]:
    """Parameters, comparable: tensors, arrays and lists by their identity."""
    values = estimator.get_params(deep=False).values()
    plain = (type(None), str, int, float)
    return [
        v if isinstance(v, plain) or (isinstance(v, tuple) and all(isinstance(e, plain) for e in v)) else id(v) for v in values
    ]


def _without_data(estimator: Any, shared: FusionInput) -> tuple[Any, Any]:
    """A copy of an estimator, and what to fit it on, such that it sees nothing but the models and example inputs.

    `shared` holds two rows: an estimator that could take them for data gets the list of models and noise like them instead.
    """
    ready, options = clone(estimator), estimator.get_params(deep=True)
    probes = [name for name in options if name.removeprefix("fusion__") in ("probe", "probe__kind")]
    changed: dict[str, Any] = {name: "noise" for name in probes if options[name] == "auto"}
    if isinstance(_inside(estimator), BaseFusion) and all(options[name] != "data" for name in probes):
        return ready.set_params(**changed), shared
    for name in ("example_inputs", "fusion__example_inputs"):
        if name in options and options[name] is None:
            changed[name] = noise_like(shared.taken_by(shared.models[0]).tensors(shared.models[0]))
    return ready.set_params(**changed), list(shared.models)
