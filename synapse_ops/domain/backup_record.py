"""The documents of a backup: `started.json`, `backup.json`, `proof-<time>.json`, and their one canonical form.

They are read by people and by other tools years later, so the form is strict on writing (sorted keys, UTF-8, one final
newline, nothing secret) and strict on reading: an unknown format version is refused, never guessed at.
Source of the rules: docs/repository-format.md.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from synapse_ops.domain.repository_layout import Identity
from synapse_ops.errors import DocumentUnreadable

FORMAT_VERSION: Literal[1] = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LsnText = Annotated[str, Field(pattern=r"^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]


class Document(BaseModel):
    """One JSON document of the repository. Frozen; unknown fields are kept out, so that a typo is not a feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION

    def to_json(self) -> bytes:
        """Return the canonical bytes: sorted keys, two spaces, UTF-8, one final newline."""
        data = self.model_dump(mode="json")
        return (json.dumps(data, sort_keys=True, ensure_ascii=False, indent=2) + "\n").encode()

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, *, key: str) -> Self:
        """Return the document stored under `key`; raises DocumentUnreadable with the first fault's field."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as invalid:
            fault = invalid.errors(include_input=False, include_url=False)[0]
            field = ".".join(str(part) for part in fault["loc"]) or "the whole document"
            raise DocumentUnreadable(
                f"cannot read {key}: {field}: {fault['msg'].lower()}",
                detail=f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}",
                hint="Was it cut short, edited by hand, or written by a newer version?",
            ) from invalid


class ObjectRecord(BaseModel):
    """One object of a backup as it was written and read back.

    name: the object's name under the backup's prefix. size_bytes, sha256, etag: of the stored bytes (after encryption).
    plain_size_bytes: before encryption; None where it was not counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    etag: str
    plain_size_bytes: int | None = Field(default=None, ge=0)


class SourceRecord(BaseModel):
    """The server and database that a backup was taken from, as the server itself says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system_identifier: str
    generation: str
    database: str
    server_version: str  # "17.10"
    server_version_num: int  # 170010
    node: str  # host:port as connected, never a password
    is_standby: bool
    database_size_bytes: int = Field(ge=0)
    encoding: str
    collation: str
    collation_version: str | None


class StartedRecord(Document):
    """Written before any data: who started what, so that a left-over has a name."""

    kind: Literal["dump"]
    backup_id: str
    identity: str
    database: str
    started_at: AwareDatetime
    host: str
    pid: int
    correlation_id: str


class BackupRecord(Document):
    """`backup.json` of a logical dump.

    start_lsn, stop_lsn, timeline: the server's WAL position when the exported snapshot was taken and at the end.
    database_time: the server's clock at the snapshot; started_at, finished_at: our clock.
    duration_s: of the dump; fingerprint_s: of the fingerprint, which runs beside it. phase_s: further named durations.
    fingerprint_digest, structure_digest: sha256 of the canonical plain bytes of fingerprint.json and structure.json.
    dumped_bytes: what pg_dump wrote. stored_bytes: sum of the objects.
    """

    kind: Literal["dump"]
    backup_id: str
    set_id: str | None = None
    source: SourceRecord
    start_lsn: LsnText
    stop_lsn: LsnText
    timeline: int = Field(ge=1)
    database_time: AwareDatetime
    started_at: AwareDatetime
    finished_at: AwareDatetime
    duration_s: float = Field(ge=0)
    fingerprint_s: float = Field(ge=0)
    phase_s: dict[str, float] = Field(default_factory=dict)
    compression: str  # "zstd:1"
    encryption_recipients: tuple[str, ...] = ()  # age public keys; empty = not encrypted
    role_passwords: bool = False  # whether globals.sql holds SCRAM verifiers
    tool_versions: dict[str, str]
    spec_digest: str | None = None
    correlation_id: str
    objects: tuple[ObjectRecord, ...]
    dumped_bytes: int = Field(ge=0)
    stored_bytes: int = Field(ge=0)
    table_count: int = Field(ge=0)
    row_count: int = Field(ge=0)
    fingerprint_digest: Sha256
    structure_digest: Sha256

    @property
    def identity(self) -> Identity:
        return Identity(self.source.system_identifier, self.source.generation)

    @property
    def subject(self) -> str:
        return self.source.database

    @property
    def source_size_bytes(self) -> int:
        return self.source.database_size_bytes

    @property
    def item_count(self) -> int:
        return self.row_count


class Verdict(StrEnum):
    """What a proof found. Only `PROVEN` counts; everything else satisfies nothing."""

    PROVEN = "proven"
    DIFFERS = "differs"  # restored, compared, and not equal
    UNPROVEN = "unproven"  # could not be completed: damage, time-out, an error line of pg_restore
    NOT_ATTEMPTED = "not-attempted"  # says nothing of the backup: the host lacked a key, programs or room


class SnapshotFindings(BaseModel):
    """What a proof of a collection found in the copy; the counts are exact.

    points_digest: sha256 over all points. still_points: held to what the live collection said, and equal where proven.
    window_points: known points that moved while the snapshot was taken, held to nothing. passing_points: in the copy,
    and in no reading of the live collection. recall_at_10: of the canary queries that were steady; None without any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine_version: str
    segment_versions: tuple[str, ...]
    shard_points: dict[int, int]
    points_digest: Sha256
    scope: Literal["all", "sample"]
    still_points: int = Field(ge=0)
    window_points: int = Field(ge=0)
    passing_points: int = Field(ge=0)
    recall_at_10: float | None = Field(default=None, ge=0, le=1)


class RdbFindings(BaseModel):
    """What a proof of an RDB snapshot found in the throwaway server that loaded it.

    keys: by logical database. expired_keys: had a time to live that ended before they were looked at. dataset_digest:
    Redis's own digest (DEBUG DIGEST) over all that was loaded. still_keys: held to what the live server said, and equal
    where proven. by_value: of those, the ones whose values were compared; of the others their types were.
    window_keys: known keys that moved while the snapshot was taken, held to nothing. passing_keys: in the copy, and in
    no reading of the live server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: dict[int, int]
    expired_keys: int = Field(ge=0)
    dataset_digest: str
    scope: Literal["all", "sample"]
    still_keys: int = Field(ge=0)
    by_value: int = Field(ge=0)
    window_keys: int = Field(ge=0)
    passing_keys: int = Field(ge=0)


class ProofRecord(Document):
    """`proof-<time>.json`: a restore that was carried out and compared. `attempt-<time>.json`: one that never began.

    backup_sha256: sha256 of the stored bytes of backup.json at that time; objects: as read, with size, ETag and sha256.
    A proof is void when backup.json or the listing of any object differs from what it names.
    differences: first lines of what differed, "table public.documents: 11 rows, expected 12"; empty when proven.
    restore_s: from the first byte read to a server that answers, comparison excluded. predicted_restore_s: what was
    predicted before it ran, None for the first of its size. snapshot: of a collection only. rdb: of an RDB
    snapshot only.
    """

    backup_id: str
    verdict: Verdict
    backup_sha256: Sha256
    objects: tuple[ObjectRecord, ...]
    started_at: AwareDatetime
    finished_at: AwareDatetime
    restore_s: float | None = Field(default=None, ge=0)
    predicted_restore_s: float | None = Field(default=None, ge=0)
    phase_s: dict[str, float] = Field(default_factory=dict)
    server_version: str | None = None
    amcheck_relations: int = Field(default=0, ge=0)
    snapshot: SnapshotFindings | None = None
    rdb: RdbFindings | None = None
    reason: str = ""
    differences: tuple[str, ...] = ()
    correlation_id: str = ""
