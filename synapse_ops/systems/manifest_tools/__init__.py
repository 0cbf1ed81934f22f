"""The outside tools that judge rendered documents: one entry each, installed or not. None is needed at run time."""

from synapse_ops.systems.manifest_tools.alert_chain import AlertChain
from synapse_ops.systems.manifest_tools.program import Program
from synapse_ops.systems.manifest_tools.programs import PROGRAMS
from synapse_ops.systems.manifest_tools.scanner import Scanner
from synapse_ops.systems.manifest_tools.scanners import SCANNERS
from synapse_ops.systems.manifest_tools.tls_servers import SERVER_TOOLS, TlsHandshakes

TOOLS: tuple[Program | Scanner | TlsHandshakes | AlertChain, ...] = (
    *PROGRAMS,
    *SCANNERS,
    *SERVER_TOOLS,
    AlertChain(),
)

__all__ = ["TOOLS", "AlertChain", "Program", "Scanner", "TlsHandshakes"]
