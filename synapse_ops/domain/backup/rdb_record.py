"""`backup.json` of an RDB snapshot of Redis."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from synapse_ops.domain.backup.document import Part
from synapse_ops.domain.backup.record import BackupRecord, Fact, Source


class RedisSource(Source):
    """The server that sent the snapshot.

    address: host:port as connected, or the path of its socket. replication_id, replication_offset: where in the
    server's stream of writes the snapshot was cut. rdb_version: of the file's format.
    memory_bytes: what its data took, so about what a server needs that loads the snapshot.
    """

    address: str
    server_version: str
    role: str
    replication_id: str
    replication_offset: int
    rdb_version: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)


class RdbWindow(Part):
    """Between which moments the snapshot was cut, by our clock, and what was seen to change meanwhile.

    opened_at: the first reading began; cut_at: the server said that it had forked; closed_at: the second reading ended.
    is_idle: the server's stream of writes stood still from the cut to `closed_at`, so that the copy must hold exactly
    what the second reading found. keys_before, keys_after: by logical database, keys that have expired and not gone yet
    included. scope: all keys were read, or a sample. read_keys: of both readings; moved_keys: those that changed.
    """

    opened_at: AwareDatetime
    cut_at: AwareDatetime
    closed_at: AwareDatetime
    is_idle: bool
    scope: Literal["all", "sample"]
    keys_before: dict[int, int]
    keys_after: dict[int, int]
    read_keys: int = Field(ge=0)
    moved_keys: int = Field(ge=0)


class RdbRecord(BackupRecord):
    """One file with every logical database of a Redis server. dumped_bytes: of the RDB file."""

    kind: Literal["rdb"]
    source: RedisSource
    window: RdbWindow

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
    def data_time(self) -> datetime:
        return self.window.cut_at

    def own_facts(self) -> dict[str, Fact]:
        source, window = self.source, self.window
        return {
            "keys": self.item_count,
            "databases": len(window.keys_after),
            "memory_bytes": source.memory_bytes,
            "window_s": round((window.closed_at - window.opened_at).total_seconds(), 3),
            "window_keys": window.moved_keys,
            "compared_keys": f"{window.read_keys} ({window.scope})",
            "is_idle": str(window.is_idle).lower(),
            "cut_at": window.cut_at,
            "replication_offset": source.replication_offset,
            "rdb_version": source.rdb_version,
            "server_version": source.server_version,
            "role": source.role,
        }
