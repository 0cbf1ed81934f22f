"""What an archive goes through, under load, round for round: promotions, clones, outages, lost slots.

Each round ends with the window named exactly, and every restore inside it equal to an independent ledger.
`SYNAPSE_TEST_ROUNDS=30` sets how many of each (one by itself), `SYNAPSE_TEST_SEED` draws the same again.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, WalRange
from synapse_ops.errors import ObjectMissing
from synapse_ops.operations.database.base_backup import take_base_backup
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import StoreAccess
from tests.faulty_store import FAULTS, FaultyStore, faulty_store
from tests.operations.database.backups import make_stack
from tests.servers import PostgresServer, running_postgres, running_standby, servers_dir
from tests.services.wal_receiver.ledger import Row, read_ledger, restored_rows, start_writer
from tests.services.wal_receiver.receiving import Receiving, wait_until
from tests.services.wal_receiver.test_promotion import promoted

ROUNDS = int(os.environ.get("SYNAPSE_TEST_ROUNDS", "1"))
SEED = os.environ.get("SYNAPSE_TEST_SEED") or secrets.token_hex(3)
PAUSE_S = 0.003 if ROUNDS > 1 else 0.0  # each round restores all rows of those before it
MIB = 1 << 20
GAP_DEADLINE_S = 120.0  # a full spool is stored first, after the pause that a store's errors led to
REFUSALS = ("holds other WAL than this server", "this server's WAL ends at", "claimed by another server")
SETTINGS = {
    "max_slot_wal_keep_size": "16MB",
    "max_wal_size": "4MB",
    "min_wal_size": "2MB",
    "wal_keep_size": 0,
    "track_commit_timestamp": True,
    "summarize_wal": False,
}

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120 + 120 * ROUNDS)]


class Field:
    """A server under load, its receiver, and a store that can fail. base_at: end of the base backup that counts."""

    def __init__(
        self, folder: Path, server: PostgresServer, store: FaultyStore, access: StoreAccess, url: str, opened: ExitStack
    ) -> None:
        self.folder, self.server, self.store = folder, server, store
        self.access, self.url, self.opened = access, url, opened
        self.chance = random.Random(SEED)
        self.writer: subprocess.Popen[bytes] | None = None
        self.receiver: subprocess.Popen[bytes] | None = None
        (folder / "past").mkdir()
        self.name_nodes(server)

    def begin(self) -> None:
        self.server.execute("create table ledger (n int primary key, filling text)")
        self.start_receiver()
        self.start_writer()
        wait_until(lambda: (self.folder / "ledger").exists(), "the first row")
        self.take_base()

    def end(self) -> None:
        self.kill_writer()
        self.kill_receiver()

    def name_nodes(self, *servers: PostgresServer) -> None:
        """Write the spec: its receiver stores through the faults, everything else past them."""
        nodes = dict(zip(("db-primary", "db-standby"), (one.server.port for one in servers), strict=False))
        conninfo = servers[0].conninfo()
        more = {"wal_archiving": "continuous", "nodes": nodes}
        self.stack = make_stack(self.folder / "past", conninfo, self.url, self.access, **more)  # type: ignore[arg-type]
        make_stack(self.folder, conninfo, self.url, self.store.access, **more)  # type: ignore[arg-type]
        spec = self.folder / "infrastructure.yaml"
        spec.write_text(spec.read_text().replace("base: {max", "wal: {chunk_interval: 200ms, spool: 12Mi}, base: {max"))
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        self.wal = Receiving(state, spec, conninfo, self.server.server.data_dir)
        self.past = Receiving(self.folder / "past", self.stack_spec, conninfo, self.server.server.data_dir)

    @property
    def stack_spec(self) -> Path:
        return self.folder / "past" / "infrastructure.yaml"

    def start_receiver(self) -> None:
        self.receiver = self.wal.start()
        wait_until(lambda: self.wal.health().get("server"), "it receives")

    def kill_receiver(self) -> None:
        if self.receiver is not None:
            self.receiver.kill()
            self.receiver.wait()

    def start_writer(self) -> None:
        self.writer = start_writer(self.server.conninfo(), self.folder / "ledger", PAUSE_S)

    def kill_writer(self) -> None:
        if self.writer is not None:
            self.writer.kill()
            self.writer.wait()

    def stop_writer(self) -> list[Row]:
        self.kill_writer()
        with psycopg.connect(self.server.conninfo()) as connection:
            row = connection.execute("select count(*) from ledger").fetchone()
        assert row is not None
        rows = read_ledger(self.folder / "ledger")
        assert len(rows) <= row[0] <= len(rows) + 1  # the last may be committed and not noted
        return rows

    def load(self) -> None:
        rows = len(read_ledger(self.folder / "ledger"))
        time.sleep(self.chance.uniform(0.5, 1.5))
        wait_until(lambda: len(read_ledger(self.folder / "ledger")) > rows + 10, "some rows")

    def take_base(self) -> None:
        self.base_at = take_base_backup(self.stack).record.stopped_time.timestamp()

    def restored(self, until: str, timeline: int | None = None) -> int:
        return restored_rows(self.stack, until, self.folder, self.server.server.tools, timeline)

    def gaps(self) -> list[WalRange]:
        return [gap for row in self.past.archive().timelines for gap in row.gaps]

    def gaps_if(self, count: int) -> Callable[[], list[WalRange]]:
        """Return what gives the gaps, once there are so many."""
        return lambda: gaps if len(gaps := self.gaps()) >= count else []

    def is_spool_full(self) -> bool:
        self.server.execute("select pg_switch_wal()")
        return bool(self.wal.health().get("spool_bytes", 0) >= 12 * MIB)

    def is_on_the_server(self, lsn: Lsn) -> bool:
        timeline = self.past.archive().newest.timeline
        return (self.server.server.data_dir / "pg_wal" / Segment.at(timeline, lsn, MIB).name).exists()

    def is_sending(self) -> bool:
        return bool(self.wal.execute("select count(*) from pg_stat_replication"))

    def outlast(self) -> None:
        """Write until the slot is lost, the sender is ended with it, and all that it can have sent is removed."""
        while self.is_sending():
            self.write_segment()
        lsn = self.wal.flushed()
        while self.wal.flushed() <= lsn or self.is_on_the_server(lsn):
            self.write_segment()

    def write_segment(self) -> None:
        self.server.execute("select pg_switch_wal()")
        self.server.execute("checkpoint")

    def compare(self, rows: list[Row]) -> str:
        """Restore the newest moment and one in between, and return that; `rows` are all that the server has."""
        assert self.restored("latest") in {len(rows), len(rows) + 1}
        moment = self.chance.choice([row for row in rows[:-1] if row.committed_at_s > self.base_at + 0.01])
        at = datetime.fromtimestamp(moment.committed_at_s, UTC)
        assert self.restored(f"time:{at.isoformat()}") == moment.number
        return f"{len(rows):6} rows, and {moment.number} at {at:%H:%M:%S.%f}"

    def compare_around(self, gap: WalRange) -> str:
        """What lies before a gap is restored, `latest` is refused by name, and a base backup makes all well again."""
        before = [row for row in self.stop_writer() if row.lsn <= gap.start]
        assert self.restored(f"lsn:{gap.start}") - len(before) in {0, 1}  # its commit ends before what was noted
        with pytest.raises(ObjectMissing, match=f"missing up to {gap.stop}"):
            self.restored("latest")
        self.take_base()
        self.start_writer()
        self.load()
        rows = self.stop_writer()
        self.wal.wait_durable()
        return f"gap {gap}, {len(before)} before; {self.compare(rows)}"


@pytest.fixture
def field(server_tools: PgTools, object_store_access: StoreAccess, bucket_url: str) -> Iterator[Field]:
    folder = servers_dir("rounds")
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        store = opened.enter_context(faulty_store(object_store_access))
        server = opened.enter_context(running_postgres(server_tools, settings=SETTINGS, init=["--wal-segsize=1"]))
        made = Field(folder, server, store, object_store_access, bucket_url, opened)
        opened.callback(made.end)
        print(f"\nSYNAPSE_TEST_SEED={SEED}")
        made.begin()
        yield made


def test_after_every_promotion_the_window_goes_on(field: Field) -> None:
    """Commits that the new primary lacks stay lost; all others are restored, from one base backup, over every fork."""
    field.server.execute("alter system set max_slot_wal_keep_size = '256MB'")  # no receiver runs for a while
    field.server.execute("select pg_reload_conf()")
    for number in range(1, max(ROUNDS, 2) + 1):
        standby = field.opened.enter_context(running_standby(field.server, settings={"wal_keep_size": 0}))
        field.name_nodes(field.server, standby)
        field.kill_receiver()
        field.start_receiver()
        field.load()
        before = len(read_ledger(field.folder / "ledger"))
        if field.chance.random() < 0.5:
            field.kill_receiver()
            field.load()
        field.server.server.stop("immediate")
        field.kill_writer()
        promoted(standby.server, Lsn(0))
        field.kill_receiver()
        field.server = standby
        with psycopg.connect(standby.conninfo()) as connection:
            row = connection.execute("select count(*) from ledger").fetchone()
        assert row is not None
        lines = (field.folder / "ledger").read_text().splitlines(keepends=True)
        (field.folder / "ledger").write_text("".join(lines[: row[0]]))
        field.name_nodes(standby)
        field.start_receiver()
        field.start_writer()
        field.load()
        rows = field.stop_writer()
        field.wal.wait_durable()
        assert field.gaps() == []
        assert field.past.archive().newest.timeline == number + 1
        older = field.restored("latest", timeline=number)
        assert row[0] <= older <= len(lines) + 1
        said = f"{len(lines) - row[0]:3} lost, the older timeline has {older - row[0]:3} of them"
        print(f"{number:3} promotion at {before:6}: {said}; {field.compare(rows)}", flush=True)
        field.start_writer()


def test_a_clone_is_refused_every_time(field: Field) -> None:
    """It has the same identifier, generation and timeline (W13): nothing of it is stored, and nothing lost by it."""
    for number in range(1, ROUNDS + 1):
        with running_standby(field.server, is_clone=True) as clone:
            clone.execute("insert into ledger select n, 'of the clone' from generate_series(1000000, 1000100) n")
            field.load()
            field.wal.wait_durable()
            field.kill_receiver()
            folder = field.folder / f"clone-{number}"
            folder.mkdir()
            make_stack(folder, clone.conninfo(), field.url, field.access, wal_archiving="continuous")
            other = Receiving(folder, folder / "infrastructure.yaml", clone.conninfo(), clone.server.data_dir)
            process = other.start()

            def refused(other: Receiving = other) -> str:
                reason = str(other.health().get("reason", ""))
                return reason if any(words in reason for words in REFUSALS) else ""

            reason = wait_until(refused, "the clone is refused")
            process.kill()
            process.wait()
        field.start_receiver()
        field.load()
        rows = field.stop_writer()
        field.wal.wait_durable()
        assert field.gaps() == []
        print(f"{number:3} {reason[:60]}; {field.compare(rows)}", flush=True)
        field.start_writer()


def test_an_outage_that_the_spool_outlasts_leaves_nothing_missing(field: Field) -> None:
    for number in range(1, ROUNDS + 1):
        field.store.fault = fault = field.chance.choice(FAULTS)
        field.load()
        field.store.fault = ""
        field.load()
        rows = field.stop_writer()
        field.wal.wait_durable()
        assert field.gaps() == []
        print(f"{number:3} {fault:12} {field.compare(rows)}", flush=True)
        field.start_writer()


@pytest.mark.parametrize("receives", [True, False], ids=["longer than the spool", "slot invalidated"])
def test_what_nobody_has_is_a_gap_that_is_named(field: Field, receives: bool) -> None:
    """Either the store is away until spool and slot are full, or no receiver runs until the slot is lost."""
    for number in range(1, ROUNDS + 1):
        field.store.fault = fault = field.chance.choice(("reset", "throttled", "failed")) if receives else ""
        if receives:
            wait_until(field.is_spool_full, "the spool is full")
            field.outlast()
        else:
            field.wal.wait_durable()
            field.kill_receiver()
            field.load()
            field.outlast()
            field.start_receiver()
        field.store.fault = ""
        gaps = wait_until(field.gaps_if(number), "the gap is there", GAP_DEADLINE_S)
        assert len(gaps) == number
        print(f"{number:3} {fault:9} {field.compare_around(gaps[-1])}", flush=True)
        field.start_writer()
