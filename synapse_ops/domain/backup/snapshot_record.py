"""`backup.json` of the snapshots of one collection of Qdrant."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from synapse_ops.domain.backup.document import LsnText, Part, Sha256
from synapse_ops.domain.backup.record import BackupRecord, Fact, Source


class CollectionSource(Source):
    """The collection that was snapshotted, and the server it was on.

    nodes: url by peer id of every node that was asked. vector_bytes: of the shards' snapshots as the server made them.
    """

    collection: str
    server_version: str
    nodes: dict[str, str]
    vector_bytes: int = Field(ge=0)


class ShardRecord(Part):
    """One shard's snapshot, from one active replica.

    snapshot_sha256, snapshot_bytes: of the server's own archive, before compression; what a recovery sends as checksum.
    server_checksum: what the server itself said, None for one that was streamed. points_before, points_after: as the
    replica counts, which is approximate while it is written to; the proof counts exactly.
    compression_ratio: stored by archive size, 1 when not compressed; sample_ratio: of the pieces it was decided by.
    """

    shard_id: int = Field(ge=0)
    peer_id: str
    object_name: str
    method: Literal["stored", "streamed"]
    snapshot_bytes: int = Field(ge=0)
    snapshot_sha256: Sha256
    server_checksum: Sha256 | None
    compression: Literal["zstd:1", "none"]
    compression_ratio: float = Field(ge=0)
    sample_ratio: float | None = Field(default=None, ge=0)
    points_before: int | None = Field(default=None, ge=0)
    points_after: int | None = Field(default=None, ge=0)
    created_at: AwareDatetime
    creation_s: float = Field(ge=0)


class SnapshotWindow(Part):
    """Between which moments the snapshots were cut, by the database's clock and WAL.

    Where the database did not answer at an end, that LSN is None, both times are of our own clock, and
    `database_fault` says why.
    A snapshot holds every write that was acknowledged before `opened_at`, and some of those until `closed_at`.
    points_before, points_after: exact counts of the collection. moved_points: seen to change in between, of the points
    that were read (`scope`: all, or a sample). changed: whether anything was.
    """

    opened_at: AwareDatetime
    closed_at: AwareDatetime
    start_lsn: LsnText | None
    stop_lsn: LsnText | None
    timeline: int | None = Field(default=None, ge=1)
    database_fault: str | None = None
    scope: Literal["all", "sample"]
    read_points: int = Field(ge=0)
    moved_points: int = Field(ge=0)
    points_before: int = Field(ge=0)
    points_after: int = Field(ge=0)
    changed: bool


class SnapshotRecord(BackupRecord):
    """Every shard from one active replica.

    points_digest: sha256 over all points; only where all were read and nothing changed, else the proof computes it.
    collection_digest, canaries_digest: sha256 of the canonical plain bytes of those objects.
    dumped_bytes: the server's archives.
    """

    kind: Literal["snapshot"]
    source: CollectionSource
    window: SnapshotWindow
    shards: tuple[ShardRecord, ...]
    points_digest: Sha256 | None
    aliases: tuple[str, ...]
    canary_count: int = Field(ge=0)
    collection_digest: Sha256
    canaries_digest: Sha256

    @property
    def subject(self) -> str:
        return self.source.collection

    @property
    def source_size_bytes(self) -> int:
        return self.source.vector_bytes

    @property
    def item_count(self) -> int:
        return self.window.points_after

    @property
    def data_time(self) -> datetime:
        return self.window.opened_at

    def own_facts(self) -> dict[str, Fact]:
        window = self.window
        no_lsn = f"none: {window.database_fault}"
        facts: dict[str, Fact] = {
            "points": window.points_after,
            "window_s": round((window.closed_at - window.opened_at).total_seconds(), 3),
            "window_points": window.moved_points,
            "compared_points": f"{window.read_points} of {window.points_before} ({window.scope})",
            "window_opened_at": window.opened_at,
            "window_closed_at": window.closed_at,
            "start_lsn": window.start_lsn or no_lsn,
            "stop_lsn": window.stop_lsn or no_lsn,
            "server_version": self.source.server_version,
            "nodes": ", ".join(self.source.nodes.values()),
            "aliases": ", ".join(self.aliases) or "none",
        }
        return facts if self.points_digest is None else {**facts, "points_digest": self.points_digest}

    def tables(self) -> dict[str, list[dict[str, Fact]]]:
        return {
            "shards": [
                {
                    "shard": shard.shard_id,
                    "peer": shard.peer_id,
                    "method": shard.method,
                    "snapshot_bytes": shard.snapshot_bytes,
                    "compression": shard.compression,
                    "compression_ratio": shard.compression_ratio,
                    "creation_s": shard.creation_s,
                }
                for shard in self.shards
            ]
        }
