"""Averagers: the conformance suite."""

from conformance.averagers import AveragerConformance
from extending import ByMagnitude

from sklearn_wbfuse.averaging import WeightedMean


class TestWeightedMean(AveragerConformance):
    make = staticmethod(WeightedMean)


class TestByMagnitude(AveragerConformance):
    def make(self):
        return ByMagnitude(1.0)
