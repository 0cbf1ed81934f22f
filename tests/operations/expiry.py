"""Builders for tests of expiry: backups of given ages in a store in memory, and what is left of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from synapse_ops.domain.backup.expiry_plan import Action, ExpiryPlan
from synapse_ops.domain.backup.retention import RetentionPolicy
from synapse_ops.operations.backup.catalog import read_catalog
from synapse_ops.operations.repository import Repository
from tests.memory_store import MemoryStore
from tests.stored_backups import StoredBackup, store_backup, store_proof

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = RetentionPolicy(window=10 * DAY, max_expiry_ratio=1.0)


def stored(store: MemoryStore, *ages_days: int, proven: bool = True, database: str = "synapse") -> list[StoredBackup]:
    """Store backups of these ages, with the store's clock standing at each one's time; then set it to NOW."""
    backups = []
    for age in ages_days:
        store.now = NOW - age * DAY
        backup = store_backup(store, store.now, database=database)
        if proven:
            store_proof(store, backup, store.now + timedelta(minutes=5))
        backups.append(backup)
    store.now = NOW
    return backups


def ids(repository: Repository) -> list[str]:
    return [entry.place.backup_id for entry in read_catalog(repository).backups]


def kept_by(plan: ExpiryPlan) -> list[str]:
    return [entry.place.backup_id for entry in plan.entries if entry.action is Action.KEEP]
