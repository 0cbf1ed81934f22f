"""What a listing and the documents together say of every backup: the compact rows that retention and people read.

Pure: `ListedBackup` gathers the keys of one prefix as they stream by, `judge` puts the documents' facts beside them.
Memory matters (10,000 backups, 100,000 objects): a row keeps digests of its listing, not the listing.
A backup is proven only by its newest proof: a later one that failed, or that a changed object made void, undoes it.
One that could not be attempted (`attempt-*.json`: no key on that host, say) does not concern the backup: it proves
nothing and undoes nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any

from synapse_ops.domain.backup.layout import (
    BACKUP,
    HEARTBEAT,
    STARTED,
    BackupPlace,
    label_of_pin,
    started_at_of,
    time_of_attempt,
)
from synapse_ops.domain.backup.proof_record import ProofRecord, Verdict
from synapse_ops.domain.backup.record import BackupRecord

HOLD_GRACE = timedelta(minutes=10)  # 30 missed renewals of 20 s: the reader has died

NOT_PROVEN_YET = "not proven yet"
DAMAGED, VOID = "damaged", "proof is void"

# documents and markers about a backup; every other object is what was backed up
_ROLE = re.compile(
    rf"(?P<started>{re.escape(STARTED)})|(?P<heartbeat>{re.escape(HEARTBEAT)})|(?P<backup>{re.escape(BACKUP)})"
    r"|(?P<proof>proof-\d{8}T\d{6}Z\.json)|(?P<attempt>attempt-\d{8}T\d{6}Z\.json)"
    r"|(?P<pin>pin-[^/]+\.json)|(?P<reading>reading-[^/]+\.json)"
)
_FLEETING = frozenset({"heartbeat", "reading"})


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One object of a backup's prefix; `name` is relative to the prefix."""

    name: str
    size_bytes: int
    etag: str
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class ListedBackup:
    """One prefix as a listing shows it. listing_digest: 16 bytes over every key with its size and ETag.

    Markers that come and go (heartbeat, holds) are not in it, so that a plan survives them; pins are in `pins`.
    touched_at: the newest LastModified of any object; held_at: of any hold.
    attempted_at: the newest time in the name of an attempt.
    """

    place: BackupPlace
    size_bytes: int
    object_count: int
    listing_digest: bytes
    has_backup: bool
    has_data: bool
    newest_proof: str | None
    attempted_at: datetime | None
    pins: tuple[str, ...]
    held_at: datetime | None
    touched_at: datetime


@lru_cache(maxsize=1024)  # the same ten names again and again
def _role(name: str) -> str:
    match = _ROLE.fullmatch(name)
    return str(match.lastgroup) if match else "data"


def is_data(name: str) -> bool:
    """Whether an object holds what was backed up, and not a document or marker about it."""
    return _role(name) == "data"


def gather(place: BackupPlace, objects: Iterable[ListedObject]) -> ListedBackup:
    """Return the row of one prefix. objects: at least one, any order."""
    rows = sorted(objects, key=attrgetter("name"))
    by_role: dict[str, list[ListedObject]] = {}
    digest = hashlib.sha256()
    for row in rows:
        role = _role(row.name)
        by_role.setdefault(role, []).append(row)
        if role not in _FLEETING:
            digest.update(f"{row.name}\0{row.size_bytes}\0{row.etag}\n".encode())
    proofs = by_role.get("proof")
    return ListedBackup(
        place=place,
        size_bytes=sum(row.size_bytes for row in rows),
        object_count=len(rows),
        listing_digest=digest.digest()[:16],
        has_backup="backup" in by_role,
        has_data="data" in by_role,
        newest_proof=proofs[-1].name if proofs else None,
        attempted_at=_newest_attempt(by_role.get("attempt", ())),
        pins=_labels(tuple(row.name for row in by_role.get("pin", ()))),
        held_at=max((row.modified_at for row in by_role.get("reading", ())), default=None),
        touched_at=max(row.modified_at for row in rows),
    )


@lru_cache(maxsize=256)  # one tuple for the thousands that an audit pins
def _labels(pins: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(label_of_pin, pins))


def _newest_attempt(attempts: Iterable[ListedObject]) -> datetime | None:
    times = []
    for row in attempts:
        with suppress(ValueError):  # a date that does not exist, such as 30 February
            times.append(time_of_attempt(row.name))
    return max(times, default=None)


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """What `backup.json` holds beyond its listing; unreadable_reason is set when it could not be read.

    objects: (name, size_bytes) of the data. No ETags: a repository copied to another store keeps its bytes, not those.
    """

    sha256: str
    objects: tuple[tuple[str, int], ...] = ()
    started_at: datetime | None = None
    finished_at: datetime | None = None
    database_time: datetime | None = None
    source_size_bytes: int = 0
    item_count: int = 0
    duration_s: float = 0.0
    is_encrypted: bool = False
    not_in_backup: tuple[str, ...] = ()
    unreadable_reason: str = ""
    rests_on: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: BackupRecord, *, sha256: str) -> BackupFacts:
        return cls(
            sha256=sha256,
            objects=tuple((one.name, one.size_bytes) for one in record.objects),
            started_at=record.started_at,
            finished_at=record.finished_at,
            database_time=record.data_time,
            source_size_bytes=record.source_size_bytes,
            item_count=record.item_count,
            duration_s=record.duration_s,
            is_encrypted=bool(record.encryption_recipients),
            not_in_backup=record.not_in_backup,
            rests_on=record.rests_on,
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON for a cache; `from_json` inverts it."""
        times = {name: _text(getattr(self, name)) for name in _BACKUP_TIMES}
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, **times}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> BackupFacts:
        """Raises TypeError, ValueError or KeyError for anything that `as_json` did not make."""
        times = {name: _moment(body[name]) for name in _BACKUP_TIMES}
        return cls(
            **{
                **body,
                **times,
                "objects": tuple((name, size) for name, size in body["objects"]),
                "not_in_backup": tuple(body["not_in_backup"]),
                "rests_on": tuple(body["rests_on"]),
            }
        )


@dataclass(frozen=True, slots=True)
class ProofFacts:
    """What the newest proof holds. objects: (name, size_bytes, etag) as it read them. outcome: in words, if proven."""

    verdict: Verdict
    finished_at: datetime
    backup_sha256: str
    objects: tuple[tuple[str, int, str], ...]
    restore_s: float | None
    reason: str
    outcome: str = ""

    @classmethod
    def of(cls, record: ProofRecord) -> ProofFacts:
        return cls(
            verdict=record.verdict,
            finished_at=record.finished_at,
            backup_sha256=record.backup_sha256,
            objects=tuple((one.name, one.size_bytes, one.etag) for one in record.objects),
            restore_s=record.restore_s,
            reason=record.reason or "; ".join(record.differences[:1]),
            outcome=record.outcome,
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON for a cache; `from_json` inverts it."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**plain, "verdict": self.verdict.value, "finished_at": self.finished_at.isoformat()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ProofFacts:
        """Raises TypeError, ValueError or KeyError for anything that `as_json` did not make."""
        objects = tuple((name, size, etag) for name, size, etag in body["objects"])
        moment = datetime.fromisoformat(body["finished_at"])
        return cls(**{**body, "verdict": Verdict(body["verdict"]), "finished_at": moment, "objects": objects})


_BACKUP_TIMES = ("started_at", "finished_at", "database_time")


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One backup. It exists (its `backup.json` does); whether it counts is what the other fields say.

    proven_at: when its newest proof finished, only if that proof passed and still matches every byte named; else None,
    and `doubt` says why. last_verdict is the newest proof's own word, last_proof_at its end.
    not_attempted_at: when a proof could not be attempted, if that was after the newest proof; a warning, no verdict.
    held_at: the newest renewal of a reader's hold. outcome: of the newest proof in words, what was done to the copy.
    rests_on: ids of other backups of its subject that a restore needs.
    """

    place: BackupPlace
    size_bytes: int
    listing_digest: bytes
    finished_at: datetime | None
    database_time: datetime | None
    source_size_bytes: int
    item_count: int
    duration_s: float
    is_encrypted: bool
    not_in_backup: tuple[str, ...]
    proven_at: datetime | None
    last_verdict: Verdict | None
    last_proof_at: datetime | None
    restore_s: float | None
    not_attempted_at: datetime | None
    doubt: str
    pins: tuple[str, ...]
    held_at: datetime | None
    unreadable_reason: str
    outcome: str = ""
    rests_on: tuple[str, ...] = ()

    @property
    def started_at(self) -> datetime:
        return started_at_of(self.place.backup_id)

    @property
    def was_tried(self) -> bool:
        """Whether a proof judged it, or could not be attempted."""
        return self.last_verdict is not None or self.not_attempted_at is not None


def judge(
    listed: ListedBackup, objects: Mapping[str, ListedObject], backup: BackupFacts, proof: ProofFacts | None
) -> CatalogEntry:
    """Return the catalog's row of one backup. objects: the listing that `listed` was gathered from, by name."""
    attempted = listed.attempted_at
    if attempted is not None and proof is not None and attempted < proof.finished_at.replace(microsecond=0):
        attempted = None
    doubt = _doubt(objects, backup, proof, attempted)
    return CatalogEntry(
        place=listed.place,
        size_bytes=listed.size_bytes,
        listing_digest=listed.listing_digest,
        finished_at=backup.finished_at,
        database_time=backup.database_time,
        source_size_bytes=backup.source_size_bytes,
        item_count=backup.item_count,
        duration_s=backup.duration_s,
        is_encrypted=backup.is_encrypted,
        not_in_backup=backup.not_in_backup,
        proven_at=proof.finished_at if proof is not None and not doubt else None,
        last_verdict=proof.verdict if proof is not None else None,
        last_proof_at=proof.finished_at if proof is not None else None,
        restore_s=proof.restore_s if proof is not None else None,
        not_attempted_at=attempted,
        doubt=doubt,
        pins=listed.pins,
        held_at=listed.held_at,
        unreadable_reason=backup.unreadable_reason,
        outcome=proof.outcome if proof is not None else "",
        rests_on=backup.rests_on,
    )


def doubt_broken_chains(entries: Iterable[CatalogEntry]) -> Iterator[CatalogEntry]:
    """Yield every entry; one that rests on a backup which is missing, damaged or changed is not proven any more."""
    rows = list(entries)
    if not any(row.rests_on for row in rows):
        yield from rows
        return
    sound = {row.place for row in rows if not row.unreadable_reason and not row.doubt.startswith((DAMAGED, VOID))}
    for row in rows:
        broken = next((one for one in row.rests_on if replace(row.place, backup_id=one) not in sound), None)
        if broken is None or row.doubt.startswith(DAMAGED):
            yield row
        else:
            yield replace(row, proven_at=None, doubt=f"{DAMAGED}: it rests on backup {broken}, which is not whole")


def not_attempted(at: datetime) -> str:
    """Return the warning of a proof that could not be attempted then."""
    return f"the proof of {at.isoformat(timespec='seconds')} could not be attempted"


def _doubt(
    objects: Mapping[str, ListedObject], backup: BackupFacts, proof: ProofFacts | None, attempted: datetime | None
) -> str:
    """Return why this backup is not proven, or an empty string when it is."""
    if backup.unreadable_reason:
        return backup.unreadable_reason
    damage = find_damage(backup, objects)
    if damage:
        return f"{DAMAGED}: {damage}"
    if proof is None:
        return NOT_PROVEN_YET if attempted is None else f"{NOT_PROVEN_YET}: {not_attempted(attempted)}"
    if proof.verdict is not Verdict.PROVEN:
        return f"newest proof: {proof.verdict}{': ' + proof.reason if proof.reason else ''}"
    void = find_void(proof, backup, objects)
    return f"{VOID}: {void}" if void else ""


def find_damage(backup: BackupFacts, objects: Mapping[str, ListedObject]) -> str:
    """Return what is missing or resized of the objects that backup.json names, or an empty string."""
    for name, size_bytes in backup.objects:
        row = objects.get(name)
        if row is None:
            return f"{name} is missing"
        if row.size_bytes != size_bytes:
            return f"{name} has {row.size_bytes} bytes, recorded {size_bytes}"
    return ""


def find_void(proof: ProofFacts, backup: BackupFacts, objects: Mapping[str, ListedObject]) -> str:
    """Return why a passed proof does not count for what is stored now, or an empty string when it does.

    It counts only for exactly the backup.json it names, when it read every object of it, and while each of them is
    listed with the same size and ETag: data swapped, rewritten or cut after the proof has not been proven.
    """
    if proof.backup_sha256 != backup.sha256:
        return "backup.json has changed since"
    unread = {name for name, _ in backup.objects} - {name for name, _, _ in proof.objects}
    if unread:
        return f"it did not read {min(unread)}"
    for name, size_bytes, etag in proof.objects:
        row = objects.get(name)
        if row is None:
            return f"{name} is missing"
        if (row.size_bytes, row.etag) != (size_bytes, etag):
            return f"{name} has changed since: etag {row.etag}, proven with {etag}"
    if backup.started_at is not None and proof.finished_at < backup.started_at:
        return f"it finished at {proof.finished_at.isoformat()}, before the backup began"
    return ""
