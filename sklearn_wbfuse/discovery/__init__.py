"""From an ``nn.Module`` to labelled tensors: export, interpreter of labels, self-check, declarations by hand."""

from .architecture import Architecture, apart, discover, discover_all
from .inputs import as_inputs, cast_inputs, guess_inputs
from .modules import device_of, plain_copy, plain_state, sizes_in, unwrap, validate_models, write_back
from .ranges import seems_probable
from .states import resized_inputs
from .tensors import floating_state

__all__ = [
    "Architecture",
    "apart",
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
    "write_back",
]
