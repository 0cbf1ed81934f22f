"""The disaster for the embedded stack: what it protects is gone, and the bucket is what is left."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from synapse_ops.errors import Refused, counted
from synapse_ops.local.embedded_stack import changing_stack
from synapse_ops.local.failover_place import embedded_databases
from synapse_ops.local.layout import find_layout
from synapse_ops.systems.host.processes import processes_in

LOST = ("watch", "wal", "api", "db-primary", "db-standby", "redis", "qdrant")  # what would restart others goes first


def lose(state_dir: Path) -> list[str]:
    """Kill and remove; return what was done, a line for each server. Raises Refused where no such stack is."""
    if embedded_databases(state_dir.resolve()) is None:
        raise Refused(f"no embedded stack is in {state_dir}", hint="`synapse-ops local up` starts one.")
    layout, said = find_layout(state_dir), []
    with changing_stack(state_dir):
        for name in LOST:
            folder = layout.data / name
            marks = processes_in(folder) if folder.exists() else []
            for mark in marks:
                mark.signal(signal.SIGKILL)
            for mark in marks:
                mark.wait_gone(10.0)
            shutil.rmtree(folder, ignore_errors=True)
            said.append(f"{name}: SIGKILL to {counted(len(marks), 'process', 'processes')}, {folder} removed")
    return said
