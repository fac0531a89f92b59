"""Traced networks run operation by operation: one alone, several in lockstep, and what they compute of a probe's inputs."""

from .lockstep import Rows, run_in_lockstep
from .memory import Held, Memory
from .parent import Parent
from .parent_runner import MAX_ROWS, Probing
from .parents import Parents
from .probe import PROBES, Probe
from .recording import Positions, Recording
from .runner import Steps, program_of
from .sites import Equation, equations

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
