"""The WAL receiver of the embedded stack (services/wal_receiver): starts when the servers run, stops before they do."""

from __future__ import annotations

import os
import sys

from synapse_ops.local.layout import StackLayout
from synapse_ops.local.servers.program import ProgramServer
from synapse_ops.operations.database.wal_status import is_receiving


def wal_server(layout: StackLayout, port: int) -> ProgramServer:
    """Return the receiver. It runs as ourselves and waits for another one of the same state directory to end."""
    return ProgramServer(
        name="wal",
        argv=[
            *(sys.executable, "-m", "synapse_ops.services.wal_receiver", "--wait", "--port", str(port)),
            *("--spec", layout.spec_file, "--state-dir", layout.root),
        ],
        identity=None,
        log_path=layout.log("wal"),
        environment=dict(os.environ),
        is_ready=lambda: is_receiving(layout.root),
        folder=layout.data / "wal",
    )
