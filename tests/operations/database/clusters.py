"""Restored clusters: started as a person would, and restores that are killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import make_conninfo

from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.processes import START_TIMEOUT_S, run_as, server_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import make_socket_dir
from tests.servers import PostgresServer
from tests.services.wal_receiver.receiving import wait_until


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


KILLED = """
import sys, time
from pathlib import Path
from synapse_ops.operations.backup.restoring import RestoreRequest
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database import wal_prefetch
from synapse_ops.operations.database.restore_cluster import newest_place
from synapse_ops.operations.stack import open_stack

spec, state, target, last = sys.argv[1:]
whole = wal_prefetch.fetch_segment

def fetch(repository, archive, segment, *rest, **more):
    if segment.name == last:
        Path(target).with_name("reached").touch()
        time.sleep(600)
    return whole(repository, archive, segment, *rest, **more)

wal_prefetch.fetch_segment = fetch
repository = open_stack(Path(spec), Path(state)).database_repository()
place, work = newest_place(repository, "latest", None, ()), Path(target).with_name("work")
request = RestoreRequest(repository, place, target, None, work, until="latest")
BASES.apply_restore(request, BASES.plan_restore(request))
"""


@contextmanager
def killed_while_it_replays(stack: Stack, target: Path, last: str) -> Iterator[None]:
    """Restore in a process that is killed while the server waits for the segment `last`."""
    folder = stack.state_dir.parent
    argv = [sys.executable, "-c", KILLED, folder / "infrastructure.yaml", folder / "state", target, last]
    process = subprocess.Popen(argv)
    try:
        wait_until(lambda: list(target.parent.glob("throwaway-*/wal/taken-*")), "the server has taken a segment")
        wait_until(target.with_name("reached").exists, "the last is awaited")
        process.kill()
        process.wait()
        yield
    finally:
        process.kill()
        process.wait()
