"""The objects of a collection's backup, read once and checked as they are read: object -> sha256 -> [age] -> [zstd].

What comes out is the server's own archive of each shard, whose sha256 is compared once more: it is what a recovery
sends to the server as checksum. Nothing is opened before every byte of it has been compared with `backup.json`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from synapse_ops.domain.backup.layout import BACKUP, BackupPlace
from synapse_ops.domain.backup.snapshot_record import ShardRecord, SnapshotRecord
from synapse_ops.domain.canonical_json import reading
from synapse_ops.domain.vectors.fingerprint import CanaryQuery, VectorFingerprint, canaries_from_json
from synapse_ops.errors import ChecksumMismatch, IntegrityError
from synapse_ops.operations.backup.reading import BackupReader
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.qdrant.edge import ShardFile

DOCUMENTS = FINGERPRINT, COLLECTION, CANARIES = "fingerprint.json", "collection.json", "canaries.json"


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


def snapshot_reader(repository: Repository, place: BackupPlace, record: SnapshotRecord, **limits: Any) -> BackupReader:
    """Return the reader of a collection's backup; raises IntegrityError unless each shard is named once.

    limits: identities, deadline, log and progress of `BackupReader`.
    """
    if len({shard.shard_id for shard in record.shards}) != len(record.shards):
        raise IntegrityError(f"{place.key(BACKUP)} names a shard twice")
    shards = [shard.object_name for shard in record.shards]
    return BackupReader(repository, place, record, DOCUMENTS, as_stored=shards, **limits)


def stage_snapshot(
    reader: BackupReader, place: BackupPlace, record: SnapshotRecord, scratch_dir: Path
) -> StagedSnapshot:
    """Read and verify every object of a backup into memory and `scratch_dir`; raises what the reader raises."""
    fingerprint = VectorFingerprint.from_json(reader.read_document(FINGERPRINT, record.fingerprint_digest))
    collection = CollectionDocument.from_json(reader.read_document(COLLECTION, record.collection_digest))
    canaries = canaries_from_json(reader.read_document(CANARIES, record.canaries_digest))
    shards = []
    for shard in record.shards:
        path = scratch_dir / f"shard-{shard.shard_id}.snapshot"
        _stage_shard(reader, place, shard, path)
        shards.append(ShardFile(shard.shard_id, path))
    return StagedSnapshot(tuple(shards), fingerprint, collection, canaries)


def _stage_shard(reader: BackupReader, place: BackupPlace, shard: ShardRecord, path: Path) -> None:
    with path.open("wb") as file:
        sink = _Unpacking(file, shard)
        reader.read(shard.object_name, cast("IO[bytes]", sink))
        found = sink.finish()
    if found != (shard.snapshot_bytes, shard.snapshot_sha256):
        raise ChecksumMismatch(
            f"{place.key(shard.object_name)} unpacks to another archive than {BACKUP} names:"
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
        """Take stored bytes. Raises IntegrityError when they are not an archive of the recorded size."""
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
