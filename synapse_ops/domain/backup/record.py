"""What `started.json` and `backup.json` say of every kind of backup. Each kind adds its own in `<kind>_record.py`."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, Field

from synapse_ops.domain.backup.document import Document, ObjectRecord, Part, Sha256
from synapse_ops.domain.backup.layout import Identity

Fact = str | int | float | datetime
SUBJECT_FIELDS = {"dump": "database", "snapshot": "collection", "rdb": "address"}  # of `started.json`, by kind


class StartedRecord(Document):
    """Written before any data: what was started by which process, so that a left-over has a name.

    subject: stored under the name that the kind gives it, `SUBJECT_FIELDS`, or as `subject`.
    """

    kind: str
    backup_id: str
    identity: str
    subject: str
    started_at: AwareDatetime
    host: str
    pid: int
    correlation_id: str

    def body(self) -> dict[str, Any]:
        fields = super().body()
        fields[SUBJECT_FIELDS.get(self.kind, "subject")] = fields.pop("subject")
        return fields


class Source(Part):
    """What a backup was taken from, as the server itself says."""

    system_identifier: str
    generation: str


class BackupRecord(Document):
    """`backup.json`: the fields of every kind.

    set_id: the tick whose subjects belong together. started_at, finished_at: our clock. duration_s: of the whole;
    phase_s: named parts of it. encryption_recipients: age public keys; empty = not encrypted.
    dumped_bytes: what the server wrote. stored_bytes: sum of the objects.
    fingerprint_digest: sha256 of the canonical plain bytes of fingerprint.json: what a restored copy must equal.
    """

    kind: str
    backup_id: str
    set_id: str | None = None
    source: Source
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
    not_in_backup: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def identity(self) -> Identity:
        return Identity(self.source.system_identifier, self.source.generation)

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is backed up, by its own name."""

    @property
    @abstractmethod
    def source_size_bytes(self) -> int:
        """How large the source was: what restore times are predicted by."""

    @property
    @abstractmethod
    def item_count(self) -> int:
        """How many rows, points or keys it holds."""

    @property
    @abstractmethod
    def data_time(self) -> datetime:
        """The moment whose state it holds, as exactly as it is known (aware UTC)."""

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The ids of other backups of the same subject that a restore needs as well."""
        return ()

    @abstractmethod
    def own_facts(self) -> dict[str, Fact]:
        """Return what only this kind has to say, as `facts` does."""

    def facts(self) -> dict[str, Fact]:
        """Return what the command line and the asset page show of it, the kind's own facts first.

        Names carry their unit and keep their meaning: the page plots them over years.
        """
        facts: dict[str, Fact] = {
            **self.own_facts(),
            "dumped_bytes": self.dumped_bytes,
            "stored_bytes": self.stored_bytes,
            "stored_ratio": round(self.stored_bytes / max(self.source_size_bytes, 1), 4),
            "duration_s": self.duration_s,
            **{f"{name}_phase_s": value for name, value in self.phase_s.items()},
            "finished_at": self.finished_at,
            "encryption": ", ".join(self.encryption_recipients) or "none: anyone who can read the bucket can read it",
            "correlation_id": self.correlation_id,
        }
        return facts if self.set_id is None else {**facts, "set_id": self.set_id}

    def tables(self) -> dict[str, list[dict[str, Fact]]]:
        """Return tables for the asset page, by name: rows of equal columns."""
        return {}
