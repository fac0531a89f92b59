"""What all estimators share: hints for misspelt names."""

from collections import UserDict

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionRegressor, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.base import label_of
from sklearn_wbfuse.correction import BatchNorm, Probe, Regression, Repair

ALL = [WassersteinFusion, VanillaAveraging, FusionClassifier, FusionRegressor, Regression, Repair, BatchNorm, Probe]


@pytest.mark.parametrize("make", ALL)
def test_a_misspelt_parameter(make):
    name = next(iter(make().get_params()))
    with pytest.raises(ValueError, match=f"{make.__name__} has no parameter '{name}x'; it has .* Did you mean '{name}'"):
        make().set_params(**{name + "x": 1})
    with pytest.raises(ValueError, match=f"no parameter 'quux'; it has .*{name}.*\\]\\.$"):
        make().set_params(quux=1)


@pytest.mark.parametrize("make", [FusionClassifier, FusionRegressor])
def test_a_misspelt_parameter_of_the_fusion(make):
    with pytest.raises(ValueError, match=r"WassersteinFusion has no parameter 'regg'.* Did you mean 'reg'\?"):
        make().set_params(fusion__regg=1)
    with pytest.raises(ValueError, match=r"no parameter 'fusio__reg'.* Did you mean 'fusion__reg'\?"):
        make().set_params(fusio__reg=1)
    with pytest.raises(ValueError, match=r"no parameter 'reg'.* Did you mean 'fusion__reg'\?"):
        make().set_params(reg=1)


def test_a_call_that_fails_changes_nothing():
    classifier = FusionClassifier()
    with pytest.raises(ValueError, match="regg"):
        classifier.set_params(fusion__regg=1)
    assert classifier.fusion is None


def test_clones_share_networks():
    with sklearn.config_context(enable_metadata_routing=True):
        fusion = WassersteinFusion(init=nn.Linear(2, 2), weights=[1, 2]).set_score_request(sample_weight=True)
    twin = clone(FusionClassifier(fusion)).fusion
    assert twin.init is fusion.init and twin.weights == fusion.weights and twin.weights is not fusion.weights
    other = clone(fusion)
    assert other.get_metadata_routing().score.requests == fusion.get_metadata_routing().score.requests == {"sample_weight": True}
    with sklearn.config_context(enable_metadata_routing=True):
        other.set_score_request(sample_weight=False)
    assert fusion.get_metadata_routing().score.requests == {"sample_weight": True}


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [("schedule", "layerwize", "layerwise"), ("cost", "weights", "weight"), ("symmetry", "autp", "auto"), ("merge", "al", "all")],
)
def test_a_misspelt_option(name, value, hint):
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter of WassersteinFusion .*Did you mean '{hint}'"):
        WassersteinFusion(**{name: value}).fit([])


def test_other_wrong_options_have_no_hint():
    with pytest.raises(InvalidParameterError, match=r"The 'reg' parameter .* Got -1 instead\.$"):
        WassersteinFusion(reg=-1).fit([])


@pytest.mark.parametrize("make", ALL)
def test_the_link_leads_to_the_page_of_the_public_name(make):
    public = "sklearn_wbfuse" if make in ALL[:4] else "sklearn_wbfuse.correction"
    assert make()._get_doc_link().endswith(f"/generated/{public}.{make.__name__}.html")


def test_classes_of_others_do_not_link_to_our_pages():
    class Own(VanillaAveraging):
        pass

    assert Own()._get_doc_link() == ""


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (WassersteinFusion(correction=Regression(ridge=0.25)), "WassersteinFusion(correction=Regression(ridge=0.25))"),
        (
            FusionClassifier(VanillaAveraging(correction=(Repair(), Regression(ridge=0.25)), probe=Probe("noise", n_samples=50))),
            "FusionClassifier(fusion=VanillaAveraging(correction=(Repair(), Regression(ridge=0.25)), "
            "probe=Probe(kind='noise', n_samples=50)))",
        ),
        (WassersteinFusion(init=nn.Linear(2, 2), weights=np.ones(3)), "WassersteinFusion(weights=ndarray(3), init=Linear(...))"),
        (
            WassersteinFusion(example_inputs={"ids": torch.ones(2, 3), "mask": None}),
            "WassersteinFusion(example_inputs={'ids': Tensor(2, 3), 'mask': None})",
        ),
        (
            WassersteinFusion(example_inputs=UserDict(ids=torch.ones(2)), target_widths=list(range(9))),
            "WassersteinFusion(target_widths=[0, 1, 2, 3, 4, 5, ...], example_inputs={'ids': Tensor(2)})",
        ),
        (FusionClassifier(classes=("c" * 99,)), f"FusionClassifier(classes=('{'c' * 26}...{'c' * 9}',))"),
    ],
)
def test_labels_keep_classes_and_print_no_values(estimator, expected):
    assert label_of(estimator) == expected


@pytest.mark.parametrize("options", [{"reg": torch.ones(3)}, {"schedule": torch.ones(3)}, {"merge": nn.Linear(2, 2)}])
def test_errors_of_parameters_print_no_values(options):
    with pytest.raises(InvalidParameterError, match=r"Got (Tensor\(3\)|Linear\(\.\.\.\)) instead"):
        WassersteinFusion(**options).fit([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"example_inputs=Tensor\(3\) has none"):
        WassersteinFusion(example_inputs=torch.ones(3)).set_params(example_inputs__x=1)
