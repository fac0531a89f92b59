"""The role of aligners, and the aligner that keeps the order of neurons."""

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
    """Couple every neuron group of every parent with the target: abstract.

    The couplings of permuted copies of one network are the permutations: carried to the target, the copies are equal.
    """

    compares_activations: bool = False
    """Whether `align` needs the parents' activations, ``parents.runs``, even if nothing is corrected."""

    def sizes(self, specs: Sequence[NetworkSpec]) -> dict[str, int]:
        """Return the sizes of the target's groups; by default all parents must have equal sizes.

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
                        f"All models must have equal widths. Got {first[name]} neurons in group {name!r} of model 0 "
                        f"and {size} in model {position}. WassersteinFusion fuses different widths."
                    )
        return first

    @abstractmethod
    def align(self, parents: Parents, target: NetworkSpec, objective: Objective | None = None) -> Alignment:
        """Couple all parents with the target.

        Parameters
        ----------
        parents : Parents
            ``parent.spec`` holds the groups and labelled tensors, ``parent.compared`` the tensors to compare.
        target : NetworkSpec
            The target's groups, in the sizes that `sizes` returned.
        objective : Objective, optional
            Labelled rows, if there are any.
        """

    def match(self, parent: Parent, fused: Parent) -> Alignment:
        """Couple a further network with a fused one; by default by aligning the two with each other."""
        self.sizes([fused.spec, parent.spec])
        alignment = self.align(Parents([fused, parent]), fused.spec)
        to_fused, to_parent = alignment.couplings
        couplings = {name: to_fused[name].inverse().compose(to_parent[name]) for name in to_parent}
        return Alignment([couplings], [alignment.source_scales[1]], alignment.source_scales[0])


class Identity(Aligner):
    """Keep the order of neurons, as in plain averages; the energy is that of the parents as they are."""

    def align(self, parents: Parents, target: NetworkSpec, objective: Objective | None = None) -> Alignment:
        """See `Aligner`."""
        identity = {name: Coupling.identity(size) for name, size in target.sizes.items()}
        return Alignment.of(parents, target, [identity for _ in parents])
