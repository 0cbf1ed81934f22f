"""The objects of one backup, read once and checked as they are read: object -> sha256 -> [age] -> a sink.

No part of a backup is used before every byte of it has been compared with `backup.json`: a flipped byte is a named
object with two digests, not a puzzling error in the middle of a restore.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, TypeVar

from synapse_ops.domain.backup.document import ObjectRecord
from synapse_ops.domain.backup.layout import BACKUP, BackupPlace, reading_name
from synapse_ops.domain.backup.record import BackupRecord
from synapse_ops.domain.progress import Progress, ReportProgress, ignore_progress
from synapse_ops.errors import (
    ChecksumMismatch,
    DocumentUnreadable,
    IntegrityError,
    SynapseOpsError,
    Unreachable,
    WrongIdentity,
)
from synapse_ops.operations.backup.deadline import Deadline
from synapse_ops.operations.backup.heartbeat import keep_heartbeat
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.encryption import SUFFIX, decrypt_stream
from synapse_ops.systems.log_output import current_correlation_id
from synapse_ops.systems.s3.errors import AccessRefused, ConditionFailed

if TYPE_CHECKING:
    from synapse_ops.systems.s3.streams import ObjectReader

_CHUNK = 1024 * 1024
MAX_DOCUMENT_BYTES = 512 * 1024 * 1024  # what is held in memory

Record = TypeVar("Record", bound=BackupRecord)


@dataclass
class ReadLog:
    """What was read so far, kept also when a later object turns out to be damaged; for the proof."""

    backup_sha256: str = hashlib.sha256(b"").hexdigest()
    objects: list[ObjectRecord] = field(default_factory=list)


def read_backup_document(repository: Repository, place: BackupPlace, log: ReadLog, model: type[Record]) -> Record:
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
            f"{key} belongs to another backup: it names {' '.join(said)}",
            detail=f"it lies under {' '.join(lies)}",
            hint="Was it copied from another backup?",
        )
    stored = sum(item.size_bytes for item in record.objects)
    if stored != record.stored_bytes:
        raise ChecksumMismatch(f"{key} contradicts itself: stored_bytes {record.stored_bytes}, objects add to {stored}")
    return record


class BackupReader:
    """Reads the objects of one backup by their plain names, within a deadline, and counts what has passed.

    names: exactly the objects that the backup must consist of, without the suffix of encryption; as_stored: further
    ones by the names that they are stored under. Raises IntegrityError unless `backup.json` names exactly these.
    """

    def __init__(
        self,
        repository: Repository,
        place: BackupPlace,
        record: BackupRecord,
        names: Iterable[str],
        *,
        as_stored: Iterable[str] = (),
        identities: tuple[str, ...] = (),
        deadline: Deadline | None = None,
        log: ReadLog | None = None,
        progress: ReportProgress = ignore_progress,
    ) -> None:
        self._repository = repository
        self._place = place
        self._record = record
        self._identities = identities
        self._deadline = deadline
        self._log = log or ReadLog()
        self._progress = progress
        self._done = 0
        suffix = SUFFIX if record.encryption_recipients else ""
        wanted = {name + suffix: name for name in names} | {name: name for name in as_stored}
        found = [item.name for item in record.objects]
        if sorted(found) != sorted(wanted):
            raise IntegrityError(
                f"{place.key(BACKUP)} names the objects {', '.join(sorted(found))}",
                detail=f"expected {', '.join(sorted(wanted))}",
            )
        self._objects = {wanted[item.name]: item for item in record.objects}

    def read(self, name: str, sink: IO[bytes]) -> None:
        """Copy one object into `sink`, decrypted, and log it.

        Raises ChecksumMismatch naming the object and both digests, ObjectMissing, KeyMissing naming the recipients,
        DeadlineExceeded.
        """
        expected = self._objects[name]
        key = self._place.key(expected.name)
        url = self._repository.store.full_url(key)
        fault: SynapseOpsError | None = None
        with self._repository.store.open_reader(key) as reader:
            source = _Counted(reader, self._count)
            recipients = self._record.encryption_recipients
            try:
                if recipients:
                    decrypt_stream(source, sink, self._identities, what=url, recipients=recipients)
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
        self._log.objects.append(read)
        if (read.size_bytes, read.sha256) != (expected.size_bytes, expected.sha256):
            raise ChecksumMismatch(
                f"object {url} is not what was written: sha256 {read.sha256}, recorded {expected.sha256}",
                detail=f"{read.size_bytes} bytes, recorded {expected.size_bytes}; "
                f"ETag {read.etag}, was {expected.etag}",
                hint="Restore from another backup; and find out what changes stored objects: disk, store or a person.",
            )
        if fault is not None:
            raise fault

    def read_bytes(self, name: str) -> bytes:
        """Return a small object; raises what `read` raises, and IntegrityError above MAX_DOCUMENT_BYTES."""
        size_bytes = self._objects[name].size_bytes
        if size_bytes > MAX_DOCUMENT_BYTES:
            raise IntegrityError(f"{self._place.key(name)} has {size_bytes} bytes, limit {MAX_DOCUMENT_BYTES}")
        buffer = io.BytesIO()
        self.read(name, buffer)
        return buffer.getvalue()

    def read_document(self, name: str, sha256: str) -> bytes:
        """Return a document whose plain bytes have the digest that `backup.json` names; else ChecksumMismatch."""
        data = self.read_bytes(name)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ChecksumMismatch(
                f"{self._place.key(name)} is not the one that {BACKUP} names: sha256 {found}, recorded {sha256}"
            )
        return data

    def _count(self, size: int) -> None:
        self._done += size
        if self._deadline is not None:
            self._deadline.remaining_s()
        self._progress(Progress(f"reading {self._place.subject}", self._done, self._record.stored_bytes))


class _Counted:
    """A reader that reports how much has passed."""

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


@contextmanager
def hold_for_reading(repository: Repository, place: BackupPlace, purpose: str) -> Iterator[tuple[str, ...]]:
    """Keep a backup from expiring while the block reads it, where the keys can write; yield what is to be said if not.

    A store or keys that take no writes do not stop it: the day of the disaster must not need them.
    """
    reader = f"{purpose}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    body = {"reader": reader, "correlation_id": current_correlation_id()}
    with keep_heartbeat(repository.store, place.key(reading_name(reader)), body=body, is_hold=True) as heartbeat:
        yield () if heartbeat.first_failure is None else (_not_held("was", heartbeat.first_failure),)


def foresee_hold(repository: Repository, place: BackupPlace) -> tuple[str, ...]:
    """Return what a plan says about the hold; the write that it tries rests on a condition that is never true."""
    key = place.key(reading_name(f"plan-{secrets.token_hex(6)}"))
    try:
        repository.store.put_bytes(key, b"{}", if_match="0" * 32)
        repository.store.delete([key])  # written by a store without conditional writes
    except ConditionFailed:
        return ()
    except SynapseOpsError as error:
        return (_not_held("would be", error),)
    return ()


def _not_held(when: str, error: SynapseOpsError) -> str:
    why = (
        "these keys may not write" if isinstance(error, AccessRefused) else f"the store takes no write: {error.message}"
    )
    return f"the backup {when} read without a hold, since {why}: let no expiry remove it meanwhile"
