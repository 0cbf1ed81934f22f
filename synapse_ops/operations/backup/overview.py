"""What a repository protects, in a few figures per subject; reads only, but for the probe of the store's features."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.backup.restore_estimate import predict_from
from synapse_ops.domain.backup.retention import counts_as_proven
from synapse_ops.errors import ConfigError
from synapse_ops.operations.backup.catalog import Catalog
from synapse_ops.operations.repository import Repository


@dataclass(frozen=True, slots=True)
class SubjectOverview:
    """One subject of one identity: a database, a collection, a Redis server.

    newest_proven: None when nothing of it can be counted on. predicted_restore_s: for one as large as the newest
    backup. rpo_now: what would be lost if the server were gone now: the age of what the newest proven one restores.
    """

    identity: Identity
    kind: str
    subject: str
    backup_count: int
    proven_count: int
    stored_bytes: int
    newest: CatalogEntry
    newest_proven: CatalogEntry | None
    predicted_restore_s: float | None
    rpo_now: timedelta | None


@dataclass(frozen=True, slots=True)
class RepositoryOverview:
    """A whole repository. missing_features: what the store cannot do, in words; None when it could not be asked."""

    url: str
    read_at: datetime
    subjects: tuple[SubjectOverview, ...]
    left_over_count: int
    left_over_bytes: int
    foreign_count: int
    missing_features: tuple[str, ...] | None


def overview_of(repository: Repository, catalog: Catalog, now: datetime) -> RepositoryOverview:
    """Return what the backups of `catalog`, read from the repository, protect. now: our clock (aware UTC)."""
    return RepositoryOverview(
        url=repository.url,
        read_at=catalog.read_at,
        subjects=_subjects(catalog, now),
        left_over_count=len(catalog.left_overs),
        left_over_bytes=sum(row.size_bytes for row in catalog.left_overs),
        foreign_count=catalog.foreign_count,
        missing_features=_missing_features(repository),
    )


def _missing_features(repository: Repository) -> tuple[str, ...] | None:
    try:
        return tuple(repository.store.features.missing())
    except ConfigError:
        return None  # these keys may read and not write, and the probe writes


def _subjects(catalog: Catalog, now: datetime) -> tuple[SubjectOverview, ...]:
    def group_of(entry: CatalogEntry) -> tuple[str, str, Identity]:
        return entry.place.kind, entry.place.subject, entry.place.identity

    ordered = sorted(catalog.backups, key=group_of)  # stable: newest first within each group
    return tuple(_overview(list(group), now) for _, group in groupby(ordered, key=group_of))


def _overview(entries: list[CatalogEntry], now: datetime) -> SubjectOverview:
    """entries: of one subject and identity, newest first, at least one."""
    newest = entries[0]
    proven = [entry for entry in entries if counts_as_proven(entry, now)]
    last = proven[0] if proven else None
    return SubjectOverview(
        identity=newest.place.identity,
        kind=newest.place.kind,
        subject=newest.place.subject,
        backup_count=len(entries),
        proven_count=len(proven),
        stored_bytes=sum(entry.size_bytes for entry in entries),
        newest=newest,
        newest_proven=last,
        predicted_restore_s=predict_from(entries, newest.source_size_bytes),
        rpo_now=now - (last.database_time or last.started_at) if last is not None else None,
    )
