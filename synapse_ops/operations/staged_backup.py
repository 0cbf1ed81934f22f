"""The objects of one backup, read once and checked as they are read: object -> sha256 -> [age] -> scratch file.

Nothing of a backup is executed before every byte of it has been compared with `backup.json`: a flipped byte in a dump
is a named object with two digests, not a puzzling error in the middle of a restore.
The dump is staged to a file although pg_restore could read a pipe, because a file can be restored in parallel and this
was measured: 929 MiB with foreign keys and a GIN index, 2 cores: 12.1-13.9 s from a pipe, 11.2 s from a pipe with the
indexes in parallel, 9.2-9.5 s staged with two jobs. It costs the compressed size in scratch space, which is checked
beforehand.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from synapse_ops.domain.any_record import AnyBackup
from synapse_ops.domain.backup_record import BackupRecord, ObjectRecord
from synapse_ops.domain.fingerprint import Fingerprint
from synapse_ops.domain.globals_script import GlobalsScript, parse_globals
from synapse_ops.domain.progress import Progress, ReportProgress
from synapse_ops.domain.rdb_record import RdbRecord
from synapse_ops.domain.repository_layout import BACKUP, BackupPlace, reading_name
from synapse_ops.domain.snapshot_record import SnapshotRecord
from synapse_ops.domain.structure import Structure
from synapse_ops.errors import (
    ChecksumMismatch,
    DocumentUnreadable,
    IntegrityError,
    SynapseOpsError,
    Unreachable,
    WrongIdentity,
)
from synapse_ops.operations.deadline import Deadline
from synapse_ops.operations.heartbeat import keep_heartbeat
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.encryption import SUFFIX, decrypt_stream
from synapse_ops.systems.log_output import current_correlation_id
from synapse_ops.systems.object_streams import ObjectReader

DUMP = "database.dump"
GLOBALS = "globals.sql"
FINGERPRINT = "fingerprint.json"
STRUCTURE = "structure.json"

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class StagedBackup:
    """A backup whose every byte has been verified. archive: pg_dump's custom format, decrypted, in scratch space."""

    archive: Path
    globals_script: GlobalsScript
    fingerprint: Fingerprint
    structure: Structure


@dataclass
class ReadLog:
    """What was read so far, kept also when a later object turns out to be damaged; for the proof."""

    backup_sha256: str = hashlib.sha256(b"").hexdigest()
    objects: list[ObjectRecord] = field(default_factory=list)


AnyRecord = TypeVar("AnyRecord", BackupRecord, SnapshotRecord, RdbRecord)


def read_backup_document(repository: Repository, place: BackupPlace, log: ReadLog, model: type[AnyRecord]) -> AnyRecord:
    """Return `backup.json` of a place. Raises ObjectMissing, DocumentUnreadable, or WrongIdentity."""
    key = place.key(BACKUP)
    data = repository.store.read_bytes(key)
    log.backup_sha256 = hashlib.sha256(data).hexdigest()
    record = model.from_json(data, key=key)
    if record.to_json() != data:
        raise DocumentUnreadable(
            f"{key} is not in its canonical form",
            detail=f"stored sha256 {log.backup_sha256}, canonical {record.digest()}",
            hint="Was it edited by hand?",
        )
    said = (record.backup_id, str(record.identity), record.subject, record.kind)
    lies = (place.backup_id, str(place.identity), place.subject, place.kind)
    if said != lies:
        raise WrongIdentity(
            f"{key} belongs to another backup: it says {' '.join(said)}",
            detail=f"it lies under {' '.join(lies)}",
            hint="Was it copied from another backup?",
        )
    stored = sum(item.size_bytes for item in record.objects)
    if stored != record.stored_bytes:
        raise ChecksumMismatch(f"{key} contradicts itself: stored_bytes {record.stored_bytes}, objects add to {stored}")
    return record


def stage_backup(
    repository: Repository,
    place: BackupPlace,
    record: BackupRecord,
    *,
    identities: tuple[str, ...],
    scratch_dir: Path,
    deadline: Deadline,
    log: ReadLog,
    progress: ReportProgress,
) -> StagedBackup:
    """Read and verify every object of a backup into memory and `scratch_dir`.

    Raises ChecksumMismatch naming the object and both digests, ObjectMissing, KeyMissing naming the recipients,
    DeadlineExceeded. What was read until then stands in `log`.
    """
    objects = _objects_by_role(place, record)
    total = record.stored_bytes
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        deadline.remaining_s()
        progress(Progress(f"reading {place.subject}", done, total))

    def read(role: str, sink: IO[bytes]) -> None:
        read_object(repository, place, record, objects[role], identities, sink, count, log)

    documents = {}
    for role in (GLOBALS, FINGERPRINT, STRUCTURE):
        buffer = io.BytesIO()
        read(role, buffer)
        documents[role] = buffer.getvalue()
    _check_documents(place, record, documents)
    fingerprint = Fingerprint.from_json(documents[FINGERPRINT])
    _check_counts(place, record, fingerprint)
    archive = scratch_dir / DUMP
    with archive.open("wb") as sink:
        read(DUMP, sink)
    return StagedBackup(
        archive, _parse_globals(place, documents[GLOBALS]), fingerprint, Structure.from_json(documents[STRUCTURE])
    )


def _objects_by_role(place: BackupPlace, record: BackupRecord) -> dict[str, ObjectRecord]:
    """Return the objects by plain name; raises IntegrityError unless they are exactly the four."""
    suffix = SUFFIX if record.encryption_recipients else ""
    wanted = {role + suffix: role for role in (DUMP, GLOBALS, FINGERPRINT, STRUCTURE)}
    found = [item.name for item in record.objects]
    if sorted(found) != sorted(wanted):
        raise IntegrityError(
            f"{place.key(BACKUP)} names the objects {', '.join(sorted(found))}",
            detail=f"expected {', '.join(sorted(wanted))}",
        )
    return {wanted[item.name]: item for item in record.objects}


def read_object(
    repository: Repository,
    place: BackupPlace,
    record: AnyBackup,
    expected: ObjectRecord,
    identities: tuple[str, ...],
    sink: IO[bytes],
    count: Callable[[int], None],
    log: ReadLog,
) -> None:
    """Copy one object into `sink`, decrypted, and log it; raises ChecksumMismatch when it is not as written."""
    key = place.key(expected.name)
    url = repository.store.full_url(key)
    fault: SynapseOpsError | None = None
    with repository.store.open_reader(key) as reader:
        source = _Counted(reader, count)
        try:
            if record.encryption_recipients:
                decrypt_stream(source, sink, identities, what=url, recipients=record.encryption_recipients)
            else:
                _copy(source, sink)
        except Unreachable:  # the store or the deadline, not the bytes
            raise
        except SynapseOpsError as error:
            fault = error
        _copy(source, None)  # to the end: only whole bytes can be compared, and damage explains every other fault
        read = ObjectRecord(
            name=expected.name,
            size_bytes=reader.read_bytes_total,
            sha256=reader.sha256,
            etag=reader.info.etag,
            plain_size_bytes=sink.tell() if fault is None else None,
        )
    log.objects.append(read)
    if (read.size_bytes, read.sha256) != (expected.size_bytes, expected.sha256):
        raise ChecksumMismatch(
            f"object {url} is not what was written: sha256 {read.sha256}, recorded {expected.sha256}",
            detail=f"{read.size_bytes} bytes, recorded {expected.size_bytes}; ETag {read.etag}, was {expected.etag}",
            hint="Restore from another backup; and find out what changes stored objects: disk, store or a person.",
        )
    if fault is not None:
        raise fault


class _Counted:
    """A reader that tells how much has passed."""

    def __init__(self, reader: ObjectReader, count: Callable[[int], None]) -> None:
        self._reader = reader
        self._count = count

    def read(self, size: int = -1, /) -> bytes:
        data = self._reader.read(size) or b""
        self._count(len(data))
        return data


def _copy(source: _Counted, sink: IO[bytes] | None) -> None:
    while data := source.read(_CHUNK):
        if sink is not None:
            sink.write(data)


def _check_documents(place: BackupPlace, record: BackupRecord, documents: dict[str, bytes]) -> None:
    for role, wanted in ((FINGERPRINT, record.fingerprint_digest), (STRUCTURE, record.structure_digest)):
        found = hashlib.sha256(documents[role]).hexdigest()
        if found != wanted:
            raise ChecksumMismatch(
                f"{place.key(role)} is not the one that {BACKUP} names: sha256 {found}, recorded {wanted}"
            )


def _check_counts(place: BackupPlace, record: BackupRecord, fingerprint: Fingerprint) -> None:
    said, counted = (record.table_count, record.row_count), (len(fingerprint.tables), fingerprint.row_count)
    if said != counted:
        raise ChecksumMismatch(
            f"{place.key(BACKUP)} says {said[0]} tables and {said[1]} rows,"
            f" its fingerprint {counted[0]} and {counted[1]}"
        )


def _parse_globals(place: BackupPlace, data: bytes) -> GlobalsScript:
    try:
        return parse_globals(data.decode())
    except UnicodeDecodeError as fault:
        raise DocumentUnreadable(f"cannot read {place.key(GLOBALS)}: {fault.reason} at byte {fault.start}") from fault


def read_globals(
    repository: Repository, place: BackupPlace, record: BackupRecord, identities: tuple[str, ...]
) -> GlobalsScript:
    """Read and verify the roles and tablespaces of a backup alone; raises as `stage_backup` does."""
    buffer = io.BytesIO()
    expected = _objects_by_role(place, record)[GLOBALS]
    read_object(repository, place, record, expected, identities, buffer, lambda _: None, ReadLog())
    return _parse_globals(place, buffer.getvalue())


@contextmanager
def hold_for_reading(repository: Repository, place: BackupPlace, purpose: str) -> Iterator[None]:
    """Keep a backup from expiring while the block reads it."""
    reader = f"{purpose}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    body = {"reader": reader, "correlation_id": current_correlation_id()}
    with keep_heartbeat(repository.store, place.key(reading_name(reader)), body=body, remove_at_end=True):
        yield
