"""The frame of taking a backup of any kind: `started.json`, the heartbeat, the objects, and `backup.json` last.

Killed anywhere, it leaves either no backup or a whole one, and left-overs under a heartbeat whose age names them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from synapse_ops import __version__
from synapse_ops.domain.backup.document import ObjectRecord
from synapse_ops.domain.backup.layout import HEARTBEAT, BackupPlace, Identity, new_backup_id
from synapse_ops.domain.backup.record import BackupRecord, Fact, StartedRecord
from synapse_ops.operations.backup.dead_uploads import abort_uploads_of_the_dead
from synapse_ops.operations.backup.heartbeat import Heartbeat, keep_heartbeat
from synapse_ops.operations.backup.writer import BackupWriter
from synapse_ops.systems.encryption import check_recipients
from synapse_ops.systems.log_output import current_correlation_id

if TYPE_CHECKING:
    from synapse_ops.operations.repository import Repository
    from synapse_ops.operations.stack import Stack

NOT_ENCRYPTED = "not encrypted: encryption.recipients is empty"


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that exists. warnings: what the operator ought to know of it."""

    record: BackupRecord
    place: BackupPlace
    url: str
    warnings: tuple[str, ...]

    def tables(self) -> dict[str, list[dict[str, Fact]]]:
        """Return tables for the asset page, by name: rows of equal columns."""
        return self.record.tables()

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON form: where it lies, and the record's facts."""
        facts = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in self.record.facts().items()
        }
        return {
            "backup_id": self.record.backup_id,
            "kind": self.place.kind,
            "subject": self.place.subject,
            "url": self.url,
            **facts,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Taking:
    """One backup being taken. begun_s: monotonic clock at its start."""

    stack: Stack
    writer: BackupWriter
    heartbeat: Heartbeat
    started: StartedRecord
    set_id: str | None
    begun_s: float

    @property
    def place(self) -> BackupPlace:
        return self.writer.place

    @property
    def url(self) -> str:
        return self.writer.store.full_url(self.place.prefix)

    def shared_fields(
        self, objects: Sequence[ObjectRecord], *, phase_s: Mapping[str, float], tool_versions: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return the fields of `backup.json` that every kind has, but for `source` and what only the kind knows."""
        return {
            "kind": self.place.kind,
            "backup_id": self.place.backup_id,
            "set_id": self.set_id,
            "started_at": self.started.started_at,
            "finished_at": datetime.now(UTC),
            "duration_s": round(time.monotonic() - self.begun_s, 3),
            "phase_s": dict(phase_s),
            "encryption_recipients": self.writer.recipients,
            "tool_versions": {**tool_versions, "synapse-ops": __version__},
            "spec_digest": self.stack.loaded.digest,
            "correlation_id": self.started.correlation_id,
            "objects": tuple(objects),
            "stored_bytes": sum(one.size_bytes for one in objects),
        }

    def seal(self, record: BackupRecord) -> None:
        """Write `backup.json`: from here the backup exists. Raises DeadlineExceeded when the heartbeat was lost."""
        self.heartbeat.raise_if_lost()
        self.writer.seal(record)


@contextmanager
def taking_backup(
    stack: Stack,
    repository: Repository,
    kind: str,
    identity: Identity,
    subject: str,
    *,
    set_id: str | None,
) -> Iterator[Taking]:
    """Begin a new backup, keep its heartbeat while the block writes it, and leave `seal` to the block.

    Uploads of writers that died on this host are aborted first. Raises ConfigError for a recipient that is not an age
    public key, and what the store raises; after any of them the backup is not listed.
    """
    begun_s = time.monotonic()
    recipients = stack.spec.encryption.recipients
    check_recipients(recipients)
    now = datetime.now(UTC)
    place = BackupPlace(identity, kind, subject, new_backup_id(now, os.urandom(3)))
    started = StartedRecord(
        kind=kind,
        backup_id=place.backup_id,
        identity=str(identity),
        subject=subject,
        started_at=now,
        host=socket.gethostname(),
        pid=os.getpid(),
        correlation_id=current_correlation_id(),
    )
    abort_uploads_of_the_dead(repository.store, place)
    writer = BackupWriter(repository.store, place, recipients)
    writer.begin(started)
    body = {"backup_id": place.backup_id, "host": started.host, "pid": started.pid}
    with keep_heartbeat(repository.store, place.key(HEARTBEAT), body=body) as heartbeat:
        yield Taking(stack, writer, heartbeat, started, set_id, begun_s)


def identity_fields(place: BackupPlace) -> dict[str, str]:
    """Return the fields that every `source` begins with."""
    return {"system_identifier": place.identity.system_identifier, "generation": place.identity.generation}
