"""How far a running pg_dump is, in bytes of tables: PostgreSQL itself reports which table is copied, and how far.

What leaves pg_dump is compressed, and its final size is not known; table sizes are. An estimate: tables so small that
no look meets them are counted when they can no longer come.
Source: PostgreSQL documentation, "COPY Progress Reporting".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.errors import SynapseOpsError
from synapse_ops.systems.postgres.connection import connect, postgres_errors

if TYPE_CHECKING:
    import psycopg

LOOK_EVERY_S = 1.0

_TABLES = """
SELECT oid::int8, relpages::int8 * current_setting('block_size')::int8, greatest(reltuples, 1)
  FROM pg_class WHERE relkind = 'r' AND relnamespace <> 'pg_catalog'::regnamespace AND relpages > 0"""

_COPIED = """
SELECT p.relid::int8, p.tuples_processed FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid)
 WHERE a.application_name = %s AND p.datname = current_database() ORDER BY a.backend_start DESC LIMIT 1"""


@contextmanager
def reported_dump(conninfo: str, application_name: str, stage: str, progress: ReportProgress) -> Iterator[None]:
    """Report the progress of the dump that runs inside the block under `application_name`; ends at its total.

    Progress is for people: when it cannot be read, the dump goes on without it.
    """
    stop = threading.Event()
    looking = threading.Thread(
        target=_look, args=(conninfo, application_name, stage, progress, stop), name="dump-progress", daemon=True
    )
    looking.start()
    try:
        yield
    finally:
        stop.set()
        looking.join()


def _look(conninfo: str, application_name: str, stage: str, progress: ReportProgress, stop: threading.Event) -> None:
    progress(Progress(stage, 0))
    if stop.wait(LOOK_EVERY_S):
        return
    try:
        with connect(conninfo, application_name="synapse-ops progress") as connection:
            with postgres_errors("the progress of the dump"):
                tables = {oid: (size, rows) for oid, size, rows in connection.execute(_TABLES)}
            total, met = sum(size for size, _ in tables.values()), dict.fromkeys(tables, 0)
            while not stop.wait(LOOK_EVERY_S):
                _note(connection, application_name, tables, met)
                progress(Progress(stage, sum(met.values()), total))
            progress(Progress(stage, total, total))
    except SynapseOpsError:
        return  # the dump itself reports what is wrong with the server


def _note(
    connection: psycopg.Connection[Any],
    application_name: str,
    tables: dict[int, tuple[int, float]],
    met: dict[int, int],
) -> None:
    """Bring `met`, bytes copied by table, up to what the server says now."""
    with postgres_errors("the progress of the dump"):
        row = connection.execute(_COPIED, [application_name]).fetchone()
    if row is None or row[0] not in tables:
        return
    for oid, copied in met.items():
        if copied and oid != row[0]:
            met[oid] = tables[oid][0]  # another table's turn has come: this one is done
    size, rows = tables[row[0]]
    met[row[0]] = min(size, int(size * row[1] / rows))
