"""Traced networks run operation by operation: one alone, several in lockstep, and what they compute of a probe's inputs."""

from .equations import Equation, equations
from .lockstep import Rows, run_in_lockstep
from .memory import Held, Memory
from .parent import Parent
from .parents import Parents
from .probe import PROBES, Probe
from .probing import MAX_ROWS, Probing
from .recording import Positions, Recording
from .steps import Steps, program_of

__all__ = [
    "MAX_ROWS",
    "PROBES",
    "Equation",
    "Held",
    "Memory",
    "Parent",
    "Parents",
    "Positions",
    "Probe",
    "Probing",
    "Recording",
    "Rows",
    "Steps",
    "equations",
    "program_of",
    "run_in_lockstep",
]
