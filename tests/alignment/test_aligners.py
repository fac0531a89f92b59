"""Aligners: the conformance suite."""

from conformance.aligners import AlignerConformance
from extending import LayerByLayer

from sklearn_wbfuse.alignment import Identity, WassersteinAligner


class TestIdentity(AlignerConformance):
    make = staticmethod(Identity)
    moves = False


class TestWassersteinAligner(AlignerConformance):
    make = staticmethod(WassersteinAligner)
    scales = True


class TestLayerByLayer(AlignerConformance):
    make = staticmethod(LayerByLayer)
