"""What all estimators share: hints for misspelt names."""

import pytest
import sklearn
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from sklearn_wbfuse import FusionClassifier, FusionRegressor, VanillaAveraging, WassersteinFusion
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
    assert other._metadata_request.score.requests == fusion._metadata_request.score.requests == {"sample_weight": True}
    with sklearn.config_context(enable_metadata_routing=True):
        other.set_score_request(sample_weight=False)
    assert fusion._metadata_request.score.requests == {"sample_weight": True}


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
