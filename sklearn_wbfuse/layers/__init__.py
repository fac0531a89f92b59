"""Rules and adapters: how each operation treats the units of a network, in one registry.

``register_rule`` adds an operation, ``declare`` a custom module, ``register_sizes`` the attributes that repeat a width.
"""

from . import conv, elementwise, indexing, linear, movement, norm, product, recurrent, reduction
from .constraints import Constraints
from .labels import FIXED, LabelMap, Value
from .registry import Blocks, declaration_of, declare, register_rule, register_sizes, rule_for, sizes_of

__all__ = [
    "FIXED",
    "Blocks",
    "Constraints",
    "LabelMap",
    "Value",
    "conv",
    "declaration_of",
    "declare",
    "elementwise",
    "indexing",
    "linear",
    "movement",
    "norm",
    "product",
    "recurrent",
    "reduction",
    "register_rule",
    "register_sizes",
    "rule_for",
    "sizes_of",
]
