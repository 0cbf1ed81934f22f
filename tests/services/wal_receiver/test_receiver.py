"""WAL of a real server in a real store: complete, equal, and after whatever ends the receiver."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyrage
import pytest

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import first_after, missing, reach, restore_points
from synapse_ops.domain.database.wal_keys import chunk_key, chunks_prefix, parse_wal_key, segment_key, wal_prefix
from synapse_ops.domain.database.wal_records import find_records
from synapse_ops.errors import ChecksumMismatch, KeyMissing, ObjectMissing, Unreachable, WrongIdentity
from synapse_ops.operations.database.wal_status import read_wal_status
from synapse_ops.services.wal_receiver import empty_commits
from synapse_ops.services.wal_receiver.receiver import SLOT
from synapse_ops.services.wal_receiver.uploader import Uploader
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.servers import PostgresServer, running_postgres
from tests.services.wal_receiver.receiving import (
    DEADLINE_S,
    Receiving,
    receiving,
    wait_durable,
    wait_until,
)

PLACES_OF_GROUP = ("domain.database.wal_keys", "operations.database.wal_archive", "services.wal_receiver.uploader")


@pytest.fixture
def begin(
    tmp_path: Path, postgres_server: PostgresServer, object_store_access: StoreAccess, bucket_url: str
) -> Iterator[Callable[..., Receiving]]:
    """Call it once for a new repository of the server; more: lines of the spec."""
    opened = []

    def make(more: str = "") -> Receiving:
        conninfo, data_dir = postgres_server.conninfo(), postgres_server.server.data_dir
        opened.append(receiving(tmp_path, conninfo, data_dir, object_store_access, bucket_url, more))
        return opened[-1].__enter__()

    yield make
    for one in opened:
        one.__exit__(None, None, None)


def open_segment(wal: Receiving, lsn: Lsn) -> Segment:
    newest = wal.archive().newest
    return Segment.at(newest.timeline, Lsn(lsn.position - 1), newest.segment_bytes)


def test_what_was_committed_is_in_the_store_and_equal_after_kill_9(begin: Callable[..., Receiving]) -> None:
    """Killed in the middle of a load, it leaves no gap, and its successor goes on: all are the server's bytes."""
    wal = begin()
    process = wal.start()
    wal.execute("create table if not exists ledger (n bigint, t text)", "truncate ledger")
    first = wal.wait_durable()
    for _ in range(2):
        wal.execute("insert into ledger select n, repeat(md5(n::text), 8) from generate_series(1, 30000) n")
        process.send_signal(signal.SIGKILL)
        process.wait()
        wal.execute("insert into ledger select n, repeat(md5(n::text), 8) from generate_series(1, 3000) n")
        process = wal.start()
    last = wal.wait_durable()
    archive = wal.archive()

    history = archive.history(archive.newest.timeline)
    assert missing(archive, history, first, last) == ()
    found = reach(archive, history, first)
    assert found.stop >= last
    assert found.gap is None
    size = archive.newest.segment_bytes
    for number in range(first.position // size, last.position // size + 1):
        segment = Segment(archive.newest.timeline, number, size)
        data, stored = wal.fetched(segment, archive)
        assert data[:stored] == wal.own_file(segment)[:stored]
        assert data[stored:] == bytes(size - stored)
        assert stored >= min(size, last - segment.start)
    assert found.last_commit_at is not None
    wait_until(lambda: wal.health().get("healthy"), "it is healthy")


def test_nothing_is_acknowledged_before_it_is_durable(
    begin: Callable[..., Receiving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may forget what is acknowledged, and a commit waits for it (W8, W9): while no put succeeds, the slot
    and the flushed position stand still, although the server hears of everything that has arrived. The lease is lost
    and taken again (W12).
    """
    monkeypatch.setattr("synapse_ops.services.wal_receiver.lease.TTL_S", 1.0)
    wal = begin()
    blocked = threading.Event()
    put = ObjectStore.put_bytes

    def may_block(self: ObjectStore, key: str, data: bytes, **more: object) -> object:
        if blocked.is_set():
            raise Unreachable("the store is away")
        return put(self, key, data, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStore, "put_bytes", may_block)
    with wal.in_process() as receiver:
        wal.execute("create table if not exists acks (n int)")
        before = wait_durable(wal, receiver)
        blocked.set()
        wal.execute("insert into acks select generate_series(1, 1000)")
        written = wal.flushed()
        query = "select write_lsn >= '%s' from pg_stat_replication where application_name = 'synapse-ops wal'"
        wait_until(lambda: wal.execute(query % written), "the server hears what has arrived")
        assert receiver.standing.unhealthy() or receiver.standing.durable_lsn < written
        state = (
            "select flush_lsn < '%s' and replay_lsn = flush_lsn from pg_stat_replication where application_name = '%s'"
        )
        assert wal.execute(state % (written, "synapse-ops wal"))
        slot = Lsn.parse(wal.execute(f"select restart_lsn::text from pg_replication_slots where slot_name = '{SLOT}'"))
        assert before <= slot < written
        wait_until(lambda: receiver.standing.lag_s > 2.0, "the lease is lost as well")
        blocked.clear()
        wait_durable(wal, receiver)
        assert "failed_sessions" not in receiver.standing.counts  # it went on from what had arrived


def test_a_server_can_stop_while_the_store_is_away(
    tmp_path: Path,
    server_tools: PgTools,
    object_store_access: StoreAccess,
    bucket_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for its WAL to be flushed by us as long as we answer: we hang up, and the slot keeps what is missing."""
    monkeypatch.setattr("synapse_ops.services.wal_receiver.receiver.HANG_UP_S", 0.5)
    with running_postgres(server_tools) as own:
        conninfo, data_dir = own.conninfo(), own.server.data_dir
        with (
            receiving(tmp_path, conninfo, data_dir, object_store_access, bucket_url) as wal,
            wal.in_process() as receiver,
        ):
            wal.execute("create table stopping (n int)")
            wait_durable(wal, receiver)
            monkeypatch.setattr(Uploader, "_store_all", _store_is_away)
            wal.execute("insert into stopping values (1)")

            own.server.stop("fast", timeout_s=DEADLINE_S)

            assert "database system is shut down" in own.server.log_tail()
            monkeypatch.undo()
            own.server.start()
            wait_durable(wal, receiver)


def _store_is_away(_: Uploader) -> None:
    raise Unreachable("the store is away")


def test_a_finished_segment_replaces_its_chunks_and_keeps_its_facts(begin: Callable[..., Receiving]) -> None:
    """Restore points and commit times are found in every segment (W6, W17); no chunk stays beside a whole segment."""
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute("create table if not exists facts (n int)")
        start = wait_durable(wal, receiver)
        wal.execute("insert into facts values (1)", "select pg_create_restore_point('before the switch')")
        middle = wait_durable(wal, receiver)
        committed = wal.execute("insert into facts values (2)", "select pg_switch_wal()", "select clock_timestamp()")
        wal.execute("insert into facts values (3)", "select pg_create_restore_point('after the switch')")
        wait_durable(wal, receiver)
        wait_until(lambda: receiver.standing.counts.get("segments"), "a whole segment")
    archive = wal.archive()
    segment = open_segment(wal, middle)
    row = archive.newest
    history = archive.history(row.timeline)

    assert segment.number in row.segments
    assert list(ObjectStore.list_objects(wal.repository.store, chunks_prefix(archive.identity, segment))) == []
    points = restore_points(archive, history, start)
    assert [point.name for point in points] == ["before the switch", "after the switch"]
    assert segment.start < Lsn.parse(points[0].lsn) < Lsn.parse(points[0].stop_lsn) <= segment.stop
    facts = row.segments[segment.number]
    assert facts.commits >= 2
    assert facts.max_commit_at is not None
    assert facts.max_commit_at <= committed
    assert first_after(archive, history, start, facts.max_commit_at) == segment.next()
    assert row.open_facts is not None
    assert row.last_commit_at is not None
    assert row.last_commit_at > committed
    data, stored = wal.fetched(segment)
    assert (data, stored) == (wal.own_file(segment), segment.size_bytes)


def test_facts_are_what_the_servers_own_reader_finds(
    begin: Callable[..., Receiving], postgres_server: PostgresServer
) -> None:
    """Scanning for the bytes of records finds exactly the commits that pg_waldump prints (W17)."""
    import subprocess

    wal = begin()
    with wal.in_process() as receiver:
        wal.execute("create table if not exists dumped (n bigint, t text)", "select pg_switch_wal()")
        wal.execute("insert into dumped select n, repeat(chr(1), 40) from generate_series(1, 20000) n")
        wal.execute("do $$ begin for n in 1..2000 loop insert into dumped values (n); commit; end loop; end $$")
        middle = wal.flushed()
        wal.execute("select pg_switch_wal()", "insert into dumped values (0)")
        wait_durable(wal, receiver)
    segment = open_segment(wal, middle)
    facts = wal.archive().newest.segments[segment.number]

    program = postgres_server.server.tools.path("pg_waldump")
    argv = [program, "--rmgr=Transaction", wal.data_dir / "pg_wal" / segment.name]
    environment = postgres_server.server.tools.environment()
    printed = subprocess.run(argv, env={**environment, "TZ": "UTC"}, capture_output=True, text=True, check=False).stdout
    times = [line.split("desc: COMMIT ")[1][:26] for line in printed.splitlines() if "desc: COMMIT " in line]
    assert facts.commits == len(times) > 2000
    assert facts.min_commit_at is not None
    assert facts.max_commit_at is not None
    assert (min(times), max(times)) == tuple(
        at.strftime("%Y-%m-%d %H:%M:%S.%f") for at in (facts.min_commit_at, facts.max_commit_at)
    )


def test_a_commit_across_two_segments_is_found_once(begin: Callable[..., Receiving]) -> None:
    """It belongs to the one that it ends in: what was scanned before is carried on."""
    wal = begin()
    wal.execute("create table if not exists crossing (n int)", "select pg_switch_wal()")
    start = wal.flushed()
    wal.execute("do $$ begin for n in 1..2000 loop insert into crossing values (n); commit; end loop; end $$")
    segment, page = Segment.at(1, start, 16 << 20), 8192
    data = wal.own_file(segment)[: (wal.flushed() - segment.start) // page * page]
    commits = find_records(data, segment.start, segment_bytes=16 << 20, page_bytes=page)[0].commits
    alone = []
    for cut in range(page, len(data), page):
        before, tail = find_records(data[:cut], segment.start, segment_bytes=16 << 20, page_bytes=page)
        after = find_records(data[cut:], segment.start + cut, segment_bytes=16 << 20, page_bytes=page, tail=tail)[0]
        assert before.commits + after.commits == commits
        bare = find_records(data[cut:], segment.start + cut, segment_bytes=16 << 20, page_bytes=page)[0]
        alone.append(before.commits + bare.commits)
    assert min(alone) < commits  # some commit does lie across a border of pages


def test_many_chunks_are_merged_while_the_segment_is_open(
    begin: Callable[..., Receiving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 become one, which is checked before they are removed (W7); what is read is the same."""
    monkeypatch.setattr("synapse_ops.domain.database.wal_plan.MOST_CHUNKS", 6)
    monkeypatch.setattr("synapse_ops.domain.database.wal_plan.MERGED_CHUNKS", 4)
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute("create table if not exists merged (n int)", "select pg_switch_wal()")
        for number in range(9):
            wal.execute(f"insert into merged values ({number})")
            last = wait_durable(wal, receiver)
        wait_until(lambda: receiver.standing.counts.get("merges"), "a merge")
    segment = open_segment(wal, last)
    chunks = wal.archive().newest.chunks[segment.number]

    assert len(chunks) < 6
    data, stored = wal.fetched(segment)
    assert stored >= last - segment.start
    assert data[:stored] == wal.own_file(segment)[:stored]


def test_an_index_takes_over_the_facts_of_its_group(
    begin: Callable[..., Receiving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 segments share one (W6): the group's single facts go, and readers see the same as before."""
    for place in PLACES_OF_GROUP:
        monkeypatch.setattr(f"synapse_ops.{place}.GROUP", 2)
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute("create table if not exists indexed (n int)")
        first = wait_durable(wal, receiver)
        for number in range(6):
            wal.execute(f"insert into indexed values ({number})", "select pg_switch_wal()")
            wait_until(lambda n=number: receiver.standing.counts.get("segments", 0) > n, "a segment")
        wait_durable(wal, receiver)
        wait_until(lambda: receiver.standing.counts.get("indexes", 0) >= 2, "two indexes")
    archive = wal.archive()
    keys = [parse_wal_key(row.key) for row in wal.repository.store.list_objects(wal_prefix(archive.identity))]

    kinds = [key.kind for key in keys if key is not None]
    assert None not in keys
    assert kinds.count("index") >= 2
    assert kinds.count("facts") <= 2
    assert len(archive.newest.segments) == kinds.count("segment") >= 6
    assert reach(archive, archive.history(archive.newest.timeline), first).gap is None


def test_a_clone_is_refused_and_nothing_is_overwritten(begin: Callable[..., Receiving]) -> None:
    """Same identifier, generation and timeline (W13): only the bytes of the open segment tell it apart. Simulated from
    the other side: the repository holds another server's bytes.
    """
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute(
            "create table if not exists cloned (n int)", "select pg_switch_wal()", "insert into cloned values (1)"
        )
        last = wait_durable(wal, receiver)
    segment = open_segment(wal, last)
    archive = wal.archive()
    store = wal.repository.store
    [chunk, *_] = archive.newest.chunks[segment.number]
    from synapse_ops.operations.database.wal_objects import WalBytes
    from synapse_ops.operations.database.wal_writer import DigestKey, WalWriter

    forged = bytearray(wal.own_file(segment))
    forged[chunk.stop - 1] ^= 1
    other = WalWriter(wal.repository, archive.identity, digest_key=DigestKey(b"x"), scratch_dir=wal.folder)
    other.remove_chunks(segment, [chunk])
    what = WalBytes(archive.identity, segment, chunk.start, chunk.stop)
    other.store(what, lambda offset, size: bytes(forged[offset : offset + size]))
    before = sorted((row.key, row.etag) for row in store.list_objects(wal_prefix(archive.identity)))

    with wal.in_process() as receiver:
        wal.execute("insert into cloned values (2)")
        wait_until(lambda: "holds other WAL than this server" in receiver.standing.fault, "it is refused by name")
        assert receiver.standing.unhealthy()

    assert sorted((row.key, row.etag) for row in store.list_objects(wal_prefix(archive.identity))) == before
    with pytest.raises(WrongIdentity):
        other.store(what, lambda offset, size: wal.own_file(segment)[offset : offset + size])
    assert archive.newest.claim is not None
    with pytest.raises(WrongIdentity, match="history_sha256"):  # a promotion of the clone took the same number
        other.claim(archive.newest.claim.model_copy(update={"history_sha256": "1" * 64}))


def test_ones_own_chunk_from_before_a_restart_is_no_conflict(begin: Callable[..., Receiving]) -> None:
    """A put whose reply was lost is met again as 412; it killed a prototype (W9). Another zstd gives other bytes."""
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute(
            "create table if not exists repeated (n int)", "select pg_switch_wal()", "insert into repeated values (1)"
        )
        last = wait_durable(wal, receiver)
    from synapse_ops.operations.database import wal_objects
    from synapse_ops.operations.database.wal_writer import DigestKey, WalWriter

    segment, archive = open_segment(wal, last), wal.archive()
    chunk = archive.newest.chunks[segment.number][0]
    what = wal_objects.WalBytes(archive.identity, segment, chunk.start, chunk.stop)
    writer = WalWriter(wal.repository, archive.identity, digest_key=DigestKey(b"x"), scratch_dir=wal.folder)
    level, wal_objects.LEVEL = wal_objects.LEVEL, 9
    try:
        known = writer.store(what, lambda offset, size: wal.own_file(segment)[offset : offset + size])
    finally:
        wal_objects.LEVEL = level
    assert known.size_bytes > 0
    with wal.in_process() as receiver:
        wal.execute("insert into repeated values (2)")
        wait_durable(wal, receiver)
        assert receiver.standing.counts["compared"] >= 1


def harms(data: bytes, other: bytes) -> dict[str, tuple[bytes | None, type[Exception]]]:
    """Return what can be done to a stored object, and how reading it fails."""
    half = len(data) // 2
    return {
        "flipped": (data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :], ChecksumMismatch),
        "cut short": (data[:-4], ChecksumMismatch),  # only zstd's own checksum is missing
        "swapped": (other, WrongIdentity),
        "empty": (b"", ChecksumMismatch),
        "removed": (None, ObjectMissing),
        "no WAL": (b"not WAL at all, and longer than its header would be", ChecksumMismatch),
    }


@pytest.mark.scenario
def test_a_damaged_object_is_named_and_never_the_end_of_wal(begin: Callable[..., Receiving]) -> None:
    """Recovery takes what it cannot get for the end of WAL, and opens with less (W2)."""
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute(
            "create table if not exists harmed (n int)", "select pg_switch_wal()", "insert into harmed values (1)"
        )
        middle = wait_durable(wal, receiver)
        wal.execute("select pg_switch_wal()", "insert into harmed values (2)")
        last = wait_durable(wal, receiver)
        wait_until(lambda: receiver.standing.counts.get("segments", 0) >= 2, "two segments")
    archive, store = wal.archive(), wal.repository.store
    whole, part = open_segment(wal, middle), open_segment(wal, last)
    chunk = archive.newest.chunks[part.number][0]
    before = Segment(1, whole.number - 1, whole.size_bytes)
    other = store.read_bytes(segment_key(archive.identity, before, encrypted=False))
    keys = {
        segment_key(archive.identity, whole, encrypted=False): whole,
        chunk_key(archive.identity, part, chunk.start, chunk.stop, encrypted=False): part,
    }
    for key, segment in keys.items():
        data = store.read_bytes(key)
        for harm, (damaged, error) in harms(data, other).items():
            if damaged is None:
                store.delete([key])
            else:
                store.put_bytes(key, damaged)
            with pytest.raises(error) as named:
                wal.fetched(segment, archive)
            assert segment.name in str(named.value), harm
        store.put_bytes(key, data)
        assert wal.fetched(segment, archive)[0][: chunk.stop] == wal.own_file(segment)[: chunk.stop]


@pytest.mark.scenario
def test_encrypted_wal_is_compared_without_its_key_and_read_with_it(begin: Callable[..., Receiving]) -> None:
    """age gives other bytes each time (W9): a keyed digest of the plain bytes lies with the object."""
    key = pyrage.x25519.Identity.generate()
    wal = begin(f"encryption: {{recipients: ['{key.to_public()}']}}\n")
    with wal.in_process() as receiver:
        wal.execute(
            "create table if not exists sealed (n int)", "select pg_switch_wal()", "insert into sealed values (1)"
        )
        wait_durable(wal, receiver)
    with wal.in_process() as receiver:
        wal.execute("insert into sealed values (2)")
        last = wait_durable(wal, receiver)
        assert receiver.standing.counts["compared"] >= 1
    segment = open_segment(wal, last)

    with pytest.raises(KeyMissing):
        wal.fetched(segment)
    (wal.folder / "age.key").write_text(f"{key}\n")
    (wal.folder / "age.key").chmod(0o600)
    wal.spec.write_text(
        wal.spec.read_text().replace("recipients:", f"identity: 'file:{wal.folder}/age.key', recipients:")
    )
    data, stored = wal.fetched(segment)
    assert stored >= last - segment.start
    assert data[:stored] == wal.own_file(segment)[:stored]
    assert wal.archive().newest.last_commit_at is not None


def test_a_receiver_on_another_host_waits_for_the_lease(begin: Callable[..., Receiving]) -> None:
    """Two of them never write at once (W12); the second says why it does not."""
    wal = begin()
    with wal.in_process() as first:
        wal.execute("create table if not exists leased (n int)")
        wait_durable(wal, first)
        second = Receiving(wal.folder / "second", wal.spec, wal.conninfo, wal.data_dir)
        second.folder.mkdir()
        with second.in_process() as waiting:
            wait_until(lambda: "held by WAL receiver on" in waiting.standing.fault, "it waits")
            assert not first.standing.unhealthy()


def test_a_lost_slot_is_made_anew_and_the_gap_is_exact(
    begin: Callable[..., Receiving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no server holds any more is named, to the byte; what follows is received (W11)."""
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute("create table if not exists lost (n int)", "select pg_switch_wal()", "insert into lost values (1)")
        last = wait_durable(wal, receiver)
    stored = reach(wal.archive(), wal.archive().history(1), last).stop
    wal.execute(f"select pg_drop_replication_slot('{SLOT}')")
    segment = open_segment(wal, last)
    for _ in range(8):
        wal.execute("insert into lost values (2)", "select pg_switch_wal()", "checkpoint")
        if not (wal.data_dir / "pg_wal" / segment.name).exists():
            break
    assert not (wal.data_dir / "pg_wal" / segment.name).exists()
    with wal.in_process() as receiver:
        wal.execute("insert into lost values (3)")
        end = wait_durable(wal, receiver)
    archive = wal.archive()

    [gap] = archive.newest.gaps
    assert gap.start == stored
    assert receiver.standing.gap_bytes == gap.size_bytes
    assert time.time() - 60 < (receiver.standing.gap_at_s or 0) <= time.time()
    assert reach(archive, archive.history(1), last).gap == gap
    assert reach(archive, archive.history(1), gap.stop).stop >= end
    for place in PLACES_OF_GROUP:
        monkeypatch.setattr(f"synapse_ops.{place}.GROUP", 1)
    with wal.in_process() as receiver:
        for number in range(2):
            wal.execute("insert into lost values (4)", "select pg_switch_wal()")
            wait_until(lambda n=number: receiver.standing.counts.get("segments", 0) > n, "a segment")
        wait_durable(wal, receiver)
    assert wal.archive().newest.gaps == (gap,)  # what stayed in chunks before it is in an index by now


def test_the_status_tells_how_far_the_store_is_behind(begin: Callable[..., Receiving]) -> None:
    """Lag is of the server's own position, in bytes and in seconds; nothing new is no lag."""
    wal = begin()
    with wal.in_process() as receiver:
        wal.execute("create table if not exists lagging (n int)")
        wait_durable(wal, receiver)
    wal.execute("insert into lagging select generate_series(1, 10000)")
    status = read_wal_status(wal.stack)

    assert status.lag_bytes is not None
    assert status.lag_bytes > 100_000
    assert status.lag_s is not None
    assert status.timeline == 1
    assert status.last_commit_at is not None


def test_a_quiet_server_tells_the_time_as_well(
    begin: Callable[..., Receiving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery knows moments by commits alone: without one no moment of a quiet hour can be restored to."""
    monkeypatch.setattr(empty_commits, "INTERVAL_S", 0.1)
    wal = begin()
    with wal.in_process() as receiver:
        wait_durable(wal, receiver)
        asked_at = wal.execute("select clock_timestamp()")

        wait_until(lambda: (wal.archive().newest.last_commit_at or asked_at) > asked_at, "a later commit is stored")
