"""Pins: written beside the backup, confirmed against a running expiry, lifted by name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from synapse_ops.domain.backup.layout import BACKUP, BackupPlace, pin_name
from synapse_ops.errors import ConfigError, ObjectMissing
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.backup.pins import pin_backup, unpin_backup
from synapse_ops.operations.repository import Repository
from tests.memory_store import MemoryStore
from tests.stored_backups import store_backup

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LABELS = ["audit-2026", "vor dem Umbau", "a/b", "..", "%2F", "日本"]


@pytest.fixture
def repository() -> Repository:
    return Repository(MemoryStore(NOW))


@pytest.fixture
def place(repository: Repository) -> BackupPlace:
    return store_backup(repository.store, NOW).place


@pytest.mark.parametrize("label", LABELS)
def test_a_label_comes_back_as_it_was_given(repository: Repository, place: BackupPlace, label: str) -> None:
    """Any words are a label; keys hold them percent-encoded."""
    report = pin_backup(repository, place, label, NOW)

    assert (report.labels, report.changed) == ((label,), True)
    assert read_catalog(repository).backups[0].pins == (label,)


@pytest.mark.parametrize("label", ["", "   ", "x" * 61, "a\nb"])
def test_a_label_that_cannot_be_used_is_refused(repository: Repository, place: BackupPlace, label: str) -> None:
    """Empty, longer than a key segment may grow, or with control characters."""
    with pytest.raises(ConfigError, match="allowed 1 to 60"):
        pin_backup(repository, place, label, NOW)


def test_pinning_again_changes_nothing(repository: Repository, place: BackupPlace) -> None:
    """The first pin's reason and time stay."""
    pin_backup(repository, place, "audit", NOW, reason="first")
    before = repository.store.read_bytes(place.key(pin_name("audit")))

    report = pin_backup(repository, place, "audit", NOW, reason="second")

    assert not report.changed
    assert repository.store.read_bytes(place.key(pin_name("audit"))) == before


def test_a_backup_that_is_gone_cannot_be_pinned(repository: Repository, place: BackupPlace) -> None:
    """No pin is left behind beside nothing."""
    repository.store.delete([place.key(BACKUP)])

    with pytest.raises(ObjectMissing, match=place.backup_id):
        pin_backup(repository, place, "audit", NOW)
    assert repository.store.head(place.key(pin_name("audit"))) is None


def test_a_pin_that_came_too_late_is_an_error_and_leaves_nothing(place: BackupPlace, repository: Repository) -> None:
    """A backup removed between the pin and its confirmation is told, never reported as pinned."""

    class Racing(MemoryStore):
        def put_bytes(self, key: str, data: bytes, **conditions: object) -> object:
            written = super().put_bytes(key, data, **conditions)
            if key.endswith(pin_name("audit")):
                self.delete([place.key(BACKUP)])
            return written

    store = Racing(NOW)
    store.objects = repository.store.objects

    with pytest.raises(ObjectMissing):
        pin_backup(Repository(store), place, "audit", NOW)
    assert store.head(place.key(pin_name("audit"))) is None


def test_one_pin_or_all_of_them_are_lifted(repository: Repository, place: BackupPlace) -> None:
    """By name, or together; a name that is not there lists those that are."""
    for label in ("a", "b", "c"):
        pin_backup(repository, place, label, NOW)

    assert unpin_backup(repository, place, "b").labels == ("a", "c")
    with pytest.raises(ConfigError) as missing:
        unpin_backup(repository, place, "b")
    assert missing.value.detail == "pins: a, c"
    assert unpin_backup(repository, place, None).labels == ()
    assert unpin_backup(repository, place, None).changed is False
