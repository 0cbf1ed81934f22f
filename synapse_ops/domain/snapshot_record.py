"""`started.json` and `backup.json` of a collection's snapshots.

The rules of form are those of `backup_record.py`. Source of the rules: docs/repository-format.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from synapse_ops.domain.backup_record import Document, LsnText, ObjectRecord, Sha256
from synapse_ops.domain.repository_layout import Identity


class SnapshotStartedRecord(Document):
    """Written before any data: who started what, so that a left-over has a name."""

    kind: Literal["snapshot"]
    backup_id: str
    identity: str
    collection: str
    started_at: AwareDatetime
    host: str
    pid: int
    correlation_id: str


class CollectionSource(BaseModel):
    """The collection that was snapshotted, and the server it was on.

    nodes: url by peer id of every node that was asked. vector_bytes: of the shards' snapshots as the server made them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system_identifier: str
    generation: str
    collection: str
    server_version: str
    nodes: dict[str, str]
    vector_bytes: int = Field(ge=0)


class ShardRecord(BaseModel):
    """One shard's snapshot, from one active replica.

    snapshot_sha256, snapshot_bytes: of the server's own archive, before compression; what a recovery sends as checksum.
    server_checksum: what the server itself said, None for one that was streamed. points_before, points_after: as the
    replica counts, which is approximate while it is written to; the proof counts exactly.
    compression_ratio: stored by archive size, 1 when not compressed; sample_ratio: of the pieces it was decided by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class SnapshotWindow(BaseModel):
    """Between which moments the snapshots were cut, by the database's clock and WAL.

    Where the database did not answer at an end, that LSN is None, both times are of our own clock, and
    `database_fault` says why.
    A snapshot holds every write that was acknowledged before `opened_at`, and some of those until `closed_at`.
    points_before, points_after: exact counts of the collection. moved_points: seen to change in between, of the points
    that were read (`scope`: all, or a sample). changed: whether anything was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class SnapshotRecord(Document):
    """`backup.json` of a collection: every shard from one active replica, and what a restored copy must equal.

    points_digest: sha256 over all points; only where all were read and nothing changed, else the proof computes it.
    fingerprint_digest, collection_digest, canaries_digest: sha256 of the canonical plain bytes of those objects.
    dumped_bytes: the server's archives. stored_bytes: sum of the objects. Times are ours where nothing else is said.
    """

    kind: Literal["snapshot"]
    backup_id: str
    set_id: str | None = None
    source: CollectionSource
    window: SnapshotWindow
    shards: tuple[ShardRecord, ...]
    points_digest: Sha256 | None
    aliases: tuple[str, ...]
    started_at: AwareDatetime
    finished_at: AwareDatetime
    duration_s: float = Field(ge=0)
    phase_s: dict[str, float] = Field(default_factory=dict)
    encryption_recipients: tuple[str, ...] = ()
    tool_versions: dict[str, str]
    spec_digest: str | None = None
    correlation_id: str
    objects: tuple[ObjectRecord, ...]
    dumped_bytes: int = Field(ge=0)
    stored_bytes: int = Field(ge=0)
    canary_count: int = Field(ge=0)
    fingerprint_digest: Sha256
    collection_digest: Sha256
    canaries_digest: Sha256

    @property
    def identity(self) -> Identity:
        return Identity(self.source.system_identifier, self.source.generation)

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
    def database_time(self) -> AwareDatetime:
        return self.window.opened_at
