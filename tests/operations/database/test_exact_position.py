"""A standby read at exactly one position of WAL, and a copy recovered to that position: equal, row for row."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.progress import Progress, ignore_progress
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup_kinds import BASES
from synapse_ops.operations.database import base_backup, base_proof, base_source, exact_position
from synapse_ops.operations.database.base_backup import BaseReport, take_base_backup
from synapse_ops.operations.database.dump import dump_database
from synapse_ops.operations.database.exact_position import StandbyReading, read_standby
from synapse_ops.operations.database.wal_source import names_standby, wal_conninfo
from synapse_ops.operations.stack import Stack
from synapse_ops.spec.blocks.backup import BaseBackups
from synapse_ops.systems.postgres import standby_snapshots as snapshots_module
from synapse_ops.systems.postgres.connection import connect, describe
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.identity import ensure_identity
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.standby_snapshots import standby_snapshots
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack
from tests.operations.database.wal_uploads import WalUploads, uploading
from tests.servers import PostgresServer, running_postgres, running_standby, servers_dir
from tests.services.wal_receiver.receiving import wait_until

PAUSED = "select pg_get_wal_replay_pause_state() = 'paused'"
PAUSED_BY_A_PROCESS = """
import sys, time
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.spec.blocks.backup import BaseBackups
from synapse_ops.systems.postgres import standby_snapshots
standby_snapshots.PAUSE_LIMIT_S = 2.0
def hang(session):
    print("paused", flush=True)
    time.sleep(60)
standby_snapshots.lock_tables = hang
with standby_snapshots.standby_snapshots(lambda name: sys.argv[1], Lsn(0)):
    pass
"""


@dataclass
class Pair:
    """A primary with a base backup that was taken while it was written to, its standby, and their stack."""

    primary: PostgresServer
    standby: PostgresServer
    stack: Stack
    upload: WalUploads
    base: BaseReport

    def back_up(self, *, savepoints: int = 0) -> BaseReport:
        """Take a base backup while the primary is written to."""
        with uploading(self.upload), being_written(self.primary, savepoints):
            return take_base_backup(self.stack)

    def read(self) -> StandbyReading:
        return read_standby(self.stack, self.base.place.identity, Lsn(0), ignore_progress)

    def says(self, query: str) -> Any:
        with psycopg.connect(self.standby.conninfo(), autocommit=True) as connection:
            row = connection.execute(query).fetchone()  # type: ignore[call-overload]
        return row[0] if row else None


@pytest.fixture(scope="module")
def pair(
    server_tools: PgTools, tmp_path_factory: pytest.TempPathFactory, bucket: str, object_store_access: StoreAccess
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with running_postgres(server_tools) as primary:
        primary.execute("alter system set wal_keep_size = '1GB'")  # its standby has no slot
        primary.execute("select pg_reload_conf()")
        primary.execute("create table ledger (n bigserial primary key, filling text)")
        primary.execute("insert into ledger (filling) select md5(g::text) from generate_series(1, 500) as g")
        primary.execute("create unlogged table scratch as select 1 as n")
        primary.execute("create sequence ahead")
        primary.execute("create database other")
        primary.execute("create table kept as select 1 as n", "other")
        primary.execute("create database half_dropped")  # as an interrupted DROP DATABASE leaves it
        primary.execute("update pg_database set datconnlimit = -2 where datname = 'half_dropped'")
        with running_standby(primary) as standby:
            primary.execute("select nextval('ahead') from generate_series(1, 5)")  # its page says 5, WAL says more
            ports = {"db-primary": primary.server.port, "db-standby": standby.server.port}
            url = f"{bucket}{secrets.token_hex(8)}/database/"
            stack = make_stack(
                folder, primary.conninfo(), url, object_store_access, wal_archiving="continuous", nodes=ports
            )
            with connect(primary.conninfo()) as connection:
                identity = ensure_identity(connection)
            data_dir = primary.server.data_dir
            upload = WalUploads(stack.database_repository(), identity, primary.conninfo(), data_dir, folder / "wal")
            upload()
            made = Pair(primary, standby, stack, upload, None)  # type: ignore[arg-type]
            made.base = made.back_up()
            yield made


@contextmanager
def being_written(primary: PostgresServer, savepoints: int = 0) -> Iterator[None]:
    """Commit row by row while the block lasts, one more transaction open all the while, with that many savepoints."""
    stop, ready = threading.Event(), threading.Event()

    def work() -> None:
        with psycopg.connect(primary.conninfo()) as open_one, psycopg.connect(primary.conninfo()) as connection:
            for number in range(1 + savepoints):
                open_one.execute(f"savepoint s{number}")  # type: ignore[call-overload]
                open_one.execute("insert into ledger (filling) values ('never committed')")
            ready.set()
            while not stop.wait(0.001):
                connection.execute("insert into ledger (filling) values (md5(random()::text))")
                connection.execute("update ledger set filling = 'changed' where n = 1 + floor(random() * 400)")
                connection.commit()
            open_one.rollback()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def work_dir() -> Iterator[Path]:
    """A folder that the servers' user can enter."""
    folder = servers_dir("exact")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def prove(pair: Pair, base: BaseReport, work_dir: Path) -> Any:
    report = BASES.prove(pair.stack.database_repository(), place=base.place, work_dir=work_dir)
    assert report is not None
    return report.record


def test_a_copy_recovered_to_the_position_equals_the_standby(pair: Pair, work_dir: Path) -> None:
    """An inclusive target replays one record more (W3). Rows after the position are not in it, and replay goes on."""
    exact = pair.base.record.exact
    assert exact is not None, pair.base.warnings
    assert Lsn.parse(exact.lsn) >= Lsn.parse(pair.base.record.stop_lsn)
    assert (pair.base.record.source.is_standby, pair.base.record.source.node) == (True, exact.node)

    record = prove(pair, pair.base, work_dir)

    assert record.verdict is Verdict.PROVEN, (record.reason, record.differences)
    assert record.base.exact.rows == exact.row_count > 500
    assert record.outcome.startswith("restored and compared row for row with the standby 127.0.0.1:")
    [entry] = read_catalog(pair.stack.database_repository()).only("base").backups
    assert entry.outcome == record.outcome
    assert Lsn.parse(record.base.end_lsn) > Lsn.parse(exact.lsn)
    rows = {one.name: one.rows for one in record.base.contents}
    assert rows["postgres"] > 500
    assert rows["other"] == 1


def test_a_row_that_differs_fails_the_proof_by_name(
    pair: Pair, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the copy lets nobody in before its promotion: more than 64 savepoints are open in the base backup."""
    base = pair.back_up(savepoints=80)

    def one_less(conninfo: str, **more: Any) -> Fingerprint:
        found = read_fingerprint(conninfo, **more)
        tables = {name: replace(one, rows=one.rows - 1) for name, one in found.tables.items() if name == "public.kept"}
        return replace(found, tables={**found.tables, **tables})

    monkeypatch.setattr(base_proof, "read_fingerprint", one_less)

    record = prove(pair, base, work_dir)

    assert base.record.exact is not None
    assert record.base.end_lsn == base.record.exact.lsn
    assert record.verdict is Verdict.DIFFERS
    assert record.differences == ("other: table public.kept: 0 rows, expected 1",)


@pytest.mark.parametrize("fault", ["paused", "promoted", "lost", "an old restartpoint"])
def test_where_the_standby_cannot_be_copied_the_primary_is_and_a_warning_says_why(
    pair: Pair, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion in the middle voids the copy, and so does the loss of the node.

    One that begins at an old restartpoint may need WAL that is nowhere.
    """
    monkeypatch.setattr(base_backup, "read_standby", lambda *_: StandbyReading())
    with running_standby(pair.primary) as standby, uploading(pair.upload):
        ports = {"db-primary": pair.primary.server.port, "db-standby": standby.server.port}
        nodes = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        database = pair.stack.spec.database.model_copy(update={"nodes": nodes})
        slow = pair.stack.spec.backup.database.model_copy(
            update={"base": BaseBackups(max_rate=(2 << 20) if fault in {"promoted", "lost"} else None)}
        )
        backup = pair.stack.spec.backup.model_copy(update={"database": slow})
        spec = pair.stack.spec.model_copy(update={"database": database, "backup": backup})
        stack = replace(pair.stack, loaded=replace(pair.stack.loaded, spec=spec))

        def disturb(progress: Progress) -> None:
            if progress.done and not disturbed:
                disturbed.append(progress.done)
                if fault == "promoted":
                    standby.execute("select pg_promote()")
                elif fault == "lost":
                    standby.server.stop("immediate")

        disturbed: list[int] = []
        if fault == "paused":
            standby.execute("select pg_wal_replay_pause()")
        if fault == "an old restartpoint":
            monkeypatch.setattr(base_source, "_REDO", "SELECT 'FF/0', pg_current_wal_flush_lsn()::text")
        report = take_base_backup(stack, progress=disturb)

    assert not report.record.source.is_standby
    assert report.record.source.node.endswith(str(pair.primary.server.port))
    [warning] = [words for words in report.warnings if words.startswith("taken from the primary")]
    said = {"paused": "is paused at", "promoted": "promoted", "lost": "could not reach PostgreSQL"}
    assert said.get(fault, "before the checkpoint") in warning


@pytest.mark.parametrize(
    ("nodes", "hosts", "is_standby_named"),
    [
        ({}, "127.0.0.1:5432", False),
        ({"db-primary": 1}, "127.0.0.1:1", False),
        ({"db-standby": 2}, "127.0.0.1:5432,127.0.0.1:2", True),
        ({"db-primary": 1, "db-standby": 2}, "127.0.0.1:1,127.0.0.1:2", True),
    ],
)
def test_the_primary_is_where_the_administrator_connects_where_no_node_says_otherwise(
    nodes: dict[str, int], hosts: str, is_standby_named: bool, tmp_path: Path, object_store_access: StoreAccess
) -> None:
    """As `database.nodes` has it. Only the standby listed, WAL was looked for there, and not on the primary."""
    admin = "host=127.0.0.1 port=5432 dbname=postgres"
    stack = make_stack(tmp_path, admin, "s3://backups/nodes/", object_store_access, nodes=nodes)

    assert describe(wal_conninfo(stack)) == f"{hosts}/postgres"
    assert names_standby(stack) is is_standby_named
    if not is_standby_named:
        assert read_standby(stack, Identity("7", "ab12cd34"), Lsn(0), ignore_progress) == StandbyReading()


def test_a_dump_finds_the_primary_by_the_nodes_and_not_by_the_address_it_once_had(
    pair: Pair, tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Another manager exchanges the roles; `database.admin` names one host of the two, here the standby's."""
    nodes = {"db-primary": pair.primary.server.port, "db-standby": pair.standby.server.port}
    stack = make_stack(tmp_path, pair.standby.conninfo("other"), bucket_url, object_store_access, nodes=nodes)

    record = dump_database(stack, "other").record

    assert not record.source.is_standby
    assert record.source.node == f"127.0.0.1:{pair.primary.server.port}"


def test_replay_goes_on_when_its_reader_is_killed(pair: Pair) -> None:
    """A standby that stands still for ever fills its disk and is of no use in a failover."""
    argv = [sys.executable, "-c", PAUSED_BY_A_PROCESS, pair.standby.conninfo()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "paused\n"
        assert pair.says(PAUSED)
        process.send_signal(signal.SIGKILL)
    pair.primary.execute("insert into ledger (filling) values ('after the pause')")

    wait_until(lambda: not pair.says(PAUSED), "replay goes on")
    wait_until(lambda: pair.says("select count(*) from ledger where filling = 'after the pause'") == 1, "it replays")


def test_a_pause_of_somebody_else_is_told_and_left_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "PAUSE_LIMIT_S", 0.1)
    monkeypatch.setattr(exact_position, "TRIES", 1)
    pair.standby.execute("select pg_wal_replay_pause()")
    try:
        found = pair.read()
        assert "is paused by somebody else" in found.warning
        assert found.exact is None
        wait_until(lambda: pair.says(PAUSED), "it is still paused")
    finally:
        pair.standby.execute("select pg_wal_replay_resume()")


def test_a_table_that_is_being_changed_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay holds the lock, and lets go of it by going on alone: who waits for it in the pause waits in vain."""
    monkeypatch.setattr(exact_position, "TRIES", 1)
    with psycopg.connect(pair.primary.conninfo()) as connection:
        connection.execute("alter table ledger add column more int")
        pair.primary.execute("select pg_logical_emit_message(true, 'test', '')")
        locked = "select count(*) from pg_locks where mode = 'AccessExclusiveLock'"
        wait_until(lambda: pair.says(locked), "the lock is replayed")
        found = pair.read()
        connection.rollback()

    assert found.exact is None
    assert "could not be read" in found.warning
    assert not pair.says(PAUSED)


def test_a_table_that_is_emptied_meanwhile_is_read_as_it_was(pair: Pair) -> None:
    """TRUNCATE ignores snapshots: only a lock keeps the rows."""
    pair.primary.execute("create table emptied as select generate_series(1, 10) as n")
    wait_until(lambda: pair.says("select to_regclass('emptied') is not null"), "the table is replayed")
    with standby_snapshots(pair.standby.conninfo, Lsn(0)) as found:
        pair.primary.execute("truncate emptied")
        wait_until(lambda: pair.says("select exists (select from pg_locks where not granted)"), "replay waits")
        [mine] = [one for one in found.databases if one.name == "postgres"]
        content = read_fingerprint(mine.conninfo, sessions=[mine.session])

    assert content.tables["public.emptied"].rows == 10


def test_a_reading_that_replay_ends_is_told_with_what_prevents_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the backup, and nothing that was half read is kept."""
    pair.primary.execute("create table emptied_soon as select 1 as n")
    wait_until(lambda: pair.says("select to_regclass('emptied_soon') is not null"), "the table is replayed")

    def cancelled(conninfo: str, **more: Any) -> Fingerprint:
        pair.primary.execute("truncate emptied_soon")
        wait_until(lambda: pair.says("select count(*) from emptied_soon") == 0, "replay has ended our session")
        return read_fingerprint(conninfo, **more)

    monkeypatch.setattr(exact_position, "read_fingerprint", cancelled)
    monkeypatch.setattr(exact_position, "TRIES", 1)
    monkeypatch.setitem(pair.standby.server.settings, "max_standby_streaming_delay", "100ms")  # type: ignore[arg-type]
    pair.standby.server.write_configuration()
    pair.standby.server.reload()
    wait_until(lambda: pair.says("show max_standby_streaming_delay") == "100ms", "the setting is there")

    found = pair.read()

    assert found.exact is None
    assert found.document is None
    assert "conflict with recovery" in found.warning
    assert "hot_standby_feedback" in found.warning


@pytest.mark.scenario
def test_changes_alone_are_copied_from_the_standby_too(pair: Pair, work_dir: Path) -> None:
    """With nothing written in between as well; the rows are compared at the position behind it."""
    for server in (pair.primary, pair.standby):
        server.execute("alter system set summarize_wal = on")
        server.execute("select pg_reload_conf()")
    database = pair.stack.spec.backup.database.model_copy(update={"base": BaseBackups(full_every=timedelta(days=7))})
    backup = pair.stack.spec.backup.model_copy(update={"database": database})
    spec = pair.stack.spec.model_copy(update={"backup": backup})
    chained = replace(pair, stack=replace(pair.stack, loaded=replace(pair.stack.loaded, spec=spec)))

    chained.back_up()
    written = chained.back_up()
    with uploading(pair.upload):
        quiet = take_base_backup(chained.stack)

    for report in (written, quiet):
        assert report.record.source.is_standby, report.warnings
        assert report.record.incremental is not None, report.warnings
    record = prove(pair, quiet, work_dir)
    assert record.verdict is Verdict.PROVEN, (record.reason, record.differences)
    assert record.base.exact is not None
