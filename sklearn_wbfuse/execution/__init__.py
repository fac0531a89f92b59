"""Traced networks run operation by operation: one alone, several in lockstep, and what they compute of a probe's inputs."""

from .equations import Equation, equations
from .lockstep import Parent, run_alongside
from .memory import Held, Memory
from .probe import PROBES, Probe
from .probing import Probing
from .recording import Positions, Recording
from .steps import Steps, program_of

__all__ = [
    "PROBES",
    "Equation",
    "Held",
    "Memory",
    "Parent",
    "Positions",
    "Probe",
    "Probing",
    "Recording",
    "Steps",
    "equations",
    "program_of",
    "run_alongside",
]
