"""Base backups and WAL expire together: bases first, then WAL, index before bytes; a cut leaves nothing untrue."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from synapse_ops.domain.backup.base_record import BaseRecord, ClusterSource
from synapse_ops.domain.backup.expiry_plan import Action
from synapse_ops.domain.backup.layout import BACKUP, HEARTBEAT, KIND_BASE, BackupPlace, new_backup_id, reading_name
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_facts import SegmentFacts, SegmentIndex, TimelineClaim
from synapse_ops.domain.database.wal_keys import GROUP, chunk_key, claim_key, facts_key, index_key, segment_key
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.backup.expire import ExpiryReport, apply_expiry, make_expiry_plan
from synapse_ops.operations.backup_kinds import read_wal
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import StoreAccess
from tests.memory_store import MemoryStore
from tests.operations.backup.test_expire import LaterStore
from tests.operations.expiry import DAY, NOW, POLICY, ids, stored
from tests.stored_backups import IDENTITY, Store, object_record

SIZE = 16 * 1024 * 1024
PER_DAY = 16  # segments
DAYS = 50


def begins(age: int) -> Segment:
    """The first segment of the day that began so many days ago."""
    return Segment(1, (DAYS - age) * PER_DAY, SIZE)


def store_wal(store: Store, first: Segment, stop: Segment, now: datetime) -> None:
    """Write whole segments as a receiver leaves them: in an index where their 256 are complete, else with facts."""
    claim = TimelineClaim(
        system_identifier=IDENTITY.system_identifier,
        timeline=1,
        forked_at=None,
        history_sha256=None,
        node="127.0.0.1:5432",
        server_version_num=170010,
        segment_bytes=SIZE,
        page_bytes=8192,
        byte_order="little",
        claimed_at=NOW,
    )
    store.put_bytes(claim_key(IDENTITY, 1), claim.to_json())
    facts: dict[int, SegmentFacts] = {}
    for number in range(first.number, stop.number):
        segment = Segment(1, number, SIZE)
        written = store.put_bytes(segment_key(IDENTITY, segment, encrypted=False), b"WAL")
        facts[number] = SegmentFacts(
            segment=segment.name,
            size_bytes=written.size_bytes,
            sha256=written.sha256,
            etag=written.etag,
            commits=1,
            max_commit_at=now - (stop.number - number) * DAY / PER_DAY,
        )
    for number in range(0, stop.number, GROUP):
        group = [facts[one] for one in range(number, number + GROUP) if one in facts]
        segment = Segment(1, number, SIZE)
        if number + GROUP <= stop.number and group:
            store.put_bytes(index_key(IDENTITY, segment), SegmentIndex(segments=tuple(group)).to_json())
        else:
            for one in group:
                key = facts_key(IDENTITY, Segment.parse(one.segment, SIZE))
                store.put_bytes(key, SegmentIndex(segments=(one,)).to_json())
    store.put_bytes(chunk_key(IDENTITY, first, 0, 8192, encrypted=False), b"left beside its segment")


def store_base(store: Store, now: datetime, age: int, *, proven: bool = True) -> BackupPlace:
    """Write a base backup of `age` days ago, in the order in which it is taken, and its proof."""
    started_at = now - age * DAY
    place = BackupPlace(IDENTITY, KIND_BASE, "cluster", new_backup_id(started_at, b"\0\0\0"))
    store.put_bytes(place.key(HEARTBEAT), b"{}\n")
    names = ("base.tar.zst", "backup_manifest")
    objects = tuple(object_record(store, place, name, f"{name} {place.backup_id}".encode()) for name in names)
    start = begins(age).start.position + 40
    record = BaseRecord(
        kind="base",
        backup_id=place.backup_id,
        source=ClusterSource(
            system_identifier=IDENTITY.system_identifier,
            generation=IDENTITY.generation,
            server_version="17.10",
            server_version_num=170010,
            node="127.0.0.1:5432",
            is_standby=False,
            cluster_size_bytes=1000,
            bootstrap_role="postgres",
            catalog_version=202406281,
            block_size=8192,
            wal_segment_bytes=SIZE,
            databases=("postgres",),
        ),
        start_lsn=str(Lsn(start)),
        stop_lsn=str(Lsn(start + 1000)),
        timeline=1,
        started_time=started_at,
        stopped_time=started_at + timedelta(seconds=30),
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=30),
        duration_s=30.0,
        compression="zstd:1",
        tool_versions={"postgres": "17.10"},
        correlation_id="test",
        objects=objects,
        dumped_bytes=1000,
        stored_bytes=sum(one.size_bytes for one in objects),
        fingerprint_digest=hashlib.sha256(b"manifest").hexdigest(),
    )
    store.put_bytes(place.key(BACKUP), record.to_json())
    if proven:
        proof = ProofRecord(
            backup_id=place.backup_id,
            verdict=Verdict.PROVEN,
            backup_sha256=record.digest(),
            objects=objects,
            started_at=record.finished_at,
            finished_at=record.finished_at + timedelta(minutes=1),
            restore_s=4.0,
        )
        store.put_bytes(place.key(f"proof-{proof.finished_at:%Y%m%dT%H%M%SZ}.json"), proof.to_json())
    return place


@pytest.fixture
def store() -> MemoryStore:
    """50 days of WAL, base backups of 45, 40, 30, 20, 12, 5 and 1 days ago; the window is 10 days."""
    found = MemoryStore()
    found.now = NOW
    store_wal(found, begins(DAYS), begins(0), NOW)
    for age in (45, 40, 30, 20, 12, 5, 1):
        store_base(found, NOW, age)
    return found


def expire(store: MemoryStore) -> ExpiryReport:
    repository = Repository(store)  # type: ignore[arg-type]
    plan = make_expiry_plan(repository, POLICY, NOW, kind=KIND_BASE, wal=read_wal)
    return apply_expiry(repository, plan.digest, NOW, wal=read_wal)


def wal_numbers(store: MemoryStore) -> list[int]:
    keys = (key for key in store.objects if key.endswith(".zst") and "/wal/" in key and "chunks" not in key)
    return sorted(Segment.parse(key.split("/")[-1][:24], SIZE).number for key in keys)


def test_base_backups_older_than_the_one_that_carries_the_window_go_and_wal_after_them(store: MemoryStore) -> None:
    """The base backup of 12 days ago carries it. Of WAL whole groups of 256 go; a second plan finds nothing."""
    repository = Repository(store)  # type: ignore[arg-type]
    report = expire(store)

    assert [one.place.kind for one in report.removed] == [*["base"] * 4, *["wal"] * (begins(12).number // GROUP)]
    assert len(ids(repository)) == 3
    assert wal_numbers(store)[0] == begins(12).number // GROUP * GROUP
    archive = read_wal_archive(repository, IDENTITY)
    assert archive.newest.gaps == ()
    assert archive.newest.covered[0].start == Segment(1, begins(12).number // GROUP * GROUP, SIZE).start
    again = make_expiry_plan(repository, POLICY, NOW, kind=KIND_BASE, wal=read_wal)
    assert not any(entry.removes for entry in again.entries)
    assert "from 2/60000028 on, for base backup" in again.notes[0]


@pytest.mark.scenario
def test_whatever_cuts_an_expiry_no_index_names_wal_that_is_gone(store: MemoryStore) -> None:
    """Cut before and after the effect of each deletion: what is listed can be restored, and the next plan goes on."""
    whole = dict(store.objects)
    expire(store)
    after = {key for key in store.objects if "/plans/" not in key and not key.startswith(("plans/", "leases/"))}
    calls = len(store.delete_calls)
    assert calls == 3 + 2 * 2  # base backups in three steps; two groups of WAL, their facts in indexes alone
    for call in range(calls):
        for before_effect in (True, False):
            store.objects, store.delete_calls = dict(whole), []
            store.cut_after, store.cut_before_effect = call, before_effect
            with suppress(SynapseOpsError):
                expire(store)
            archive = read_wal_archive(Repository(store), IDENTITY)  # type: ignore[arg-type]
            named = {number for row in archive.timelines for number in (*row.segments, *row.unread)}
            assert named <= set(wal_numbers(store))
            assert set(range(begins(12).number, begins(0).number)) <= named
            store.cut_after, store.now = None, NOW + timedelta(hours=25)
            repository = Repository(store)  # type: ignore[arg-type]
            plan = make_expiry_plan(repository, POLICY, store.now, kind=KIND_BASE, wal=read_wal)
            apply_expiry(repository, plan.digest, store.now, wal=read_wal)
            left = {key for key in store.objects if not key.startswith(("plans/", "leases/"))}
            assert left == after
            store.now = NOW


def test_a_restore_that_begins_after_the_plan_keeps_its_base_backup_and_all_wal(store: MemoryStore) -> None:
    """Its hold came between the plan and its application; WAL would go only with the base backup that needs it."""
    repository = Repository(store)  # type: ignore[arg-type]
    plan = make_expiry_plan(repository, POLICY, NOW, kind=KIND_BASE, wal=read_wal)
    before = wal_numbers(store)
    oldest = min(entry.place for entry in plan.entries if entry.action is Action.EXPIRE)
    store.put_bytes(oldest.key(reading_name("restore")), b"{}\n")
    report = apply_expiry(repository, plan.digest, NOW, wal=read_wal)

    assert wal_numbers(store) == before
    assert oldest.backup_id in ids(repository)
    assert {row.entry.place.kind for row in report.skipped} == {"base", "wal"}


def test_nothing_of_wal_goes_while_a_base_backup_is_being_taken(store: MemoryStore) -> None:
    """Where its replay will begin is not known yet."""
    place = BackupPlace(IDENTITY, KIND_BASE, "cluster", new_backup_id(NOW, b"\1\1\1"))
    store.put_bytes(place.key(HEARTBEAT), b"{}\n")
    before = wal_numbers(store)
    report = expire(store)

    assert wal_numbers(store) == before
    assert {one.place.kind for one in report.removed} == {"base"}


def test_a_plan_of_dumps_in_the_same_repository_leaves_base_backups_and_wal_alone(store: MemoryStore) -> None:
    stored(store, 30, 20, 12, 1)
    repository = Repository(store)  # type: ignore[arg-type]
    plan = make_expiry_plan(repository, POLICY, NOW, kind="dump", wal=read_wal)
    report = apply_expiry(repository, plan.digest, NOW, wal=read_wal)

    assert {one.place.kind for one in report.removed} == {"dump"}
    assert len(wal_numbers(store)) == DAYS * PER_DAY


def test_an_unproven_base_backup_lets_nothing_go(store: MemoryStore) -> None:
    """Only that of 45 days ago is proven, so it restores the first moment of the window, with 45 days of WAL."""
    for key in [key for key in store.objects if "/base/" in key and "proof-" in key]:
        del store.objects[key]
    repository = Repository(store)  # type: ignore[arg-type]
    store_base(store, NOW, 45)
    report = expire(store)

    assert len(ids(repository)) == 7
    assert report.removed == ()
    assert len(wal_numbers(store)) == DAYS * PER_DAY


def test_a_real_store_does_what_the_plan_says(object_store_access: StoreAccess, bucket_url: str) -> None:
    store = LaterStore(bucket_url, object_store_access)
    now = store.server_time()
    store_wal(store, begins(20), begins(0), now)
    for age in (19, 17, 1):
        store_base(store, now, age)
    repository = Repository(store)
    policy = POLICY.__class__(window=2 * DAY, max_expiry_ratio=1.0)
    plan = make_expiry_plan(repository, policy, now, kind=KIND_BASE, wal=read_wal)
    report = apply_expiry(repository, plan.digest, now, wal=read_wal)
    archive = read_wal_archive(repository, IDENTITY)

    assert [one.place.kind for one in report.removed] == ["base", "wal"]
    assert archive.newest.covered[0].start == Segment(1, begins(17).number // GROUP * GROUP, SIZE).start
    assert archive.newest.gaps == ()
