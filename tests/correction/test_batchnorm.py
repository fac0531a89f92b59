import numpy as np
import pytest
import torch
from networks import CNN, MLP, randomised

from sklearn_wbfuse.correction import recompute_batchnorm
from sklearn_wbfuse.exceptions import FusionError


def test_statistics_become_those_of_the_data():
    model = randomised(MLP([5, 8, 3], norm="affine"), np.random.default_rng(0))
    X = torch.as_tensor(np.random.default_rng(1).normal(size=(64, 5)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fitted = recompute_batchnorm(model, X, batch_size=64)
    hidden = model.linears[0](X)
    torch.testing.assert_close(fitted.norms[0].running_mean, hidden.mean(0))
    torch.testing.assert_close(fitted.norms[0].running_var, hidden.var(0))
    assert not any(m.training for m in fitted.modules())
    assert fitted.norms[0].momentum == 0.1 and fitted.norms[0].num_batches_tracked == model.norms[0].num_batches_tracked
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_batches_are_averaged():
    model = randomised(MLP([5, 8, 3], norm="affine"), np.random.default_rng(0))
    X = np.random.default_rng(1).normal(size=(60, 5))
    hidden = model.linears[0](torch.as_tensor(X))
    fitted = recompute_batchnorm(model, X, batch_size=20)
    torch.testing.assert_close(fitted.norms[0].running_mean, hidden.mean(0))
    torch.testing.assert_close(fitted.norms[0].running_var, torch.stack([h.var(0) for h in hidden.split(20)]).mean(0))


def test_models_without_norms_and_too_few_rows():
    with pytest.raises(FusionError, match="needs batch norms with running statistics"):
        recompute_batchnorm(CNN(3, 3, 3), torch.zeros(4, 2, 8, 8))
    with pytest.raises(FusionError, match="at least 2 rows"):
        recompute_batchnorm(MLP([5, 8, 3], norm="plain"), torch.zeros(1, 5))
