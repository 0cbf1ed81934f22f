"""A backup exists from its `backup.json` on, which names only what the store gave back."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from synapse_ops.domain.backup.layout import BACKUP, KIND_DUMP, BackupPlace, Identity, new_backup_id
from synapse_ops.domain.backup.record import StartedRecord
from synapse_ops.errors import ChecksumMismatch
from synapse_ops.operations.backup.writer import BackupWriter
from synapse_ops.systems.s3.records import StoreFeatures
from synapse_ops.systems.s3.store import ConditionFailed, ObjectReader, ObjectStore, StoreAccess, WrittenObject

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PLACE = BackupPlace(Identity("7000000000000000001", "0a0b0c0d"), KIND_DUMP, "synapse", new_backup_id(NOW, b"abc"))


def record(host: str = "host-1") -> StartedRecord:
    """Return a small document; `seal` takes any."""
    return StartedRecord(
        kind=KIND_DUMP,
        backup_id=PLACE.backup_id,
        identity=str(PLACE.identity),
        subject="synapse",
        started_at=NOW,
        host=host,
        pid=1,
        correlation_id="test",
    )


class LosesReplies(ObjectStore):
    """A real store whose first reply to a conditional write is lost, so that the client sends it again."""

    def put_bytes(self, key: str, data: bytes, **conditions: Any) -> WrittenObject:
        written = super().put_bytes(key, data, **conditions)
        return super().put_bytes(key, data, **conditions) if conditions else written


class KeepsNoChecksums(ObjectStore):
    """A real store that is taken for one without checksums. read: the keys that were read to their end, in order."""

    def __init__(self, url: str, access: StoreAccess) -> None:
        super().__init__(url, access)
        self.read: list[str] = []

    @property
    def features(self) -> StoreFeatures:  # type: ignore[override]
        return replace(super().features, keeps_checksums=False)

    def open_reader(self, key: str) -> ObjectReader:
        self.read.append(key.rpartition("/")[2])
        return super().open_reader(key)


def test_a_backup_whose_last_reply_was_lost_exists(bucket_url: str, object_store_access: StoreAccess) -> None:
    """The repetition of the write is answered 412; the bytes that are stored are ours, so it is no failure."""
    store = LosesReplies(bucket_url, object_store_access)
    assert store.features.conditional_writes

    BackupWriter(store, PLACE, ()).seal(record())

    assert store.read_bytes(PLACE.key(BACKUP)) == record().to_json()


def test_another_backup_json_of_one_backup_is_refused_and_the_first_stays(
    bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Two writers of one backup: the second changes nothing."""
    store = LosesReplies(bucket_url, object_store_access)
    BackupWriter(store, PLACE, ()).seal(record())

    with pytest.raises(ConditionFailed):
        BackupWriter(store, PLACE, ()).seal(record("host-2"))

    assert store.read_bytes(PLACE.key(BACKUP)) == record().to_json()


def test_every_object_is_read_back_once_and_before_backup_json(
    bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Not while the source is read; what the taker of a backup has not read back, the seal does."""
    store = KeepsNoChecksums(bucket_url, object_store_access)
    writer = BackupWriter(store, PLACE, ())
    writer.write_bytes("one", b"1")
    writer.write_bytes("two", os.urandom(1000))
    assert store.read == []

    writer.read_back()
    assert store.read == ["one", "two"]

    writer.write_bytes("three", b"3")
    writer.seal(record())
    assert store.read == ["one", "two", "three"]


def test_an_object_of_a_former_attempt_is_not_asked_for(bucket_url: str, object_store_access: StoreAccess) -> None:
    """A dump begins again on another snapshot: only what was written last must be what the store has."""
    store = KeepsNoChecksums(bucket_url, object_store_access)
    writer = BackupWriter(store, PLACE, ())
    writer.write_bytes("one", b"of the first attempt")
    writer.write_bytes("one", b"of the second attempt")
    writer.seal(record())

    assert store.read == ["one"]


def test_an_object_that_the_store_changed_is_never_named(bucket_url: str, object_store_access: StoreAccess) -> None:
    """No `backup.json` is written, whoever reads back."""
    store = KeepsNoChecksums(bucket_url, object_store_access)
    writer = BackupWriter(store, PLACE, ())
    writer.write_bytes("one", b"1")
    store.put_bytes(PLACE.key("one"), b"2")

    for _ in range(2):
        with pytest.raises(ChecksumMismatch, match="differs from what was sent"):
            writer.seal(record())

    assert store.head(PLACE.key(BACKUP)) is None
