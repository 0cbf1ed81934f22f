"""`backup.json` of a logical dump of one database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from synapse_ops.domain.backup.document import LsnText, Sha256
from synapse_ops.domain.backup.record import BackupRecord, Fact, Source

NAMES_LIMIT = 100  # of what is not in a backup: more is one kind of thing, many times


def limited(names: Sequence[str]) -> tuple[str, ...]:
    """Return names, the last one saying how many more there are where they are very many."""
    more = len(names) - NAMES_LIMIT
    return tuple(names) if more <= 0 else (*names[:NAMES_LIMIT], f"and {more} more")


class DumpSource(Source):
    """The server and database. node: host:port as connected, never a password. server_version_num: as 170010.

    bootstrap_role: the superuser that initdb made; None in backups from before it was recorded.
    """

    database: str
    server_version: str
    server_version_num: int
    node: str
    is_standby: bool
    database_size_bytes: int = Field(ge=0)
    encoding: str
    collation: str
    collation_version: str | None
    bootstrap_role: str | None = None


class DumpRecord(BackupRecord):
    """start_lsn, stop_lsn, timeline: the server's WAL position when the exported snapshot was taken and at the end.

    database_time: the server's clock at the snapshot. fingerprint_s: of the fingerprint, which runs beside the dump.
    compression: as "zstd:1". role_passwords: whether globals.sql holds SCRAM verifiers.
    structure_digest: sha256 of the canonical plain bytes of structure.json. dumped_bytes: what pg_dump wrote.
    not_in_backup: what a dump does not carry, by name. Version 1 has neither that nor `source.bootstrap_role`, no
    `supplement.sql`, and documents of the content and the structure that looked at less.
    """

    VERSIONS: ClassVar[tuple[int, ...]] = (1, 2)
    format_version: int = Field(default=2, strict=True)
    kind: Literal["dump"]
    source: DumpSource
    start_lsn: LsnText
    stop_lsn: LsnText
    timeline: int = Field(ge=1)
    database_time: AwareDatetime
    fingerprint_s: float = Field(ge=0)
    compression: str
    role_passwords: bool = False
    table_count: int = Field(ge=0)
    row_count: int = Field(ge=0)
    structure_digest: Sha256
    not_in_backup: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        fields = super().body()
        if self.format_version == 1:
            del fields["not_in_backup"], fields["source"]["bootstrap_role"]
        return fields

    @property
    def subject(self) -> str:
        return self.source.database

    @property
    def source_size_bytes(self) -> int:
        return self.source.database_size_bytes

    @property
    def item_count(self) -> int:
        return self.row_count

    @property
    def data_time(self) -> datetime:
        return self.database_time

    def own_facts(self) -> dict[str, Fact]:
        size_bytes = self.source.database_size_bytes
        return {
            "rows": self.row_count,
            **({"not_in_backup": "; ".join(self.not_in_backup)} if self.not_in_backup else {}),
            "tables": self.table_count,
            "database_size_bytes": size_bytes,
            "database_bytes_per_s": round(size_bytes / max(self.duration_s, 0.001)),
            "fingerprint_s": self.fingerprint_s,
            "database_time": self.database_time,
            "start_lsn": self.start_lsn,
            "stop_lsn": self.stop_lsn,
            "timeline": self.timeline,
            "server_version": self.source.server_version,
            "node": self.source.node,
        }
