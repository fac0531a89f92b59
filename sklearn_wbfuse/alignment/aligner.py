"""The role of aligners, and the aligner that leaves neurons where they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..data import Objective
from ..exceptions import WidthError
from ..execution import Parent, Parents
from ..network.couplings import Coupling
from ..network.spec import NetworkSpec
from .alignment import Alignment

__all__ = ["Aligner", "Identity"]


class Aligner(ABC):
    """Parents in, a coupling of every neuron group of every parent with the target's out: abstract.

    The couplings of permuted copies of one network are the permutations: carried to the target, the copies are equal.
    """

    compares_activations: bool = False
    """Whether `align` needs the parents run on inputs, ``parents.runs``, even where nothing is corrected."""

    def sizes(self, specs: Sequence[NetworkSpec]) -> dict[str, int]:
        """The sizes of the target's groups, from the parents'; by default they must be equal.

        Raises
        ------
        WidthError
            If parents of these sizes can't be aligned.
        """
        first = specs[0].sizes
        for position, spec in enumerate(specs):
            for name, size in spec.sizes.items():
                if size != first[name]:
                    raise WidthError(
                        f"Equal widths are needed. Group {name!r} has {first[name]} neurons in model 0 "
                        f"and {size} in model {position}; WassersteinFusion fuses different widths."
                    )
        return first

    @abstractmethod
    def align(self, parents: Parents, target: NetworkSpec, objective: Objective | None = None) -> Alignment:
        """Couple all parents with the target.

        Parameters
        ----------
        parents : Parents
            ``parent.graph`` has the groups and labelled tensors, ``parent.compared`` the tensors.
        target : Graph
            Groups of the sizes that `sizes` gave.
        objective : Objective, optional
            Rows and labels, where they are known.
        """

    def match(self, parent: Parent, fused: Parent) -> Alignment:
        """Couple one further network with a fused one; by default both are aligned with each other."""
        self.sizes([fused.spec, parent.spec])
        found = self.align(Parents([fused, parent]), fused.spec)
        to_fused, to_parent = found.couplings
        couplings = {name: to_fused[name].inverse().compose(to_parent[name]) for name in to_parent}
        return Alignment([couplings], [found.source_scales[1]], found.source_scales[0])


class Identity(Aligner):
    """Neurons stay where they are, as in plain averages; the energy is that of the parents as they stand."""

    def align(self, parents: Parents, target: NetworkSpec, objective: Objective | None = None) -> Alignment:
        """See `Aligner`."""
        identity = {name: Coupling.identity(size) for name, size in target.sizes.items()}
        return Alignment.of(parents, target, [identity for _ in parents])
