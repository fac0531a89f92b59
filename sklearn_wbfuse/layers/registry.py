"""The registry: rules by operation, sizes by module class, declarations of custom modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Blocks", "Declaration", "declaration_of", "declare", "register_rule", "register_sizes", "rule_for", "sizes_of"]


@dataclass(frozen=True)
class Blocks:
    """The number of blocks in which the units on an axis of a parameter lie; the number of units if each is a block."""

    parameter: str
    axis: int


Rule = Callable[..., Any]
"""A function of `Constraints` and an operation's arguments that returns the resulting `Value` or tuple of them."""

Size = tuple[str, int] | tuple[str, int, int] | Blocks | Callable[[Any], Any]
"""The source of an attribute's value, see `register_sizes`."""

RULES: dict[str, Rule] = {}
SIZES: dict[type[nn.Module], dict[str, Size]] = {}
DECLARATIONS: dict[type[nn.Module], Declaration] = {}


def register_rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register the rule of one or more operations.

    A rule is called with the `Constraints` and the operation's arguments, with `Value` objects in place of tensors, and returns
    the resulting `Value` (or tuple of them).

    Parameters
    ----------
    *operations : str
        Names without overload, such as ``"aten::linear"`` or ``"mylib::gate"``.
    """

    def register(rule: Rule) -> Rule:
        for operation in operations:
            RULES[operation] = rule
        return rule

    return register


def rule_for(operation: str) -> Rule | None:
    """Return the rule of an operation, or None."""
    return RULES.get(operation)


def register_sizes(module: type[nn.Module], **attributes: Size) -> None:
    """Declare which attributes of a module class repeat the size of a parameter's axis, so that widths can change.

    A third entry divides the size: the first axis of an LSTM's weight holds four times ``hidden_size`` rows. `Blocks` represents
    the number of blocks on an axis (the groups of a convolution), and a function of the module computes what follows from other
    attributes.

    Examples
    --------
    >>> from torch import nn
    >>> register_sizes(nn.Linear, out_features=("weight", 0), in_features=("weight", 1))
    """
    SIZES[module] = attributes


def sizes_of(module: nn.Module) -> dict[str, Size]:
    """Return the attributes of a module that repeat the size of a parameter's axis."""
    for cls in type(module).__mro__:
        if cls in SIZES:
            return SIZES[cls]
    return {}


@dataclass(frozen=True)
class Declaration:
    """A user's declaration of a custom module; see `declare`."""

    axes: Mapping[str, tuple[str | None, ...]]
    input_dim: int
    output_dim: int
    elementwise: bool
    unused: tuple[str, ...]
    state_inputs: tuple[str, ...] = ()
    state_outputs: tuple[int, ...] = ()


def declare(
    module: type[nn.Module],
    axes: Mapping[str, tuple[str | None, ...]] | None = None,
    *,
    input_dim: int = -1,
    output_dim: int = -1,
    unused: tuple[str, ...] = (),
    state_inputs: tuple[str, ...] = (),
    state_outputs: tuple[int, ...] = (),
    sizes: Mapping[str, Size] | None = None,
) -> None:
    """Declare what the parameters of a custom module class mean.

    The library then treats the module as a whole and does not trace its inside. It must take and return one tensor.

    Parameters
    ----------
    module : type
        The class; subclasses are included.
    axes : mapping of str to tuple, optional
        For each parameter, one entry per axis: "in" (reads units of the input), "out" (computes units of the output),
        "unit" (one parameter per unit: output unit u depends on input unit u) or None (fixed). If omitted, the module is
        traced as usual.
    input_dim, output_dim : int
        The dimension of the input and of the output that holds the units.
    unused : tuple of str
        Parameters that the network intentionally does not use; the fused network has those of the first model.
    state_inputs : tuple of str
        Arguments of the network's forward that hold recurrent states which it returned before. Units of states that are not
        declared stay in place. States are in the neuron order of the network that returned them: a parent's state is
        meaningless to the fused network.
    state_outputs : tuple of int
        Positions of the outputs that hold such states.
    sizes : mapping, optional
        As in `register_sizes`: attribute -> (parameter, axis).

    Raises
    ------
    ValueError
        If an axis has any other name, or positions are negative.

    Examples
    --------
    >>> import torch
    >>> class Cosine(torch.nn.Module):
    ...     def __init__(self, n_in, n_out):
    ...         super().__init__()
    ...         self.weight = torch.nn.Parameter(torch.randn(n_out, n_in))
    ...
    ...     def forward(self, x):
    ...         return torch.nn.functional.linear(torch.cos(x), self.weight)
    >>> declare(Cosine, {"weight": ("out", "in")})
    """
    state_inputs = (state_inputs,) if isinstance(state_inputs, str) else tuple(state_inputs)
    state_outputs = (state_outputs,) if isinstance(state_outputs, int) else tuple(state_outputs)
    if any(k < 0 for k in state_outputs):
        raise ValueError(f"state_outputs must be nonnegative positions. Got {state_outputs}.")
    names = {name for entry in (axes or {}).values() for name in entry}
    unknown = names - {"in", "out", "unit", None}
    if unknown:
        raise ValueError(f"Axes of {module.__name__} must be 'in', 'out', 'unit' or None. Got {sorted(map(str, unknown))}.")
    if "unit" in names and names & {"in", "out"}:
        raise ValueError(
            f"Axes of {module.__name__} must not mix 'unit' with 'in' or 'out'. Got {axes}. Declare one kind of layer per module."
        )
    DECLARATIONS[module] = Declaration(
        dict(axes or {}), input_dim, output_dim, "unit" in names, tuple(unused), state_inputs, state_outputs
    )
    if sizes:
        register_sizes(module, **sizes)


def declaration_of(module: nn.Module) -> Declaration | None:
    """Return the declaration of a module's class, or None."""
    for cls in type(module).__mro__:
        if cls in DECLARATIONS:
            return DECLARATIONS[cls]
    return None
