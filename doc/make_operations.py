"""Write doc/operations.md from the registry of rules: ``python doc/make_operations.py``."""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from sklearn_wbfuse import layers
from sklearn_wbfuse.layers.operations import TABLE
from sklearn_wbfuse.layers.registry import RULES

PAGE = Path(__file__).with_name("operations.md")
DESCRIPTIONS = {
    "identity": "identity: the values are unchanged",
    "sum": "linear: scales and signs pass, if they are the same for all operands",
    "linear": "linear: scales and signs pass, except for units that are summed over",
    "homogeneous": "homogeneous: scales pass, signs do not",
    "odd": "odd: signs pass, scales do not",
    "product": "product: scales and signs multiply",
    "quotient": "quotient: scales divide",
    "general": "general: neither scales nor signs pass",
}
TITLES = {
    "conv": "Convolutions, pooling and other operations over space",
    "elementwise": "Elementwise operations",
    "indexing": "Indexing and writing at positions",
    "linear": "Layers and products with matrices of weights",
    "movement": "Movement of data",
    "norm": "Norms",
    "product": "Products of computed values, attention",
    "recurrent": "Recurrent layers and cells",
    "reduction": "Reductions and other operations along a dimension",
}


def families() -> dict[str, dict[str, Callable[..., Any]]]:
    """Return the rules of ATen's operations by the module that contains them."""
    families: dict[str, dict[str, Callable[..., Any]]] = {}
    for operation, rule in sorted(RULES.items()):
        module = inspect.unwrap(rule).__module__
        if operation.startswith("aten::") and module.startswith(f"{layers.__name__}."):
            families.setdefault(module.rpartition(".")[2], {})[operation.removeprefix("aten::")] = rule
    return dict(sorted(families.items()))


def description(operation: str, rule: Callable[..., Any]) -> str:
    """Return the first line of a rule's docstring, or its kind, or the first line of its maker's or its module's docstring."""
    closure = inspect.getclosurevars(inspect.unwrap(rule)).nonlocals
    if rule.__doc__:
        return first_line(rule.__doc__)
    if TABLE[operation].kind == "identity":
        return DESCRIPTIONS["identity"]
    if isinstance(closure.get("kind"), str):
        return DESCRIPTIONS.get(closure["kind"], closure["kind"])
    module = inspect.getmodule(rule)
    maker = getattr(module, rule.__qualname__.partition(".")[0], None)
    return first_line(inspect.getdoc(maker) or inspect.getdoc(module) or "")


def first_line(text: str) -> str:
    """Return the first line of a docstring, escaped for Markdown."""
    return text.strip().splitlines()[0].replace("|", r"\|").replace("*", r"\*").replace("_", r"\_")


def n_decomposed() -> int:
    """Return how many further operations PyTorch decomposes."""
    names = {operation._schema.name for operation in torch.export.default_decompositions()}
    return len({name for name in names if name.startswith("aten::")} - set(RULES))


def lines() -> Iterator[str]:
    """Yield the lines of the page."""
    yield "# Operations that have a rule"
    yield ""
    yield "This page is generated: `python doc/make_operations.py` writes it from the"
    yield "registry `sklearn_wbfuse.layers.registry.RULES`. Names are those of ATen,"
    yield "without overloads. [Adapters](adapters.md) shows how to add a rule."
    for family, rules in families().items():
        yield f"\n## {TITLES.get(family, family.capitalize())}\n"
        yield "| operation | rule |"
        yield "|---|---|"
        for operation, rule in rules.items():
            yield f"| `{operation}` | {description(operation, rule)} |"
    yield "\n## All others\n"
    yield f"PyTorch {torch.__version__.partition('+')[0]} decomposes {n_decomposed()} further operations into simpler ones;"
    yield "they need no rule if their parts have rules. Units on which any other operation"
    yield "acts stay in place, and a warning names it."


def page() -> str:
    """Return the page."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
