"""Builders of whole backups in a store: what a dump and a proof would have written, without a database behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from synapse_ops.domain.backup.document import ObjectRecord
from synapse_ops.domain.backup.dump_record import DumpRecord, DumpSource
from synapse_ops.domain.backup.layout import (
    BACKUP,
    HEARTBEAT,
    KIND_DUMP,
    KIND_SNAPSHOT,
    STARTED,
    BackupPlace,
    Identity,
    attempt_name,
    new_backup_id,
    proof_name,
)
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.domain.backup.record import StartedRecord
from synapse_ops.domain.backup.snapshot_record import CollectionSource, ShardRecord, SnapshotRecord, SnapshotWindow
from synapse_ops.systems.s3.store import WrittenObject

IDENTITY = Identity("7400000000000000001", "0a1b2c3d")
DUMP_TAKES = timedelta(seconds=30)


class Store(Protocol):
    def put_bytes(self, key: str, data: bytes) -> WrittenObject: ...


def place_of(
    started_at: datetime, *, database: str = "synapse", number: int = 0, identity: Identity = IDENTITY
) -> BackupPlace:
    """Return where a backup begun at `started_at` lies; `number` tells apart those of one second."""
    return BackupPlace(identity, KIND_DUMP, database, new_backup_id(started_at, number.to_bytes(3, "big")))


@dataclass(frozen=True)
class StoredBackup:
    """A backup as it was written."""

    place: BackupPlace
    record: DumpRecord | SnapshotRecord
    objects: tuple[ObjectRecord, ...] = field(repr=False)


def object_record(store: Store, place: BackupPlace, name: str, data: bytes) -> ObjectRecord:
    """Write one object of a backup and return its record."""
    written = store.put_bytes(place.key(name), data)
    return ObjectRecord(name=name, size_bytes=written.size_bytes, sha256=written.sha256, etag=written.etag)


def backup_record(place: BackupPlace, started_at: datetime, objects: tuple[ObjectRecord, ...]) -> DumpRecord:
    """Return the backup.json of a small dump."""
    digest = hashlib.sha256(place.backup_id.encode()).hexdigest()
    stored = sum(one.size_bytes for one in objects)
    return DumpRecord(
        kind="dump",
        backup_id=place.backup_id,
        source=DumpSource(
            system_identifier=place.identity.system_identifier,
            generation=place.identity.generation,
            database=place.subject,
            server_version="17.10",
            server_version_num=170010,
            node="127.0.0.1:5432",
            is_standby=False,
            database_size_bytes=stored * 4,
            encoding="UTF8",
            collation="C.UTF-8",
            collation_version=None,
        ),
        start_lsn="0/1000000",
        stop_lsn="0/1000100",
        timeline=1,
        database_time=started_at,
        started_at=started_at,
        finished_at=started_at + DUMP_TAKES,
        duration_s=DUMP_TAKES.total_seconds(),
        fingerprint_s=1.0,
        compression="zstd:1",
        tool_versions={"pg_dump": "17.10"},
        correlation_id="test",
        objects=objects,
        dumped_bytes=stored,
        stored_bytes=stored,
        table_count=3,
        row_count=100,
        fingerprint_digest=digest,
        structure_digest=digest,
    )


def store_data(store: Store, place: BackupPlace, started_at: datetime) -> tuple[ObjectRecord, ...]:
    """Write everything of a backup but its backup.json: an interrupted dump."""
    started = StartedRecord(
        kind="dump",
        backup_id=place.backup_id,
        identity=str(place.identity),
        subject=place.subject,
        started_at=started_at,
        host="test",
        pid=1,
        correlation_id="test",
    )
    store.put_bytes(place.key(STARTED), started.to_json())
    store.put_bytes(place.key(HEARTBEAT), b"{}\n")
    data: Mapping[str, bytes] = {
        "database.dump": b"PGDMP" + place.backup_id.encode() * 10,
        "globals.sql": b"-- " + place.backup_id.encode(),
        "fingerprint.json": b"{}",
        "structure.json": b"{}",
    }
    return tuple(object_record(store, place, name, body) for name, body in data.items())


def store_backup(
    store: Store, started_at: datetime, *, database: str = "synapse", number: int = 0, identity: Identity = IDENTITY
) -> StoredBackup:
    """Write a whole backup in the order that a dump does."""
    place = place_of(started_at, database=database, number=number, identity=identity)
    objects = store_data(store, place, started_at)
    record = backup_record(place, started_at, objects)
    store.put_bytes(place.key(BACKUP), record.to_json())
    return StoredBackup(place, record, objects)


def store_snapshot(store: Store, started_at: datetime, *, collection: str = "documents") -> StoredBackup:
    """Write a whole backup of a collection of one shard, in the order that a snapshot does."""
    place = BackupPlace(IDENTITY, KIND_SNAPSHOT, collection, new_backup_id(started_at, b"\0\0\0"))
    store.put_bytes(place.key(HEARTBEAT), b"{}\n")
    names = ("shard-0-of-1.snapshot", "fingerprint.json", "collection.json", "canaries.json")
    objects = tuple(object_record(store, place, name, f"{name} {place.backup_id}".encode()) for name in names)
    record = snapshot_record(place, started_at, objects)
    store.put_bytes(place.key(BACKUP), record.to_json())
    return StoredBackup(place, record, objects)


def snapshot_record(place: BackupPlace, started_at: datetime, objects: tuple[ObjectRecord, ...]) -> SnapshotRecord:
    """Return the backup.json of a small collection that nobody wrote to."""
    digest = hashlib.sha256(place.backup_id.encode()).hexdigest()
    shard, stored = objects[0], sum(one.size_bytes for one in objects)
    return SnapshotRecord(
        kind="snapshot",
        backup_id=place.backup_id,
        source=CollectionSource(
            system_identifier=place.identity.system_identifier,
            generation=place.identity.generation,
            collection=place.subject,
            server_version="1.17.0",
            nodes={"1": "http://127.0.0.1:6333"},
            vector_bytes=shard.size_bytes,
        ),
        window=SnapshotWindow(
            opened_at=started_at,
            closed_at=started_at + DUMP_TAKES,
            start_lsn="0/1000000",
            stop_lsn="0/1000100",
            timeline=1,
            scope="all",
            read_points=100,
            moved_points=0,
            points_before=100,
            points_after=100,
            changed=False,
        ),
        shards=(
            ShardRecord(
                shard_id=0,
                peer_id="1",
                object_name=shard.name,
                method="stored",
                snapshot_bytes=shard.size_bytes,
                snapshot_sha256=shard.sha256,
                server_checksum=None,
                compression="none",
                compression_ratio=1.0,
                created_at=started_at,
                creation_s=1.0,
            ),
        ),
        points_digest=digest,
        aliases=(),
        started_at=started_at,
        finished_at=started_at + DUMP_TAKES,
        duration_s=DUMP_TAKES.total_seconds(),
        tool_versions={"qdrant": "1.17.0"},
        correlation_id="test",
        objects=objects,
        dumped_bytes=shard.size_bytes,
        stored_bytes=stored,
        canary_count=0,
        fingerprint_digest=digest,
        collection_digest=digest,
        canaries_digest=digest,
    )


def store_proof(
    store: Store, backup: StoredBackup, finished_at: datetime, *, verdict: Verdict = Verdict.PROVEN
) -> ProofRecord:
    """Write what a proof of this backup finds."""
    proof = ProofRecord(
        backup_id=backup.place.backup_id,
        verdict=verdict,
        backup_sha256=backup.record.digest(),
        objects=backup.objects,
        started_at=finished_at - timedelta(seconds=10),
        finished_at=finished_at,
        restore_s=4.0,
    )
    name_of = attempt_name if verdict is Verdict.NOT_ATTEMPTED else proof_name
    store.put_bytes(backup.place.key(name_of(finished_at)), proof.to_json())
    return proof
