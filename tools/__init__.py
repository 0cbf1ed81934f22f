"""The outside tools that judge rendered documents: one entry each, installed or not.

`python -m tools.prove_release` runs them. They are part of the repository and not of the package: `synapse_ops` never
imports them, and the wheel does not hold them.
"""

from tools.alert_chain import AlertChain
from tools.programs import PROGRAMS
from tools.scanners import SCANNERS
from tools.tls_servers import SERVER_TOOLS
from tools.tool import Tool

TOOLS: tuple[Tool, ...] = (*PROGRAMS, *SCANNERS, *SERVER_TOOLS, AlertChain())

__all__ = ["TOOLS"]
