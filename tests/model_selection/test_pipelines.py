"""Transformers before a fusion: refused with the way that works, which works."""

import numpy as np
import pytest
from networks import MLP, disguised, randomised
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor
from sklearn_wbfuse.exceptions import FusionError

RNG = np.random.default_rng(0)
MODEL = randomised(MLP([4, 7, 3]), RNG)
MODELS = [MODEL, disguised(MODEL, RNG)]
RAW = 50 + 9 * RNG.normal(size=(60, 4))
TRANSFORMERS = {
    "scaler": StandardScaler(),
    "columns": ColumnTransformer([("a", StandardScaler(), [0, 2]), ("b", MinMaxScaler(), [1, 3])]),
    "union": make_union(MinMaxScaler(), FunctionTransformer(lambda X: X[:, :0])),
    "rotation": PCA(),
    "function": FunctionTransformer(np.log1p),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_refused_by_what_works(name):
    transformer = clone(TRANSFORMERS[name])
    rows = transformer.fit_transform(RAW)
    y = FusionClassifier().fit(MODELS).predict(rows)
    pipeline = make_pipeline(clone(transformer), FusionClassifier())
    for fit in (pipeline.fit, GridSearchCV(pipeline, {"fusionclassifier__batch_size": [7]}, error_score="raise").fit):
        with pytest.raises(FusionError, match=r"rows = scaler.fit_transform\(X\).*make_pipeline\(scaler, fitted\)"):
            fit(FusionInput(MODELS, RAW), y)
    search = GridSearchCV(FusionClassifier(), {"fusion__reg": [0, 1e-3]}, cv=3).fit(FusionInput(MODELS, rows), y)
    together = make_pipeline(transformer, search)
    np.testing.assert_array_equal(together.predict(RAW), y)
    assert together.score(RAW, y) == 1.0


@pytest.mark.parametrize(
    "use",
    [np.asarray, np.log1p, StandardScaler().fit, lambda data: BaggingClassifier(FusionClassifier()).fit(data, np.arange(60) % 3)],
)
def test_what_would_lose_the_models_says_so(use):
    with pytest.raises(FusionError, match="no place for its models"):
        use(FusionInput(MODELS, RAW))


def test_steps_that_pass_everything_through():
    y = FusionRegressor().fit(MODELS).predict(RAW)
    pipeline = make_pipeline("passthrough", FunctionTransformer(), FusionRegressor())
    assert pipeline.fit(FusionInput(MODELS, RAW), y).score(RAW, y) == pytest.approx(1)
    assert cross_val_score(pipeline, FusionInput(MODELS, RAW), y, cv=3).min() == pytest.approx(1)
