"""A promotion, followed by the receiver: lost commits stay lost, and everything before and after the fork is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import missing, reach
from synapse_ops.domain.database.wal_keys import history_key
from synapse_ops.errors import Unreachable, WalNotArchived
from synapse_ops.operations.database.wal_fetch import fetch_history
from synapse_ops.operations.database.wal_writer import WalWriter
from synapse_ops.systems.postgres.server import PgServer
from synapse_ops.systems.s3.store import StoreAccess, WrittenObject
from tests.servers import PASSWORD, SUPERUSER, PostgresServer, running_standby
from tests.services.wal_receiver.receiving import Receiving, receiving, wait_durable, wait_until


@pytest.fixture
def standby(postgres_server: PostgresServer) -> Iterator[PgServer]:
    with running_standby(postgres_server) as server:
        yield server.server


def promoted(standby: PgServer, reached: Lsn) -> str:
    """Promote the standby once it has replayed up to a position; return its address."""
    address = standby.conninfo(user=SUPERUSER, password=PASSWORD, host="127.0.0.1")
    with psycopg.connect(address, autocommit=True) as connection:
        query = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_until(lambda: connection.execute(query, [str(reached)]).fetchone() == (True,), "it has replayed")
        assert connection.execute("select pg_promote(true, 30)").fetchone() == (True,)
    return address


def test_lost_commits_do_not_come_back(
    tmp_path: Path,
    postgres_server: PostgresServer,
    standby: PgServer,
    object_store_access: StoreAccess,
    bucket_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Timeline 1 is stored past the fork; a reader of timeline 2 gets it only up to there, zeros after (W1). And the
    history, which leads readers to timeline 2, is stored only once its own segment with the fork is.
    """
    conninfo, data_dir = postgres_server.conninfo(), postgres_server.server.data_dir
    with receiving(tmp_path, conninfo, data_dir, object_store_access, bucket_url) as wal:
        with wal.in_process() as receiver:
            wal.execute("drop table if exists promoted", "create table promoted (n int)", "select pg_switch_wal()")
            wal.execute("insert into promoted values (1)")
            shared = wait_durable(wal, receiver)
            address = promoted(standby, shared)
            wal.execute("insert into promoted select generate_series(1000, 1198)")
            lost = wait_durable(wal, receiver)
        (tmp_path / "admin.url").write_text(address)
        after = Receiving(tmp_path, wal.spec, address, standby.data_dir)

        store = WalWriter.store
        stored: list[object] = []

        def store_once(self: WalWriter, *what: Any) -> WrittenObject:
            if stored:
                raise Unreachable("the store is away")
            stored.append(what)
            return store(self, *what)

        monkeypatch.setattr(WalWriter, "store", store_once)
        monkeypatch.setattr("synapse_ops.domain.database.wal_plan.MOST_CHUNK_BYTES", 100)
        with after.in_process() as receiver:
            wait_until(lambda: receiver.standing.timeline == 2 and receiver.standing.server, "it streams timeline 2")
            wait_until(lambda: "is away" in receiver.standing.fault, "the beginning of its first segment is stored")
        archive = after.archive()
        assert [row.timeline for row in archive.timelines] == [1, 2]
        assert archive.newest.timeline == 1  # nothing leads to timeline 2 before its segment is there
        assert after.repository.store.head(history_key(archive.identity, 2)) is None

        monkeypatch.undo()
        with after.in_process() as receiver:
            after.execute("insert into promoted values (2)")
            last = wait_durable(after, receiver)
        archive = after.archive()
        history = archive.history(2)
        [fork] = history.forks
        assert archive.newest.timeline == 2
        assert shared <= fork.at < lost
        assert (
            fetch_history(after.repository, archive, 2)
            == (standby.data_dir / "pg_wal" / "00000002.history").read_bytes()
        )

        size = archive.newest.segment_bytes
        old = Segment.at(1, fork.at, size)
        data, size_bytes = after.fetched(old, archive)
        assert size_bytes == fork.at - old.start
        assert data[:size_bytes] == wal.own_file(old)[:size_bytes]
        assert data[size_bytes:] == bytes(size - size_bytes)
        new = Segment.at(2, fork.at, size)
        data, size_bytes = after.fetched(new, archive)
        assert size_bytes >= last - new.start
        assert data[:size_bytes] == after.own_file(new)[:size_bytes]
        with pytest.raises(WalNotArchived, match="is past"):
            after.fetched(Segment(1, old.number + 1, size), archive)
        assert missing(archive, history, shared, last) == ()
        commits = after.execute("select count(*) from promoted")
        assert commits == 2
        found = reach(archive, history, old.start)
        assert found.gap is None
        assert found.stop >= last

        (tmp_path / "admin.url").write_text(conninfo)
        with wal.in_process() as receiver:  # the old primary returns
            wait_until(lambda: "holds WAL of timeline 2" in receiver.standing.fault, "it is refused by name")


def test_every_history_is_its_own_file(
    tmp_path: Path,
    postgres_server: PostgresServer,
    standby: PgServer,
    object_store_access: StoreAccess,
    bucket_url: str,
) -> None:
    """Two promotions while no receiver ran: the second's history under the first's name would end every recovery. And
    what only the standby has of the old timeline is received from it, up to the fork.
    """
    conninfo, data_dir = postgres_server.conninfo(), postgres_server.server.data_dir
    with receiving(tmp_path, conninfo, data_dir, object_store_access, bucket_url) as wal:
        with wal.in_process() as receiver:
            wal.execute("drop table if exists twice", "create table twice (n int)")
            first = wait_durable(wal, receiver)
        wal.execute("insert into twice select generate_series(1, 1000)", "select pg_switch_wal()")
        wal.execute("insert into twice values (1)")
        shared = wal.flushed()
        address = promoted(standby, shared)
        after = Receiving(tmp_path, wal.spec, address, standby.data_dir)
        after.execute("insert into twice values (2)")
        standby.stop("fast")
        (standby.data_dir / "standby.signal").touch(mode=0o600)
        standby.start()
        promoted(standby, shared)
        (tmp_path / "admin.url").write_text(address)
        with after.in_process() as receiver:
            wait_until(lambda: receiver.standing.timeline == 3 and receiver.standing.server, "it streams timeline 3")
            after.execute("insert into twice values (3)")
            last = wait_durable(after, receiver)
        archive = after.archive()

        assert archive.newest.timeline == 3
        assert missing(archive, archive.history(3), first, last) == ()
        for timeline in (2, 3):
            own = (standby.data_dir / "pg_wal" / f"{timeline:08X}.history").read_bytes()
            assert fetch_history(after.repository, archive, timeline) == own
