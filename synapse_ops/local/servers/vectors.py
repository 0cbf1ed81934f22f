"""Qdrant of the embedded stack: the process of local/qdrant_server, with its own key."""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

from synapse_ops.local.credentials import read_or_make_password
from synapse_ops.local.layout import StackLayout
from synapse_ops.local.servers.program import ProgramServer
from synapse_ops.systems.host.processes import make_private_dir

PROBE_TIMEOUT_S = 2.0


def vector_key_file(layout: StackLayout) -> Path:
    """Return the file that holds the api key; made on first use."""
    read_or_make_password(layout.secrets, "qdrant")
    return layout.secrets / "qdrant"


def vector_server(layout: StackLayout, port: int, data: Path | None = None) -> ProgramServer:
    """Return the server. It runs as ourselves, because another identity may not be able to enter our environment.

    data: None: the stack's own.
    """
    data = data or layout.data / "qdrant"
    make_private_dir(data, None)
    return ProgramServer(
        name="qdrant",
        argv=[
            *(sys.executable, "-m", "synapse_ops.local.qdrant_server"),
            *("--data", data, "--port", str(port), "--key-file", vector_key_file(layout)),
        ],
        identity=None,
        log_path=layout.log("qdrant"),
        environment=dict(os.environ) | {"MALLOC_ARENA_MAX": "2"},  # what replaying the log takes is given back
        is_ready=lambda: is_ready(port),
        folder=data,
    )


def is_ready(port: int) -> bool:
    """Whether GET /readyz on loopback answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
