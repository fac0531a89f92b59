import pytest
from conformance.fusers import FuserConformance
from extending import LayerwiseFusion, MagnitudeFusion

from sklearn_wbfuse import VanillaAveraging, WassersteinFusion


class TestVanillaAveraging(FuserConformance):
    def make(self, **parameters):
        return VanillaAveraging(**parameters)


class TestWassersteinFusion(FuserConformance):
    def make(self, **parameters):
        return WassersteinFusion(**{"correction": None, "random_state": 0, **parameters})


class TestLayerwise(FuserConformance):
    def make(self, **parameters):
        return WassersteinFusion(**{"correction": None, "schedule": "layerwise", "symmetry": "permutation", **parameters})


@pytest.mark.slow
class TestLayerwiseFusion(FuserConformance):
    make = staticmethod(LayerwiseFusion)


@pytest.mark.slow
class TestMagnitudeFusion(FuserConformance):
    make = staticmethod(MagnitudeFusion)
    is_mean = False
