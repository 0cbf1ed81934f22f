"""The prober of the embedded stack (services/watch.py): the last to start, the first to stop."""

from __future__ import annotations

import os
import sys

from synapse_ops.local.layout import StackLayout
from synapse_ops.local.servers.program import ProgramServer
from synapse_ops.operations.health.report import is_watched


def watch_server(layout: StackLayout) -> ProgramServer:
    """Return the prober. It runs as ourselves and waits for another one of the same state directory to end."""
    return ProgramServer(
        name="watch",
        argv=[
            *(sys.executable, "-m", "synapse_ops.services.watch", "--wait"),
            *("--spec", layout.spec_file, "--state-dir", layout.root),
        ],
        identity=None,
        log_path=layout.log("watch"),
        environment=dict(os.environ),
        is_ready=lambda: is_watched(layout.root),
        folder=layout.data / "watch",
    )
