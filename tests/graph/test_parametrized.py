"""Parametrized tensors: fusion sees their values, the fused network keeps its parametrization."""

import pytest
import torch
from torch import nn

from sklearn_wbfuse import WassersteinFusion

NORMS = {
    "hook": nn.utils.weight_norm,
    "parametrization": nn.utils.parametrizations.weight_norm,
}


@pytest.fixture(params=NORMS)
def parents(request):
    torch.manual_seed(0)
    models = []
    for _ in range(2):
        normed = NORMS[request.param](nn.Linear(5, 4))
        models.append(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), normed, nn.ReLU(), nn.Linear(4, 2)).double())
    for model in models:
        model(torch.randn(2, 3, dtype=torch.float64))  # leaves a computed tensor with a gradient behind
    return models


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_is_fused_as_its_value_and_kept(parents):
    x = torch.randn(6, 3, dtype=torch.float64)
    names = [list(m.state_dict()) for m in parents]
    fusion = WassersteinFusion().fit(parents)
    moved = fusion.transform(parents)
    for model, twin in zip(parents, moved, strict=True):
        torch.testing.assert_close(twin(x), model(x))
    mean = (moved[0][2].weight + moved[1][2].weight) / 2
    fusion.fused_model_(x)  # recomputes the weight
    torch.testing.assert_close(fusion.fused_model_[2].weight, mean)
    assert list(fusion.fused_model_.state_dict()) == names[0]
    assert fusion.graph_.sizes == {"0": 5, "2": 4}
