"""Procedurally drawn inputs: images, signals and strings of tokens with the statistics of natural ones."""

from .images import dead_leaves
from .signals import occluding_steps
from .tokens import zipf_chain

__all__ = ["dead_leaves", "occluding_steps", "zipf_chain"]
