"""The one registry: rules keyed by operation, sizes keyed by module class, declarations for own modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Blocks", "Declaration", "declaration_of", "declare", "register_rule", "register_sizes", "rule_for", "sizes_of"]


@dataclass(frozen=True)
class Blocks:
    """The number of blocks in which the units on an axis of a parameter lie, or of the units themselves."""

    parameter: str
    axis: int


RULES: dict[str, Callable[..., Any]] = {}
Size = tuple[str, int] | tuple[str, int, int] | Blocks | Callable[[Any], Any]
SIZES: dict[type[nn.Module], dict[str, Size]] = {}
DECLARATIONS: dict[type[nn.Module], Declaration] = {}


def register_rule(*operations: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the rule of one or more operations.

    A rule is called with the `Constraints` and the operation's arguments, `Value` objects in place of tensors, and returns the
    `Value` (or tuple of them) that the operation computes.

    Parameters
    ----------
    *operations : str
        Names without overload, for instance ``"aten::linear"`` or ``"mylib::gate"``.
    """

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        for operation in operations:
            RULES[operation] = rule
        return rule

    return register


def rule_for(operation: str) -> Callable[..., Any] | None:
    """The rule of an operation, or None."""
    return RULES.get(operation)


def register_sizes(module: type[nn.Module], **attributes: Size) -> None:
    """Say which attributes of a module class repeat the size of a parameter's axis, so that widths can change.

    A third entry divides it: the first axis of an LSTM's weight holds four times ``hidden_size`` rows. `Blocks` stands for the
    number of blocks of an axis (the groups of a convolution), and a function of the module for what follows from the others.

    Examples
    --------
    >>> from torch import nn
    >>> register_sizes(nn.Linear, out_features=("weight", 0), in_features=("weight", 1))
    """
    SIZES[module] = attributes


def sizes_of(module: nn.Module) -> dict[str, Size]:
    """Attributes of a module that repeat the size of a parameter's axis."""
    for cls in type(module).__mro__:
        if cls in SIZES:
            return SIZES[cls]
    return {}


@dataclass(frozen=True)
class Declaration:
    """What a user says of an own module; see `declare`."""

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
    """Declare by hand what the parameters of an own module class mean.

    The module is then taken as a whole and its inside is not traced. It must take one tensor and return one tensor.

    Parameters
    ----------
    module : type
        The class; its instances and those of subclasses are meant.
    axes : mapping of str to tuple, optional
        For each parameter, one entry per axis: "in" (reads units of the input), "out" (computes units of the output),
        "unit" (one parameter per unit: output unit u depends on input unit u) or None (fixed). Without it the module is
        traced as usual.
    input_dim, output_dim : int
        The dimension of the input and of the output that holds the units.
    unused : tuple of str
        Parameters that the network is right not to use; they stay as they are in the first model.
    state_inputs : tuple of str
        Arguments of the network's forward that hold recurrent states which it returned before. Without this, units whose
        state the caller gives or gets stay in place. States travel in the neuron order of the network that returned them: one
        of a parent means nothing to the fused network.
    state_outputs : tuple of int
        Which of the outputs hold such states.
    sizes : mapping, optional
        As in `register_sizes`: attribute -> (parameter, axis).

    Raises
    ------
    ValueError
        If an axis is called anything else.

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
        raise ValueError(f"state_outputs must be positions from 0 on. Got {state_outputs}.")
    names = {name for entry in (axes or {}).values() for name in entry}
    unknown = names - {"in", "out", "unit", None}
    if unknown:
        raise ValueError(f"Axes of {module.__name__} must be 'in', 'out', 'unit' or None. Got {sorted(map(str, unknown))}.")
    if "unit" in names and names & {"in", "out"}:
        raise ValueError(f"{module.__name__} mixes 'unit' with 'in' or 'out'; declare one kind of layer per module.")
    DECLARATIONS[module] = Declaration(
        dict(axes or {}), input_dim, output_dim, "unit" in names, tuple(unused), state_inputs, state_outputs
    )
    if sizes:
        register_sizes(module, **sizes)


def declaration_of(module: nn.Module) -> Declaration | None:
    """The declaration of a module's class, or None."""
    for cls in type(module).__mro__:
        if cls in DECLARATIONS:
            return DECLARATIONS[cls]
    return None
