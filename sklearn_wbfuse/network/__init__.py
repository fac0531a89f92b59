"""A network as data: neuron groups, labelled tensors, and what couples and mixes those of several networks."""

from .correspondence import Correspondence, SameNames
from .couplings import Coupling, Couplings, Permutation, Plan
from .groups import Graph, Group
from .mixture import Mixture

__all__ = ["Correspondence", "Coupling", "Couplings", "Graph", "Group", "Mixture", "Permutation", "Plan", "SameNames"]
