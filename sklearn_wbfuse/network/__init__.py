"""A network as data: neuron groups, labelled tensors, and what couples and mixes those of several networks."""

from .correspondence import Correspondence, SameNames
from .couplings import Coupling, Couplings, Permutation, Plan
from .groups import Group
from .mixture import Mixture
from .spec import NetworkSpec

__all__ = ["Correspondence", "Coupling", "Couplings", "Group", "Mixture", "NetworkSpec", "Permutation", "Plan", "SameNames"]
