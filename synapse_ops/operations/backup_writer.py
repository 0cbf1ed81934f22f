"""Writes the objects of one backup: encrypted where asked for, read back before they are named, `backup.json` last.

Invariant: an object stands in a record only after the store gave back what was sent: the sha256 of every part, which it
computed itself, where it keeps checksums; else every byte. Until `seal`, nothing that a catalogue lists exists.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from synapse_ops.domain.backup_record import Document, ObjectRecord
from synapse_ops.domain.repository_layout import BACKUP, STARTED, BackupPlace
from synapse_ops.errors import ChecksumMismatch
from synapse_ops.systems.encryption import SUFFIX, ByteSource, encrypt_stream

if TYPE_CHECKING:
    from synapse_ops.systems.object_store import ObjectStore

COPY_BYTES = 1024 * 1024


class BackupWriter:
    """One backup being written. recipients: age public keys; empty = not encrypted. Not shared between threads."""

    def __init__(self, store: ObjectStore, place: BackupPlace, recipients: Sequence[str]) -> None:
        self.store = store
        self.place = place
        self.recipients = tuple(recipients)

    def begin(self, started: Document) -> None:
        """Write `started.json`, before anything else of this backup exists."""
        self.store.put_bytes(self.place.key(STARTED), started.to_json())

    def write_stream(
        self, name: str, source: ByteSource, *, before_complete: Callable[[], None] = lambda: None
    ) -> ObjectRecord:
        """Stream `source` to its end into the object `name` (with `.age` when encrypted) and read it back.

        before_complete: called at the end of the source; what it raises abandons the object, which then never existed.
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
            self._read_back(record)
        return record

    def write_bytes(self, name: str, data: bytes) -> ObjectRecord:
        """Write a small object (with `.age` when encrypted) and read it back."""
        return self.write_stream(name, io.BytesIO(data))

    def _read_back(self, record: ObjectRecord) -> None:
        """Raise ChecksumMismatch unless the store returns what was sent, read to its end."""
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
        """Write `backup.json` and read it back: from here the backup exists.

        Where the store honours conditional writes, a second `backup.json` of one backup is refused.
        """
        key, data = self.place.key(BACKUP), record.to_json()
        self.store.put_bytes(key, data, if_none_match=self.store.features.conditional_writes)
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
