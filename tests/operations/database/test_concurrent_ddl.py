"""Tables that other sessions create and drop all the time end no backup."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.backup_kinds import DUMPS
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.fingerprint import READING_SETTINGS
from synapse_ops.systems.postgres.held_snapshot import TableGone, is_concurrent_ddl, reading_sessions
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack

PERIOD_S = 0.08  # half of what was seen, so that the test is quick on a busy machine
ALIVE = 10  # tables at a time


@contextmanager
def churning(conninfo: str) -> Iterator[None]:
    """Create a table and drop the oldest one, a dozen times a second."""
    stop = threading.Event()

    def churn() -> None:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            number = ALIVE
            while not stop.wait(PERIOD_S):
                connection.execute(
                    f"create table churn_{number} (id serial primary key, n int default 5 check (n > 0))"
                )
                connection.execute(f"drop table if exists churn_{number - ALIVE}")
                number += 1

    thread = threading.Thread(target=churn, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def test_tables_created_and_dropped_all_the_time_end_no_backup(
    tmp_path: Path,
    work_dir: Path,
    fresh_database: Callable[..., str],
    bucket_url: str,
    object_store_access: StoreAccess,
) -> None:
    """Every attempt is on a snapshot of its own, and one whose tables can all be locked is proven."""
    conninfo = fresh_database()
    with connect(conninfo) as connection:
        connection.execute("create table public.kept as select generate_series(1, 1000) n")
    stack = make_stack(tmp_path, conninfo, bucket_url, object_store_access)

    with churning(conninfo):
        report = dump_database(stack, stack.spec.database.databases[0])
    proof = DUMPS.prove(stack.database_repository(), work_dir=work_dir)

    assert report.record.row_count == 1000
    assert proof is not None
    assert proof.is_proven, proof.record


def test_a_table_that_went_after_the_snapshot_is_told_from_other_errors(fresh_database: Callable[..., str]) -> None:
    """Another attempt makes sense then; its snapshot has the name that pg_dump was started with."""
    conninfo = fresh_database()
    with connect(conninfo) as other:
        other.execute("create table public.going (n int); create table public.kept (n int)")
        with reading_sessions(conninfo, READING_SETTINGS) as sessions:
            name = sessions.predict_name()
            assert sessions.export() == name
            other.execute("drop table public.going; create table public.going (n int)")
            with pytest.raises(TableGone) as raised:
                sessions.lock_tables(name, "nobody", lambda: True)
        assert is_concurrent_ddl(raised.value)

        with reading_sessions(conninfo, READING_SETTINGS) as sessions:
            sessions.lock_tables(sessions.export(), "nobody", lambda: True)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("set lock_timeout = '10ms'; drop table public.going")
    assert is_concurrent_ddl(SynapseOpsError("x", detail="40P01 deadlock detected"))
    assert not is_concurrent_ddl(SynapseOpsError("x", detail="28P01 password authentication failed"))
