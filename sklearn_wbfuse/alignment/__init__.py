"""Parents in, couplings out: the aligners, and the energy, gauge and schedules of the Wasserstein barycenter."""

from .aligned import AlignedParent, AlignedParents
from .aligner import Aligner, Identity
from .alignment import Alignment
from .carry import Carrier
from .energy import carried
from .features import Feature, extract_features
from .wasserstein import WassersteinAligner

__all__ = [
    "AlignedParent",
    "AlignedParents",
    "Aligner",
    "Alignment",
    "Carrier",
    "Feature",
    "Identity",
    "WassersteinAligner",
    "carried",
    "extract_features",
]
