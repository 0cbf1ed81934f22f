"""Restored clusters, started as a person would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import make_conninfo

from synapse_ops.systems.host.processes import START_TIMEOUT_S, run_as, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import make_socket_dir
from tests.servers import PostgresServer


def restart(server: PostgresServer) -> None:
    server.server.stop("fast")
    server.server.start(START_TIMEOUT_S)


@contextmanager
def started(directory: Path, tools: PgTools) -> Iterator[str]:
    """Start a restored directory as its configuration has it, as a person would; yield a conninfo of its superuser."""
    identity = server_identity()
    socket_dir = make_socket_dir(directory, identity)
    own = f"-c listen_addresses= -c unix_socket_directories={socket_dir}"
    control = [tools.path("pg_ctl"), "-D", directory, "-w", "-t", "120"]
    log = directory.with_name(f"{directory.name}.log")
    run_as(identity, [*control, "-o", own, "-l", log, "start"], timeout_s=150, env=tools.environment())
    try:
        yield make_conninfo(host=str(socket_dir), dbname="postgres", user="postgres")
    finally:
        run_as(identity, [*control, "stop"], timeout_s=150, env=tools.environment())
        shutil.rmtree(socket_dir, ignore_errors=True)
