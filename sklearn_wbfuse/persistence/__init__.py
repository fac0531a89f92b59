"""Fitted estimators on disk: safetensors and JSON, nothing that runs when it is read."""

from .estimators import PersistenceMixin, decoded, load
from .files import CARD_HEAD, FILES, check_writable, read_folder, read_tensors
from .networks import completed, example_outputs, fill, group_table, resized_to, restored_network

__all__ = [
    "CARD_HEAD",
    "FILES",
    "PersistenceMixin",
    "check_writable",
    "completed",
    "decoded",
    "example_outputs",
    "fill",
    "group_table",
    "load",
    "read_folder",
    "read_tensors",
    "resized_to",
    "restored_network",
]
