"""Writes the objects of one backup: encrypted where asked for, read back, `backup.json` last.

Invariant: `backup.json` is written only after the store gave back what was sent of every object: the sha256 of every
part, which it computed itself, where it keeps checksums; else every byte. Every byte is read by `read_back`, once the
source is no longer held: a snapshot of the database would hold back vacuum for twice the time.
Until `seal`, nothing that a catalogue lists exists.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.document import Document, ObjectRecord
from synapse_ops.domain.backup.layout import BACKUP, STARTED, BackupPlace
from synapse_ops.errors import ChecksumMismatch
from synapse_ops.systems.encryption import SUFFIX, ByteSource, encrypt_stream
from synapse_ops.systems.s3.conditional_write import write_over

if TYPE_CHECKING:
    from synapse_ops.systems.s3.store import ObjectStore

COPY_BYTES = 1024 * 1024


class BackupWriter:
    """One backup being written. recipients: age public keys; empty = not encrypted.

    Different objects may be written in different threads.
    """

    def __init__(self, store: ObjectStore, place: BackupPlace, recipients: Sequence[str]) -> None:
        self.store = store
        self.place = place
        self.recipients = tuple(recipients)
        self._unread: dict[str, ObjectRecord] = {}  # by name: the store has not given them back yet

    def begin(self, started: Document) -> None:
        """Write `started.json`, before anything else of this backup exists."""
        self.store.put_bytes(self.place.key(STARTED), started.to_json())

    def write_stream(
        self, name: str, source: ByteSource, *, before_complete: Callable[[], None] = lambda: None
    ) -> ObjectRecord:
        """Stream `source` to its end into the object `name` (with `.age` when encrypted).

        before_complete: called at the end of the source; what it raises abandons the object, which then never existed.
        An object that is written again, by another attempt, is only the later one.
        """
        name += SUFFIX if self.recipients else ""
        counted = _Counting(source)
        with self.store.open_writer(self.place.key(name)) as writer:
            if self.recipients:
                encrypt_stream(counted, writer, self.recipients)
            else:
                while chunk := counted.read(COPY_BYTES):
                    writer.write(chunk)
            before_complete()
            written = writer.complete()
        record = ObjectRecord(
            name=name,
            size_bytes=written.size_bytes,
            sha256=written.sha256,
            etag=written.etag,
            plain_size_bytes=counted.count,
        )
        if not written.checksum or self.store.kept_checksum(written.key) != written.checksum:
            self._unread[name] = record
        else:
            self._unread.pop(name, None)
        return record

    def write_bytes(self, name: str, data: bytes) -> ObjectRecord:
        """Write a small object (with `.age` when encrypted)."""
        return self.write_stream(name, io.BytesIO(data))

    def read_back(self) -> None:
        """Read what the store keeps no checksum of; raises ChecksumMismatch unless it is what was sent.

        Call it when the source is no longer held; `seal` reads what is left.
        """
        while self._unread:
            name, record = next(iter(self._unread.items()))
            self._read_back(record)
            del self._unread[name]

    def _read_back(self, record: ObjectRecord) -> None:
        key = self.place.key(record.name)
        with self.store.open_reader(key) as reader:
            buffer = bytearray(COPY_BYTES)
            while reader.readinto(buffer):
                pass
            found = reader.sha256
        if found != record.sha256:
            raise ChecksumMismatch(
                f"object {self.store.full_url(key)} differs from what was sent",
                detail=f"sent sha256 {record.sha256}, the store has {found}",
                hint="The backup is not listed. Is the store or its disk damaged?",
            )

    def seal(self, record: Document) -> None:
        """Write `backup.json`, once every object was read back, and read it too: from here the backup exists.

        Where the store honours conditional writes, another `backup.json` of this backup is refused (ConditionFailed).
        """
        self.read_back()
        key, data = self.place.key(BACKUP), record.to_json()
        if self.store.features.conditional_writes:
            write_over(self.store, key, data)
        else:
            self.store.put_bytes(key, data)
        found = hashlib.sha256(self.store.read_bytes(key)).hexdigest()
        if found != hashlib.sha256(data).hexdigest():
            self.store.delete([key])
            raise ChecksumMismatch(f"object {self.store.full_url(key)} differs from what was sent; it was removed")


class _Counting:
    """Counts the plain bytes that pass."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size) or b""
        self.count += len(chunk)
        return chunk
