"""Reads what a repository holds: one streamed listing, and the documents that the listing names.

The repository is the truth; nothing here writes to it. A cache under `cache_dir` keeps what was parsed from a document,
by key and ETag, so that a second reading costs the listing alone. It may be thrown away at any time, and is
never asked for a document that the listing does not show with exactly that ETag.
Whatever order a store lists in, the catalog is the same: a prefix that turns up again after it was judged is listed
once more by itself. Memory holds the rows of the catalog and a few backups in flight, never the listing.
"""

from __future__ import annotations

import difflib
import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar

from synapse_ops.domain.backup.catalog import (
    BackupFacts,
    CatalogEntry,
    ListedBackup,
    ListedObject,
    ProofFacts,
    doubt_broken_chains,
    gather,
    judge,
)
from synapse_ops.domain.backup.kinds import parse_backup
from synapse_ops.domain.backup.layout import (
    BACKUP,
    KINDS,
    OWN_PREFIXES,
    WAL,
    BackupPlace,
    is_identity,
    is_own_name,
    parse_key,
    quote_segment,
)
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.domain.backup.record import BackupRecord
from synapse_ops.errors import (
    ConfigError,
    DocumentUnreadable,
    IntegrityError,
    ObjectMissing,
    SynapseOpsError,
    WrongIdentity,
)
from synapse_ops.operations.backup.document_cache import DocumentCache
from synapse_ops.operations.repository import Repository
from synapse_ops.systems.s3.store import ConditionFailed, ObjectInfo, ObjectStore

READERS = 16  # concurrent GETs of small documents: 8 -> 16 gained a tenth on a near store, more nothing
IN_FLIGHT = 300  # backups whose documents are being read: three pages of a listing, so that reading never waits for one
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # a backup.json is a few KiB; a larger one is not ours


@dataclass(frozen=True)
class Catalog:
    """What one reading found. backups: newest first. left_overs: prefixes without one. foreign_count: keys not ours.

    object_count: every object listed. read_at: the store's own clock when the listing began (whole seconds, aware UTC).
    """

    backups: tuple[CatalogEntry, ...]
    left_overs: tuple[ListedBackup, ...]
    foreign_count: int
    object_count: int
    read_at: datetime

    def only(self, kind: str | None, subject: str | None = None) -> Catalog:
        """Return the same with the backups and left-overs of one kind and subject; None means any."""
        return replace(
            self,
            backups=tuple(entry for entry in self.backups if entry.place.is_of(kind, subject)),
            left_overs=tuple(row for row in self.left_overs if row.place.is_of(kind, subject)),
        )

    def of_subject(self, subject: str) -> tuple[CatalogEntry, ...]:
        """Return its backups, newest first."""
        return tuple(self.backups[place] for place in self._places.get(subject, ()))

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted(self._places))

    @cached_property
    def _places(self) -> Mapping[str, array[int]]:
        """Where the backups of each subject are: every subject is asked for, and there may be thousands of each."""
        found: dict[str, array[int]] = {}
        for place, entry in enumerate(self.backups):
            found.setdefault(entry.place.subject, array("L")).append(place)
        return found


def read_catalog(repository: Repository, *, subject: str | None = None) -> Catalog:
    """List the repository and read the documents of every backup in it.

    subject: only this one; all identities. Raises Unreachable or ConfigError of the store; an unreadable document is an
    entry with `unreadable_reason`, never an error, because one damaged backup must not hide the others.
    """
    read_at = repository.store.server_time()
    reading = _Reading()
    prefixes = [""] if subject is None else _prefixes_of(repository, subject)
    with (
        DocumentCache(repository.cache_dir, repository.url) as cache,
        ThreadPoolExecutor(READERS, thread_name_prefix="catalog") as pool,
    ):
        judging = _Judging(repository.store, cache, pool, reading)
        listing = (row for prefix in prefixes for row in _listing(repository.store, prefix))
        for place, objects in _grouped(listing, reading):
            judging.begin(place, objects)
        judging.finish_all()
        for place in sorted(reading.torn):
            judging.begin(place, list_own_objects(repository.store, place))
        judging.finish_all()
    left_overs = [row for row in reading.rows.values() if isinstance(row, ListedBackup)]
    backups = list(doubt_broken_chains(row for row in reading.rows.values() if isinstance(row, CatalogEntry)))
    backups.sort(key=attrgetter("place"), reverse=True)  # two stable sorts: one with a tuple each takes 64 bytes a row
    backups.sort(key=attrgetter("place.backup_id"), reverse=True)
    return Catalog(
        backups=tuple(backups),
        left_overs=tuple(sorted(left_overs, key=attrgetter("place"))),
        foreign_count=reading.foreign_count,
        object_count=reading.object_count,
        read_at=read_at,
    )


def _listing(store: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a prefix; of a whole repository all but WAL, of which there may be millions."""
    if prefix:
        yield from store.list_objects(prefix)
        return
    objects, folders = store.list_level()
    yield from objects
    for folder in folders:
        if not is_identity(folder):
            yield from store.list_objects(f"{folder}/")
            continue
        objects, kinds = store.list_level(f"{folder}/")
        yield from objects
        for kind in kinds:
            if kind != WAL:
                yield from store.list_objects(f"{folder}/{kind}/")


def list_own_objects(store: ObjectStore, place: BackupPlace) -> list[ListedObject]:
    """List one backup's prefix afresh; objects with names that this tool does not write are left out."""
    rows = []
    for info in store.list_objects(place.prefix):
        name = info.key.removeprefix(place.prefix)
        if is_own_name(name):
            rows.append(ListedObject(name, info.size_bytes, info.etag, info.modified_at))
    return rows


@dataclass(slots=True)
class _Reading:
    """What has been found so far. rows: every place seen, None until it is judged.

    torn: places whose objects did not come together in the listing.
    """

    rows: dict[BackupPlace, CatalogEntry | ListedBackup | None] = field(default_factory=dict)
    torn: set[BackupPlace] = field(default_factory=set)
    object_count: int = 0
    foreign_count: int = 0


def _grouped(listing: Iterable[ObjectInfo], reading: _Reading) -> Iterator[tuple[BackupPlace, list[ListedObject]]]:
    """Yield each backup's own objects as long as they come together; counts what is not ours on the way."""
    prefix, place, rows = "\0", None, list[ListedObject]()
    for info in listing:
        reading.object_count += 1
        if place is not None and info.key.startswith(prefix):
            name = info.key[len(prefix) :]
            if not is_own_name(name):
                reading.foreign_count += 1
                continue
        else:
            parsed = parse_key(info.key)
            if parsed is None:
                reading.foreign_count += not info.key.startswith(OWN_PREFIXES)
                continue
            if place is not None and place not in reading.torn:
                yield place, rows
            place, name, rows = parsed.place, parsed.name, []
            prefix = place.prefix
            if place in reading.rows:
                reading.torn.add(place)
            reading.rows.setdefault(place)
        rows.append(ListedObject(name, info.size_bytes, info.etag, info.modified_at))
    if place is not None and place not in reading.torn:
        yield place, rows


AnyFacts = TypeVar("AnyFacts", BackupFacts, ProofFacts)
_Read = tuple[AnyFacts, bool]  # the facts, and whether they follow from the listed version alone and may be kept


@dataclass(slots=True)
class _Pending:
    """A backup whose documents are in the cache or on their way."""

    listed: ListedBackup
    objects: dict[str, ListedObject]
    backup: BackupFacts | Future[_Read[BackupFacts]]
    proof: ProofFacts | Future[_Read[ProofFacts]] | None

    def is_ready(self) -> bool:
        return all(not isinstance(one, Future) or one.done() for one in (self.backup, self.proof))


class _Judging:
    """Reads documents while the listing goes on, and turns backups into rows in the order they were begun."""

    def __init__(self, store: ObjectStore, cache: DocumentCache, pool: ThreadPoolExecutor, reading: _Reading) -> None:
        self._store = store
        self._cache = cache
        self._pool = pool
        self._reading = reading
        self._pending: deque[_Pending] = deque()

    def begin(self, place: BackupPlace, objects: list[ListedObject]) -> None:
        """Take one prefix; blocks while IN_FLIGHT backups wait for their documents."""
        self._reading.rows[place] = None
        if not objects:
            return
        listed = gather(place, objects)
        if not listed.has_backup:
            self._reading.rows[place] = listed
            return
        rows = {row.name: row for row in objects}
        proof = rows[listed.newest_proof] if listed.newest_proof is not None else None
        self._pending.append(
            _Pending(
                listed,
                rows,
                backup=self._facts(place, rows[BACKUP], BackupFacts.from_json, _read_backup_facts),
                proof=None if proof is None else self._facts(place, proof, ProofFacts.from_json, _read_proof_facts),
            )
        )
        while self._pending and (len(self._pending) > IN_FLIGHT or self._pending[0].is_ready()):
            self._finish(self._pending.popleft())

    def finish_all(self) -> None:
        while self._pending:
            self._finish(self._pending.popleft())

    def _facts(
        self,
        place: BackupPlace,
        row: ListedObject,
        parse: Callable[[Mapping[str, Any]], AnyFacts],
        read: Callable[[ObjectStore, BackupPlace, ListedObject], _Read[AnyFacts]],
    ) -> AnyFacts | Future[_Read[AnyFacts]]:
        known = self._cache.get(place.key(row.name), row.etag)
        if known is not None:
            with suppress(TypeError, ValueError, KeyError):  # a row that we did not write is not known
                return parse(known)
        return self._pool.submit(read, self._store, place, row)

    def _finish(self, pending: _Pending) -> None:
        place, rows = pending.listed.place, pending.objects
        backup = self._settled(place, rows[BACKUP], pending.backup)
        proof = None
        if pending.proof is not None and pending.listed.newest_proof is not None:
            proof = self._settled(place, rows[pending.listed.newest_proof], pending.proof)
        self._reading.rows[place] = judge(pending.listed, rows, backup, proof)

    def _settled(self, place: BackupPlace, row: ListedObject, facts: AnyFacts | Future[_Read[AnyFacts]]) -> AnyFacts:
        if not isinstance(facts, Future):
            return facts
        read, may_be_kept = facts.result()
        if may_be_kept:
            self._cache.keep(place.key(row.name), row.etag, read.as_json())
        return read


def _read_backup_facts(store: ObjectStore, place: BackupPlace, row: ListedObject) -> _Read[BackupFacts]:
    key = place.key(row.name)
    try:
        data = store.read_listed(key, row.size_bytes, row.etag, max_bytes=MAX_DOCUMENT_BYTES)
        record = parse_backup(data, key=key)
        _check_place(record, key)
    except (ObjectMissing, ConditionFailed):
        return BackupFacts(sha256="", unreadable_reason="it changed while the repository was listed"), False
    except IntegrityError as fault:
        return BackupFacts(sha256="", unreadable_reason=fault.message), True
    return BackupFacts.of(record, sha256=hashlib.sha256(data).hexdigest()), True


def _read_proof_facts(store: ObjectStore, place: BackupPlace, row: ListedObject) -> _Read[ProofFacts]:
    key = place.key(row.name)
    try:
        data = store.read_listed(key, row.size_bytes, row.etag, max_bytes=MAX_DOCUMENT_BYTES)
        record = ProofRecord.from_json(data, key=key)
        if record.backup_id != place.backup_id:
            raise WrongIdentity(f"{key} is a proof of backup {record.backup_id}")
    except (ObjectMissing, ConditionFailed):
        return _doubtful(row, "the proof changed while the repository was listed"), False
    except IntegrityError as fault:  # what cannot be read proves nothing, and is not "no proof yet" either
        return _doubtful(row, fault.message), True
    return ProofFacts.of(record), True


def _doubtful(row: ListedObject, reason: str) -> ProofFacts:
    return ProofFacts(Verdict.UNPROVEN, row.modified_at, "", (), None, reason)


def _check_place(record: BackupRecord, key: str) -> None:
    """Refuse a backup.json that was written for another prefix: a copied or swapped one proves nothing here."""
    place = BackupPlace(record.identity, record.kind, record.subject, record.backup_id)
    if place.key(BACKUP) != key:
        raise WrongIdentity(
            f"{key} says it belongs to {place.prefix}", hint="Were objects copied or swapped between backups?"
        )


def read_record(repository: Repository, place: BackupPlace) -> BackupRecord:
    """Return `backup.json` of one backup. Raises ObjectMissing, DocumentUnreadable or WrongIdentity."""
    key = place.key(BACKUP)
    record = parse_backup(repository.store.read_bytes(key), key=key)
    _check_place(record, key)
    return record


def read_proofs(repository: Repository, place: BackupPlace) -> tuple[ProofRecord, ...]:
    """Return every readable proof of one backup, those that could not be attempted too, oldest first."""
    proofs = []
    for row in list_own_objects(repository.store, place):
        if not row.name.startswith(("proof-", "attempt-")):
            continue
        key = place.key(row.name)
        try:
            proofs.append(ProofRecord.from_json(repository.store.read_bytes(key), key=key))
        except (DocumentUnreadable, ObjectMissing):
            continue  # counted as doubt by the catalog, where it is the newest
    return tuple(sorted(proofs, key=lambda proof: proof.finished_at))


def find_backup(repository: Repository, backup_id: str) -> BackupPlace:
    """Return where a backup lies; lists folders only. Raises ConfigError with near ids unless there is exactly one."""
    return locate_backup([repository], backup_id)[1]


def locate_backup(repositories: Sequence[Repository], backup_id: str) -> tuple[Repository, BackupPlace]:
    """Return in which repository a backup lies, and where there; lists folders only.

    Raises ConfigError with near ids of all unless there is exactly one, and the error of a repository that could not be
    listed unless another one holds the backup.
    """
    known: list[str] = []
    found: list[tuple[Repository, BackupPlace]] = []
    fault: SynapseOpsError | None = None
    for repository in repositories:
        try:
            places = list(_listed_places(repository))
            same = [place for place in places if place.backup_id == backup_id]
            found += [(repository, place) for place in same if repository.store.head(place.key(BACKUP)) is not None]
            known += [place.backup_id for place in places]
        except SynapseOpsError as error:
            fault = error
    if fault is not None and not found:
        raise fault
    only_one([place for _, place in found], backup_id, known, *repositories)
    return found[0]


def only_one(
    found: Sequence[BackupPlace], backup_id: str, known: Sequence[str], *repositories: Repository
) -> BackupPlace:
    """Return the one place found. Raises ConfigError for none, with the nearest ids of `known`, or for several."""
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"backup id {backup_id} exists {len(found)} times", detail="\n".join(place.prefix for place in found)
        )
    near = difflib.get_close_matches(backup_id, known, n=3, cutoff=0.5)
    where = " or ".join(repository.url for repository in repositories)
    raise ConfigError(
        f'there is no backup "{backup_id}" in {where}, which holds {len(known)}',
        detail="nearest: " + ", ".join(near) if near else "",
        hint="`synapse-ops backup list` prints the ids that exist.",
    )


def _listed_places(repository: Repository) -> Iterator[BackupPlace]:
    """Yield every prefix that may hold a backup."""
    store = repository.store
    for identity in store.list_prefixes():
        for kind in set(KINDS).intersection(store.list_prefixes(f"{identity}/")):
            for subject in store.list_prefixes(f"{identity}/{kind}/"):
                for backup_id in store.list_prefixes(f"{identity}/{kind}/{subject}/"):
                    parsed = parse_key(f"{identity}/{kind}/{subject}/{backup_id}/{BACKUP}")
                    if parsed is not None:
                        yield parsed.place


def _prefixes_of(repository: Repository, subject: str) -> list[str]:
    identities = (name for name in repository.store.list_prefixes() if name + "/" not in OWN_PREFIXES)
    return [f"{identity}/{kind}/{quote_segment(subject)}/" for identity in identities for kind in KINDS]
