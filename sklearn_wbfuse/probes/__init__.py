"""Procedural inputs that look like the world: images, signals and strings of tokens, from a generator alone."""

from .images import dead_leaves
from .signals import occluding_steps
from .tokens import zipf_chain

__all__ = ["dead_leaves", "occluding_steps", "zipf_chain"]
