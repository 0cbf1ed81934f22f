"""The objects of a collection's backup, read once and checked as they are read: object -> sha256 -> [age] -> [zstd].

What comes out is the server's own archive of each shard, whose sha256 is compared once more: it is what a recovery
sends to the server as checksum. Nothing is opened before every byte of it has been compared with `backup.json`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from synapse_ops.domain.backup_record import ObjectRecord
from synapse_ops.domain.canonical_json import reading
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.repository_layout import BACKUP, BackupPlace
from synapse_ops.domain.snapshot_record import ShardRecord, SnapshotRecord
from synapse_ops.domain.vector_fingerprint import CanaryQuery, VectorFingerprint, canaries_from_json
from synapse_ops.errors import ChecksumMismatch, IntegrityError
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.staged_backup import ReadLog, read_object
from synapse_ops.systems.encryption import SUFFIX
from synapse_ops.systems.qdrant_edge import ShardFile

FINGERPRINT, COLLECTION, CANARIES = "fingerprint.json", "collection.json", "canaries.json"


@dataclass(frozen=True)
class CollectionDocument:
    """What the shards do not hold. config, payload_schema: Qdrant's own JSON, points not counted."""

    config: dict[str, Any]
    payload_schema: dict[str, Any]
    aliases: tuple[str, ...]

    @classmethod
    def from_json(cls, data: bytes) -> CollectionDocument:
        """Raises DocumentUnreadable for anything but what a snapshot writes."""
        with reading(data, COLLECTION, 1) as body:
            return cls(dict(body["config"]), dict(body["payload_schema"]), tuple(body["aliases"]))


@dataclass(frozen=True)
class StagedSnapshot:
    """A collection's backup whose every byte has been verified; the shards lie in scratch space, ready to be opened."""

    shards: tuple[ShardFile, ...]
    fingerprint: VectorFingerprint
    collection: CollectionDocument
    canaries: tuple[CanaryQuery, ...]


def stage_snapshot(
    repository: Repository,
    place: BackupPlace,
    record: SnapshotRecord,
    *,
    identities: tuple[str, ...],
    scratch_dir: Path,
    deadline: Deadline,
    log: ReadLog,
    progress: ReportProgress,
) -> StagedSnapshot:
    """Read and verify every object of a backup into memory and `scratch_dir`.

    Raises ChecksumMismatch naming the object and both digests, ObjectMissing, KeyMissing naming the recipients,
    DeadlineExceeded. What was read until then stands in `log`.
    """
    objects = _objects_by_name(place, record)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        deadline.remaining_s()
        progress(Progress(f"reading {place.subject}", done, record.stored_bytes))

    documents = {}
    for name, wanted in (
        (FINGERPRINT, record.fingerprint_digest),
        (COLLECTION, record.collection_digest),
        (CANARIES, record.canaries_digest),
    ):
        buffer = io.BytesIO()
        read_object(repository, place, record, objects[name], identities, buffer, count, log)
        found = hashlib.sha256(buffer.getvalue()).hexdigest()
        if found != wanted:
            raise ChecksumMismatch(
                f"{place.key(name)} is not the one that {BACKUP} names: sha256 {found}, recorded {wanted}"
            )
        documents[name] = buffer.getvalue()
    shards = []
    for shard in record.shards:
        path = scratch_dir / f"shard-{shard.shard_id}.snapshot"
        _stage_shard(repository, place, record, shard, objects[shard.object_name], identities, path, count, log)
        shards.append(ShardFile(shard.shard_id, path))
    return StagedSnapshot(
        shards=tuple(shards),
        fingerprint=VectorFingerprint.from_json(documents[FINGERPRINT]),
        collection=CollectionDocument.from_json(documents[COLLECTION]),
        canaries=canaries_from_json(documents[CANARIES]),
    )


def _objects_by_name(place: BackupPlace, record: SnapshotRecord) -> dict[str, ObjectRecord]:
    """Return the documents by plain name and the shards by their own; raises IntegrityError unless all are named."""
    suffix = SUFFIX if record.encryption_recipients else ""
    wanted = {name + suffix: name for name in (FINGERPRINT, COLLECTION, CANARIES)}
    wanted |= {shard.object_name: shard.object_name for shard in record.shards}
    found = [item.name for item in record.objects]
    if sorted(found) != sorted(wanted) or len({shard.shard_id for shard in record.shards}) != len(record.shards):
        raise IntegrityError(
            f"{place.key(BACKUP)} names the objects {', '.join(sorted(found))}",
            detail=f"expected {', '.join(sorted(wanted))}",
        )
    return {wanted[item.name]: item for item in record.objects}


def _stage_shard(
    repository: Repository,
    place: BackupPlace,
    record: SnapshotRecord,
    shard: ShardRecord,
    expected: ObjectRecord,
    identities: tuple[str, ...],
    path: Path,
    count: Callable[[int], None],
    log: ReadLog,
) -> None:
    with path.open("wb") as file:
        sink = _Unpacking(file, shard)
        read_object(repository, place, record, expected, identities, cast("IO[bytes]", sink), count, log)
        found = sink.finish()
    if found != (shard.snapshot_bytes, shard.snapshot_sha256):
        raise ChecksumMismatch(
            f"{place.key(expected.name)} unpacks to another archive than {BACKUP} names:"
            f" sha256 {found[1]}, recorded {shard.snapshot_sha256}",
            detail=f"{found[0]} bytes, recorded {shard.snapshot_bytes}",
        )


class _Unpacking:
    """A sink that writes the server's archive: decompressed, counted, hashed, and never larger than recorded."""

    def __init__(self, file: IO[bytes], shard: ShardRecord) -> None:
        import zstandard

        self._file = file
        self._shard = shard
        self._zstd = zstandard.ZstdDecompressor().decompressobj() if shard.compression == "zstd:1" else None
        self._error: type[Exception] = zstandard.ZstdError
        self._sha256 = hashlib.sha256()
        self._taken = 0
        self._written = 0

    def write(self, data: bytes) -> int:
        """Take stored bytes. Raises IntegrityError when they are no archive of the recorded size."""
        self._taken += len(data)
        try:
            plain = self._zstd.decompress(data) if self._zstd is not None else data
        except self._error as fault:
            raise IntegrityError(f"{self._shard.object_name} cannot be decompressed: {fault}") from fault
        self._written += len(plain)
        if self._written > self._shard.snapshot_bytes:
            raise IntegrityError(f"{self._shard.object_name} unpacks to more than {self._shard.snapshot_bytes} bytes")
        self._sha256.update(plain)
        self._file.write(plain)
        return len(data)

    def tell(self) -> int:
        return self._taken

    def finish(self) -> tuple[int, str]:
        """Return size and sha256 of the archive."""
        return self._written, self._sha256.hexdigest()
