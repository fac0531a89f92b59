"""Traced networks that run operation by operation, alone or in lockstep, and their activations on the inputs of a probe."""

from .lockstep import SiteSamples, run_in_lockstep
from .memory import Held, Memory
from .parent import Parent
from .parent_runner import MAX_ROWS, ParentRunner
from .parents import Parents
from .probe import PROBES, Probe
from .recording import Positions, Recording
from .runner import Runner, program_of
from .sites import RegressionSite, regression_sites

__all__ = [
    "MAX_ROWS",
    "PROBES",
    "Held",
    "Memory",
    "Parent",
    "ParentRunner",
    "Parents",
    "Positions",
    "Probe",
    "Recording",
    "RegressionSite",
    "Runner",
    "SiteSamples",
    "program_of",
    "regression_sites",
    "run_in_lockstep",
]
