"""`started.json` and `backup.json` of an RDB snapshot of Redis.

The rules of form are those of `backup_record.py`. Source of the rules: docs/repository-format.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from synapse_ops.domain.backup_record import Document, ObjectRecord, Sha256
from synapse_ops.domain.repository_layout import Identity


class RdbStartedRecord(Document):
    """Written before any data: who started what, so that a left-over has a name."""

    kind: Literal["rdb"]
    backup_id: str
    identity: str
    address: str
    started_at: AwareDatetime
    host: str
    pid: int
    correlation_id: str


class RedisSource(BaseModel):
    """The server that sent the snapshot.

    address: host:port as connected, or the path of its socket. replication_id, replication_offset: where in the
    server's stream of writes the snapshot was cut. rdb_version: of the file's format.
    memory_bytes: what its data took, so about what a server needs that loads the snapshot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system_identifier: str
    generation: str
    address: str
    server_version: str
    role: str
    replication_id: str
    replication_offset: int
    rdb_version: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)


class RdbWindow(BaseModel):
    """Between which moments the snapshot was cut, by our clock, and what was seen to change meanwhile.

    opened_at: the first reading began; cut_at: the server said that it had forked; closed_at: the second reading ended.
    is_idle: the server's stream of writes stood still from the cut to `closed_at`, so that the copy must hold exactly
    what the second reading found. keys_before, keys_after: by logical database, keys that have expired and not gone yet
    included. scope: all keys were read, or a sample. read_keys: of both readings; moved_keys: those that changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    opened_at: AwareDatetime
    cut_at: AwareDatetime
    closed_at: AwareDatetime
    is_idle: bool
    scope: Literal["all", "sample"]
    keys_before: dict[int, int]
    keys_after: dict[int, int]
    read_keys: int = Field(ge=0)
    moved_keys: int = Field(ge=0)


class RdbRecord(Document):
    """`backup.json` of an RDB snapshot: one file with every logical database, and what a loaded copy must equal.

    fingerprint_digest: sha256 of the canonical plain bytes of fingerprint.json. dumped_bytes: of the RDB file.
    stored_bytes: sum of the objects. Times are ours.
    """

    kind: Literal["rdb"]
    backup_id: str
    set_id: str | None = None
    source: RedisSource
    window: RdbWindow
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
    fingerprint_digest: Sha256

    @property
    def identity(self) -> Identity:
        return Identity(self.source.system_identifier, self.source.generation)

    @property
    def subject(self) -> str:
        return self.source.address

    @property
    def source_size_bytes(self) -> int:
        return self.source.memory_bytes

    @property
    def item_count(self) -> int:
        return sum(self.window.keys_after.values())

    @property
    def database_time(self) -> AwareDatetime:
        return self.window.cut_at
