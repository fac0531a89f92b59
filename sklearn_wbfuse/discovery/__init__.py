"""From an ``nn.Module`` to labelled tensors: export, interpreter of labels, self-check, declarations by hand."""

from .architecture import Architecture, discover, discover_all, with_separate_networks
from .inputs import as_inputs, cast_inputs, guess_inputs
from .modules import device_of, plain_copy, plain_state, unwrap, validate_models, write_back
from .ranges import seems_probable
from .resizing import sizes_in
from .states import resized_inputs
from .tensors import floating_state

__all__ = [
    "Architecture",
    "as_inputs",
    "cast_inputs",
    "device_of",
    "discover",
    "discover_all",
    "floating_state",
    "guess_inputs",
    "plain_copy",
    "plain_state",
    "resized_inputs",
    "seems_probable",
    "sizes_in",
    "unwrap",
    "validate_models",
    "with_separate_networks",
    "write_back",
]
