"""The stand-in for the Synapse API (examples/synapse/app.py): the application whose data the stack protects."""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

from synapse_ops.local.credentials import write_secret
from synapse_ops.local.layout import StackLayout
from synapse_ops.local.servers.databases import APP_DATABASE, APP_USER
from synapse_ops.local.servers.program import ProgramServer
from synapse_ops.local.servers.vectors import vector_key_file

PROBE_TIMEOUT_S = 2.0
EXAMPLE = Path(__file__).parents[3] / "examples" / "synapse" / "app.py"


def api_server(
    layout: StackLayout, port: int, node_ports: tuple[int, int], vector_port: int | None, password: str
) -> ProgramServer | None:
    """Return the stand-in; None where the examples are not installed beside the package.

    It runs as ourselves, because another identity may not be able to enter our virtual environment. Its address of the
    database names both nodes and asks for the one that takes writes, as an application that survives a failover does.
    vector_port: None: it has no vectors.
    """
    if not EXAMPLE.is_file():
        return None
    from psycopg.conninfo import make_conninfo

    address = make_conninfo(
        host="127.0.0.1,127.0.0.1",
        port=",".join(map(str, node_ports)),
        dbname=APP_DATABASE,
        user=APP_USER,
        password=password,
        sslmode="verify-full",
        sslrootcert=str(layout.authority),
        target_session_attrs="read-write",
        connect_timeout=2,
        application_name="synapse-api",
    )
    write_secret(conninfo_file(layout), address + "\n")
    ledger = layout.root / "ledger"
    ledger.mkdir(mode=0o755, exist_ok=True)
    environment = dict(os.environ) | {
        "SYNAPSE_API_PORT": str(port),
        "SYNAPSE_API_DATABASE_FILE": str(conninfo_file(layout)),
        "SYNAPSE_API_LEDGER": str(ledger / "acknowledged.jsonl"),
        "TMPDIR": str(layout.temp),
    }
    if vector_port is not None:
        environment["SYNAPSE_API_QDRANT_URL"] = f"http://127.0.0.1:{vector_port}"
        environment["SYNAPSE_API_QDRANT_KEY_FILE"] = str(vector_key_file(layout))
    return ProgramServer(
        name="api",
        argv=[sys.executable, EXAMPLE],
        identity=None,
        log_path=layout.log("api"),
        environment=environment,
        is_ready=lambda: answers_health(port),
        folder=layout.data / "api",
    )


def conninfo_file(layout: StackLayout) -> Path:
    """Return the file with the address by which the application writes, whichever node takes writes."""
    return layout.secrets / "synapse-api.conninfo"


def answers_health(port: int) -> bool:
    """Whether GET /health on loopback answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
