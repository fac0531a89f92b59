"""Networks, rows and fusions to compare."""

import numpy as np
import torch
from networks import MLP, randomised
from sklearn.base import BaseEstimator

from sklearn_wbfuse import WassersteinFusion, compare
from sklearn_wbfuse.base import label_of

ROWS = 80


PLAIN = WassersteinFusion(correction=None)


NAME = label_of(PLAIN)


"""The pure barycenter: scores do not depend on what a probe draws, and no control with the same correction is added."""


def family(widths=(5, 8, 6, 3), seeds=(0, 1)):
    return [randomised(MLP(list(widths)), np.random.default_rng(seed)) for seed in seeds]


def data(models, noise=0.5):
    """Rows, labels that the mean of the networks gives after some noise, and continuous targets."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(ROWS, 5))
    with torch.no_grad():
        mean = sum(m(torch.as_tensor(X)) for m in models).numpy() / len(models)
    targets = mean + noise * rng.normal(size=mean.shape)
    return X, targets.argmax(1), targets


def by_name(table):
    return {row["name"]: row for row in table}


def silent(*arguments, **options):
    return by_name(compare(*arguments, verbose=False, **options))


class Other(BaseEstimator):
    """A fusion that is none of this library: the first model, or an error."""

    fitted = []

    def __init__(self, error=None, example_inputs=None):
        self.error, self.example_inputs = error, example_inputs

    def fit(self, models):
        if self.error is not None:
            raise self.error
        Other.fitted.append((self, models))
        self.fused_model_ = models[0]


def scaled(models):
    """The second network is much surer, which the mean of logits hears and that of softmax outputs does not."""
    with torch.no_grad():
        for tensor in models[1].linears[-1].parameters():
            tensor *= 20
    return models
