"""The store is away, in each of the ways stores are: what is acknowledged is stored, what is anywhere is not lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import missing, reach
from synapse_ops.operations.database.wal_check import CheckRow, check_standby_slots
from synapse_ops.operations.database.wal_source import SLOT
from synapse_ops.operations.stack import Stack
from synapse_ops.services.wal_receiver import empty_commits, standby_slots
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.standby_slot import read_standby_slot
from synapse_ops.systems.postgres.wal_pace import read_wal_pace
from synapse_ops.systems.s3.store import StoreAccess
from tests.faulty_store import FAULTS, FaultyStore, faulty_store
from tests.servers import PostgresServer, running_postgres, running_standby
from tests.services.wal_receiver.receiving import Receiving, receiving, wait_durable, wait_until
from tests.services.wal_receiver.test_promotion import promoted

MIB = 1 << 20
SLOT_BYTES = 4 * MIB
CHECKPOINT_BYTES = 4 * MIB
SLOW_FAULTS = {"trickle", "throttled", "failed"}  # the client waits before it repeats; others stand for them


@pytest.fixture(scope="module")
def server(server_tools: PgTools) -> Iterator[PostgresServer]:
    """Segments of 1 MiB, and a slot that keeps four of them."""
    settings = {"max_slot_wal_keep_size": "4MB", "max_wal_size": "4MB", "min_wal_size": "2MB", "wal_keep_size": 0}
    with running_postgres(server_tools, settings=settings, init=["--wal-segsize=1"]) as own:
        own.execute("create table filled (t text)")
        yield own


@pytest.fixture
def store(object_store_access: StoreAccess) -> Iterator[FaultyStore]:
    with faulty_store(object_store_access) as found:
        yield found


class Outage:
    """A receiver whose store fails as it is told, and the same repository past the faults."""

    def __init__(self, wal: Receiving, direct: Receiving, store: FaultyStore, server: PostgresServer) -> None:
        self.wal, self.direct, self.store, self.server = wal, direct, store, server
        self.own: dict[str, bytes] = {}

    def stored(self) -> Lsn:
        return self.direct.archive().newest.last_lsn or Lsn(0)

    def acknowledged(self) -> Lsn:
        query = "select coalesce(max(flush_lsn), '0/0')::text from pg_stat_replication where application_name = '%s'"
        return Lsn.parse(self.wal.execute(query % "synapse-ops wal"))

    def write(self, segments: int) -> None:
        """Fill segments; what the server wrote is kept here."""
        for _ in range(segments):
            name = self.wal.execute("select pg_walfile_name(pg_current_wal_insert_lsn())")
            self.wal.execute("insert into filled select repeat(md5(n::text), 8) from generate_series(1, 500) n")
            self.wal.execute("select pg_switch_wal()")
            self.own[name] = (self.wal.data_dir / "pg_wal" / name).read_bytes()

    def forget(self) -> None:
        """Let the server remove what it may; its disk is bounded all the time."""
        self.wal.execute("checkpoint")
        assert self.wal_bytes() < SLOT_BYTES + 2 * CHECKPOINT_BYTES

    def is_on_the_server(self, lsn: Lsn) -> bool:
        return (self.wal.data_dir / "pg_wal" / Segment.at(1, lsn, MIB).name).exists()

    def wal_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.wal.data_dir / "pg_wal").iterdir() if path.is_file())

    def compare(self) -> None:
        """What is stored of each segment is what the server had."""
        archive = self.direct.archive()
        whole = [name for name in self.own if Segment.parse(name, MIB).number in archive.newest.segments]
        assert whole
        for name in whole:
            assert self.direct.fetched(Segment.parse(name, MIB), archive)[0] == self.own[name]


@pytest.fixture
def outage(
    tmp_path: Path, server: PostgresServer, store: FaultyStore, object_store_access: StoreAccess, bucket_url: str
) -> Iterator[Outage]:
    direct = tmp_path / "direct"
    direct.mkdir()
    conninfo, data_dir = server.conninfo(), server.server.data_dir
    with (
        receiving(tmp_path, conninfo, data_dir, store.access, bucket_url) as wal,
        receiving(direct, conninfo, data_dir, object_store_access, bucket_url) as past,
    ):
        yield Outage(wal, past, store, server)
        store.fault = ""


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.scenario] if fault in SLOW_FAULTS else []) for fault in FAULTS]
)
def test_what_is_acknowledged_is_stored_however_the_store_fails(outage: Outage, fault: str) -> None:
    """Flush is what the bucket holds; what arrives meanwhile waits and is stored in order, without a gap."""
    wal, store = outage.wal, outage.store
    with wal.in_process() as receiver:
        first = wait_durable(wal, receiver)
        store.fault = fault
        wal.execute("insert into filled select md5(n::text) from generate_series(1, 50) n")
        written, at_once = wal.flushed(), store.befallen + 2
        query = "select max(write_lsn) >= '%s' from pg_stat_replication"
        wait_until(lambda: wal.execute(query % written), "the server hears what has arrived")

        def has_befallen() -> bool:
            acknowledged = outage.acknowledged()
            assert acknowledged <= outage.stored()
            return store.befallen >= at_once

        wait_until(has_befallen, "two requests had the fault")
        store.fault = ""
        wait_durable(wal, receiver)
        assert outage.acknowledged() <= outage.stored()
        assert "failed_sessions" not in receiver.standing.counts
    archive = outage.direct.archive()
    assert missing(archive, archive.history(1), first, written) == ()


def test_a_receiver_can_stop_while_the_store_gives_no_answer(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the put under way nor the release of the lease is waited for: a client waits for minutes."""
    monkeypatch.setattr("synapse_ops.services.wal_receiver.receiver.DRAIN_S", 0.5)
    monkeypatch.setattr("synapse_ops.services.wal_receiver.lease.RELEASE_S", 0.5)
    with outage.wal.in_process() as receiver:
        wait_durable(outage.wal, receiver)
        outage.store.fault = "silent"
        outage.wal.execute("insert into filled values ('unstored')")
        wait_until(lambda: outage.store.befallen, "a request is under way")
    assert outage.store.fault == "silent"  # it has ended meanwhile


def test_what_the_server_lost_and_the_spool_has_is_no_gap(outage: Outage) -> None:
    """The slot is lost while the store is away (W11): the receiver goes on without one, and its successor after kill -9
    stores what it left. The server's disk is bounded all the time.
    """
    wal, store = outage.wal, outage.store
    process = wal.start()
    wait_until(lambda: wal.health().get("server"), "it receives")
    outage.write(1)
    last = wal.wait_durable()
    store.fault = "reset"
    for _ in range(5):
        outage.write(2)
        written = wal.flushed()
        wait_until(lambda end=written: Lsn.parse(wal.health().get("received_lsn", "0/0")) >= end, "it receives on")
        outage.forget()
    assert not outage.is_on_the_server(last)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wal.start()
    wal.execute("insert into filled values ('after the kill')")
    store.fault = ""
    end = wal.wait_durable()

    archive = outage.direct.archive()
    assert archive.newest.gaps == ()
    assert missing(archive, archive.history(1), last, end) == ()
    outage.compare()


def test_a_receiver_that_starts_while_the_store_is_away_spools_what_the_server_will_lose(
    outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nothing of the repository, acknowledges nothing and says why; the slot is lost, and no WAL is."""
    wal, store = outage.wal, outage.store
    with wal.in_process() as receiver:
        wait_until(lambda: receiver.standing.server, "it receives")
        outage.write(1)
        last = wait_durable(wal, receiver)
    monkeypatch.setattr("synapse_ops.services.wal_receiver.receiver.PATIENCE_S", 0.1)
    store.fault = "reset"
    with wal.in_process() as receiver:
        wait_until(lambda: receiver.standing.server, "it receives")
        for _ in range(5):
            outage.write(2)
            written = wal.flushed()
            wait_until(lambda end=written: receiver.standing.received_lsn >= end, "it receives on")
            assert outage.acknowledged() <= outage.stored()
            outage.forget()
        assert not outage.is_on_the_server(last)
        assert receiver.standing.unhealthy()
        store.fault = ""
        end = wait_durable(wal, receiver)

    archive = outage.direct.archive()
    assert archive.newest.gaps == ()
    assert missing(archive, archive.history(1), last, end) == ()
    outage.compare()


def test_an_outage_longer_than_slot_and_spool_leaves_a_gap_that_is_exact(
    outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gap begins where the spool was full and ends where the server had WAL again; on both sides all is there. Till
    then the receiver says how long is left, by the server's own figures, which need no superuser.
    """
    monkeypatch.setattr(empty_commits, "INTERVAL_S", 0.1)
    wal, store = outage.wal, outage.store
    wal.spec.write_text(wal.spec.read_text().replace("chunk_interval: 200ms", "chunk_interval: 200ms, spool: 3Mi"))
    with wal.in_process() as receiver:
        wait_until(lambda: receiver.standing.server, "it receives")
        outage.write(1)
        first = wait_durable(wal, receiver)
        wait_until(lambda: receiver.standing.pace, "the server was asked")
        outage.server.execute("create role asks login password 'tests-only' in role pg_monitor")
        with psycopg.connect(outage.server.conninfo(user="asks")) as connection:
            pace = read_wal_pace(connection, SLOT)
        assert 0 < (pace.slot_bytes or 0) <= SLOT_BYTES + MIB
        assert pace.bytes_per_s > 0
        assert (receiver.standing.time_left_s or 0) > 0
        store.fault = "throttled"
        for _ in range(8):
            outage.write(2)
            outage.forget()
        received = receiver.standing.received_lsn
        assert not outage.is_on_the_server(received)
        wait_until(lambda: "some is lost in 0 s" in receiver.standing.unhealthy(), "no time is left")
        assert receiver.standing.as_json()["time_left_s"] == 0
        assert receiver.standing.spool_bytes >= 3 * MIB
        assert receiver.standing.lag_bytes > 3 * MIB  # also of what it does not read any more
        store.fault = ""
        wait_until(lambda: receiver.standing.gap_bytes, "the gap is found")
        outage.write(1)
        end = wait_durable(wal, receiver)
        [gap] = outage.direct.archive().newest.gaps
        assert receiver.standing.gap_bytes == gap.size_bytes

    archive = outage.direct.archive()
    assert gap.start >= received  # some was on its way
    assert not outage.is_on_the_server(Lsn(gap.stop.position - 1))
    assert reach(archive, archive.history(1), first).gap == gap
    assert missing(archive, archive.history(1), gap.stop, end) == ()
    outage.compare()


def test_what_the_receiver_lacks_outlasts_a_promotion(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby's checkpoints remove WAL as well, and a primary's slots are not its own: the receiver keeps one there,
    moved up to what is stored (W19). `check` misses it where no receiver has made it.
    """
    monkeypatch.setattr(standby_slots, "INTERVAL_S", 0.1)
    wal, server = outage.wal, outage.server
    with running_standby(server, settings={"wal_keep_size": 0}) as standby:
        address = standby.conninfo()

        def slot() -> Lsn:
            with psycopg.connect(address) as connection:
                return read_standby_slot(connection, SLOT).keeps_from or Lsn(0)

        plain = wal.spec.read_text()
        nodes = f"{{db-primary: '127.0.0.1:{server.server.port}', db-standby: '127.0.0.1:{standby.server.port}'}}"
        wal.spec.write_text(plain.replace("database: {admin:", f"database: {{nodes: {nodes}, admin:", 1))
        assert [row.fault for row in standby_rows(wal.stack)] == [
            "after a promotion WAL that is not stored yet may be gone"
        ]
        with wal.in_process() as receiver:
            wait_until(lambda: receiver.standing.server, "it receives")
            outage.write(1)
            stored = wait_durable(wal, receiver)
            wait_until(lambda: slot() >= stored, "the standby's slot is moved")
        assert [row.fault for row in standby_rows(wal.stack)] == [""]
        outage.write(3)
        address = promoted(standby.server, wal.flushed())
        standby.execute("checkpoint")
        wal.spec.write_text(plain)
        (wal.folder / "admin.url").write_text(address)
        after = Receiving(wal.folder, wal.spec, address, standby.server.data_dir)
        with after.in_process() as receiver:
            wait_until(lambda: receiver.standing.timeline == 2 and receiver.standing.server, "it follows")
            after.execute("insert into filled values ('after')")
            last = wait_durable(after, receiver)
            assert not receiver.standing.gap_bytes

        archive = outage.direct.archive()
        assert missing(archive, archive.history(2), stored, last) == ()


def standby_rows(stack: Stack) -> list[CheckRow]:
    return list(check_standby_slots(stack, Lsn(0)))
