"""`backup.json` of a base backup: the whole PostgreSQL cluster, physically."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from synapse_ops.domain.backup.document import LsnText, Part, Sha256
from synapse_ops.domain.backup.record import BackupRecord, Fact, Source


class ClusterSource(Source):
    """The server and its cluster. node: host:port as connected. cluster_size_bytes: as the server estimated it.

    bootstrap_role: the superuser that initdb made. catalog_version, block_size, wal_segment_bytes: another build of
    PostgreSQL that has others cannot start the copy. databases: those that take connections.
    """

    server_version: str
    server_version_num: int
    node: str
    is_standby: bool
    cluster_size_bytes: int = Field(ge=0)
    bootstrap_role: str
    catalog_version: int
    block_size: int
    wal_segment_bytes: int
    databases: tuple[str, ...]


class TablespaceRecord(Part):
    """A tablespace. oid: of its archive, `<oid>.tar`. location: its path on the source's host."""

    oid: int
    location: str


class ExactPosition(Part):
    """A position at which the content of a standby is known, in `fingerprint.json`, whose plain bytes have this digest.

    lsn: the end of the last record that is in it, behind `stop_lsn`. last_commit_at: of the last transaction before it.
    """

    lsn: LsnText
    node: str
    last_commit_at: AwareDatetime
    table_count: int = Field(ge=0)
    row_count: int = Field(ge=0)
    digest: Sha256


class Incremental(Part):
    """What an incremental base backup rests on.

    chain: ids, that of the full one first. files_bytes: of its own files.
    """

    chain: tuple[str, ...] = Field(min_length=1)
    files_bytes: int = Field(ge=0)


class BaseRecord(BackupRecord):
    """start_lsn, timeline: where replay of the copy begins; stop_lsn: where the copy is consistent at the earliest.

    started_time, stopped_time: the server's clock before and after. compression: of the archives, `zstd:1` or `none`.
    fingerprint_digest: sha256 of `backup_manifest`, which names every file of the copy with its own sha256.
    exact: what a copy recovered to one position must equal; None: no standby was read, and no rows can be compared.
    incremental: None of a full one.
    """

    SEALED: ClassVar[bool] = True
    kind: Literal["base"]
    source: ClusterSource
    start_lsn: LsnText
    stop_lsn: LsnText
    timeline: int = Field(ge=1)
    started_time: AwareDatetime
    stopped_time: AwareDatetime
    compression: Literal["zstd:1", "none"]
    tablespaces: tuple[TablespaceRecord, ...] = ()
    exact: ExactPosition | None = None
    incremental: Incremental | None = None

    def body(self) -> dict[str, Any]:
        fields = super().body()
        if self.exact is None:
            del fields["exact"]  # it came later: documents without it stay as they are
        if self.incremental is None:
            del fields["incremental"]
        return fields

    @property
    def subject(self) -> str:
        return "cluster"

    @property
    def source_size_bytes(self) -> int:
        return self.source.cluster_size_bytes

    @property
    def item_count(self) -> int:
        return len(self.source.databases)

    @property
    def data_time(self) -> datetime:
        return self.stopped_time

    @property
    def rests_on(self) -> tuple[str, ...]:
        return self.incremental.chain if self.incremental is not None else ()

    @property
    def archives(self) -> tuple[str, ...]:
        """The names of the archives as the server gave them, that of the data directory first."""
        suffix = ".tar.zst" if self.compression == "zstd:1" else ".tar"
        return (f"base{suffix}", *(f"{space.oid}{suffix}" for space in self.tablespaces))

    def own_facts(self) -> dict[str, Fact]:
        return {
            "databases": ", ".join(self.source.databases),
            "cluster_size_bytes": self.source.cluster_size_bytes,
            "cluster_bytes_per_s": round(self.source.cluster_size_bytes / max(self.duration_s, 0.001)),
            "restorable_from": self.stopped_time,
            "start_lsn": self.start_lsn,
            "stop_lsn": self.stop_lsn,
            "timeline": self.timeline,
            **({"incremental_of": self.rests_on[-1]} if self.incremental is not None else {}),
            "tablespaces": len(self.tablespaces),
            **({"compared_at_lsn": self.exact.lsn, "rows": self.exact.row_count} if self.exact is not None else {}),
            "server_version": self.source.server_version,
            "node": self.source.node,
        }
