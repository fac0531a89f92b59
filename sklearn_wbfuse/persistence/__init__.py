"""Fitted estimators on disk, as safetensors and JSON; reading them executes no code."""

from .estimators import PersistenceMixin, decode, load
from .files import CARD_HEAD, FILES, check_writable, read_folder, read_tensors
from .networks import complete_ties, example_outputs, fill, group_table, resized_architectures, restored_network

__all__ = [
    "CARD_HEAD",
    "FILES",
    "PersistenceMixin",
    "check_writable",
    "complete_ties",
    "decode",
    "example_outputs",
    "fill",
    "group_table",
    "load",
    "read_folder",
    "read_tensors",
    "resized_architectures",
    "restored_network",
]
