"""Reads what a repository holds: one listing, and the documents that the listing names.

The repository is the truth; nothing here writes to it. A cache under `cache_dir` keeps what was parsed from a document,
by key and ETag, so that a second reading costs the listing alone. It may be thrown away at any time, and is
never asked for a document that the listing does not show with exactly that ETag.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby

from synapse_ops.domain.backup_record import BackupRecord, ProofRecord
from synapse_ops.domain.catalog import BackupFacts, CatalogEntry, ListedBackup, ListedObject, ProofFacts, gather, judge
from synapse_ops.domain.repository_layout import BACKUP, KIND_DUMP, BackupPlace, parse_key, quote_segment
from synapse_ops.errors import ConfigError, DocumentUnreadable, ObjectMissing
from synapse_ops.operations.document_cache import DocumentCache
from synapse_ops.operations.repository import Repository

READERS = 16  # concurrent GETs of small documents; more does not help one Python process
_OWN_PREFIXES = ("leases/", "plans/")


@dataclass(frozen=True, slots=True)
class Catalog:
    """What one reading found. backups: newest first. left_overs: prefixes without one. foreign_count: keys not ours.

    read_at: the store's own clock when the listing began (whole seconds, aware UTC).
    """

    backups: tuple[CatalogEntry, ...]
    left_overs: tuple[ListedBackup, ...]
    foreign_count: int
    object_count: int
    read_at: datetime

    def of_database(self, database: str) -> tuple[CatalogEntry, ...]:
        return tuple(entry for entry in self.backups if entry.place.database == database)

    def databases(self) -> tuple[str, ...]:
        return tuple(sorted({entry.place.database for entry in self.backups}))


def read_catalog(repository: Repository, *, database: str | None = None) -> Catalog:
    """List the repository and read the documents of every backup in it.

    database: only this one; all identities. Raises Unreachable or ConfigError of the store; an unreadable document is
    an entry with `unreadable_reason`, never an error, because one damaged backup must not hide the others.
    """
    read_at = repository.store.server_time()
    counts = _Counts()
    with DocumentCache(repository.cache_dir, repository.url) as cache:
        listed = list(_listed_backups(repository, database, counts))
        entries = _judged(repository, [row for row in listed if row.backup_etag is not None], cache)
    return Catalog(
        backups=tuple(sorted(entries, key=lambda entry: (entry.place.backup_id, entry.place), reverse=True)),
        left_overs=tuple(sorted((row for row in listed if row.backup_etag is None), key=lambda row: row.place)),
        foreign_count=counts.foreign,
        object_count=counts.objects,
        read_at=read_at,
    )


@dataclass(slots=True)
class _Counts:
    objects: int = 0
    foreign: int = 0


def _listed_backups(repository: Repository, database: str | None, counts: _Counts) -> Iterator[ListedBackup]:
    """Yield one row per prefix; keys of one prefix stand together in every store's order."""
    keys = _parsed_objects(repository, database, counts)
    for place, group in groupby(keys, key=lambda pair: pair[0]):
        yield gather(place, (row for _, row in group))


def _parsed_objects(
    repository: Repository, database: str | None, counts: _Counts
) -> Iterator[tuple[BackupPlace, ListedObject]]:
    store = repository.store
    for prefix in [""] if database is None else _prefixes_of(repository, database):
        for info in store.list_objects(prefix):
            counts.objects += 1
            parsed = parse_key(info.key)
            if parsed is not None:
                yield parsed.place, ListedObject(parsed.name, info.size_bytes, info.etag, info.modified_at)
            elif not info.key.startswith(_OWN_PREFIXES):
                counts.foreign += 1


def _prefixes_of(repository: Repository, database: str) -> list[str]:
    identities = (name for name in repository.store.list_prefixes() if name + "/" not in _OWN_PREFIXES)
    return [f"{identity}/{KIND_DUMP}/{quote_segment(database)}/" for identity in identities]


def _judged(repository: Repository, rows: list[ListedBackup], cache: DocumentCache) -> list[CatalogEntry]:
    """Read the documents of every row, from the cache where it has them, and put the facts together."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="catalog") as pool:
        return list(pool.map(partial(_judge_one, repository, cache), rows))


def _judge_one(repository: Repository, cache: DocumentCache, listed: ListedBackup) -> CatalogEntry:
    if listed.backup_etag is None:
        raise ValueError(f"{listed.place.prefix} has no {BACKUP}")
    backup = cache.backup_facts(listed.place.key(BACKUP), listed.backup_etag, partial(_read_backup_facts, repository))
    proof = None
    if listed.newest_proof is not None and listed.newest_proof_etag is not None and not backup.unreadable_reason:
        key = listed.place.key(listed.newest_proof)
        proof = cache.proof_facts(key, listed.newest_proof_etag, partial(_read_proof_facts, repository))
    return judge(listed, backup, proof)


def _read_backup_facts(repository: Repository, key: str) -> BackupFacts:
    try:
        data = repository.store.read_bytes(key)
        sha256 = hashlib.sha256(data).hexdigest()
        record = BackupRecord.from_json(data, key=key)
        _check_place(record, key)
    except (DocumentUnreadable, ObjectMissing) as fault:
        return BackupFacts(sha256="", objects_digest="", unreadable_reason=fault.message)
    return BackupFacts.of(record, sha256=sha256)


def _check_place(record: BackupRecord, key: str) -> None:
    """Refuse a backup.json that was written for another prefix: a copied or swapped one proves nothing here."""
    place = BackupPlace(record.identity, record.kind, record.source.database, record.backup_id)
    if place.key(BACKUP) != key:
        raise DocumentUnreadable(f"{key} says it belongs to {place.prefix}", hint="Was it copied or swapped?")


def _read_proof_facts(repository: Repository, key: str) -> ProofFacts | None:
    try:
        return ProofFacts.of(ProofRecord.from_json(repository.store.read_bytes(key), key=key))
    except (DocumentUnreadable, ObjectMissing):
        return None  # what cannot be read proves nothing


def read_backup(repository: Repository, place: BackupPlace) -> BackupRecord:
    """Return `backup.json` of one backup. Raises ObjectMissing or DocumentUnreadable."""
    key = place.key(BACKUP)
    record = BackupRecord.from_json(repository.store.read_bytes(key), key=key)
    _check_place(record, key)
    return record


def read_proofs(repository: Repository, place: BackupPlace) -> tuple[ProofRecord, ...]:
    """Return every readable proof of one backup, oldest first."""
    proofs = []
    for info in sorted(repository.store.list_objects(place.key("proof-")), key=lambda row: row.key):
        try:
            proofs.append(ProofRecord.from_json(repository.store.read_bytes(info.key), key=info.key))
        except (DocumentUnreadable, ObjectMissing):
            continue  # counted as no proof, as the catalog does
    return tuple(proofs)


def find_backup(repository: Repository, backup_id: str) -> BackupPlace:
    """Return where a backup lies. Raises ConfigError with the nearest ids when there is not exactly one."""
    rows = list(_listed_backups(repository, None, _Counts()))
    places = [row.place for row in rows if row.backup_etag is not None]
    found = [place for place in places if place.backup_id == backup_id]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"backup id {backup_id} exists {len(found)} times", detail="\n".join(place.prefix for place in found)
        )
    near = difflib.get_close_matches(backup_id, [place.backup_id for place in places], n=3, cutoff=0.5)
    raise ConfigError(
        f'there is no backup "{backup_id}" in {repository.url}, which holds {len(places)}',
        detail="nearest: " + ", ".join(near) if near else "",
        hint="`synapse-ops backup list` prints the ids that exist.",
    )
