"""The outside tools that judge rendered documents: one entry each, installed or not. None is needed at run time."""

from synapse_ops.systems.manifest_tools.program import Program
from synapse_ops.systems.manifest_tools.programs import PROGRAMS

TOOLS: tuple[Program, ...] = PROGRAMS

__all__ = ["TOOLS", "Program"]
