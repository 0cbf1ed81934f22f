"""What stands against the backups of one subject, in words: the same wherever they are judged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from operator import itemgetter

from synapse_ops.domain.backup.catalog import NOT_PROVEN_YET, CatalogEntry, not_attempted
from synapse_ops.domain.durations import format_age


def newest_tried(entries: Sequence[CatalogEntry]) -> CatalogEntry | None:
    """Return the newest backup that a proof judged, or could not be attempted on. entries: newest first."""
    return next((entry for entry in entries if entry.was_tried), None)


def fault_of(entries: Sequence[CatalogEntry], proof_max_age: timedelta, now: datetime) -> str:
    """Return why the backups of a subject do not count as restorable, or "". entries: of one subject, newest first."""
    if not entries:
        return "there is no backup of it"
    tried = newest_tried(entries)
    if tried is None:
        return f"backup {entries[0].place.backup_id}: {entries[0].doubt or NOT_PROVEN_YET}"
    if tried.proven_at is None:
        return f"backup {tried.place.backup_id}: {tried.doubt}"
    broken = next((entry for entry in entries if entry.unreadable_reason), None)
    if broken is not None and broken.started_at > tried.started_at:
        return f"backup {broken.place.backup_id}: {broken.unreadable_reason}"
    age = now - tried.proven_at
    if age > proof_max_age:
        return (
            f"backup {tried.place.backup_id} was proven {format_age(age)} ago, the limit is {format_age(proof_max_age)}"
        )
    return ""


def warning_of(entries: Sequence[CatalogEntry], proof_max_age: timedelta, now: datetime) -> str:
    """Return what is no fault yet, or "": a proof that could not be attempted after one that passed."""
    tried = newest_tried(entries)
    if tried is None or tried.not_attempted_at is None or fault_of(entries, proof_max_age, now):
        return ""
    return f"backup {tried.place.backup_id}: {not_attempted(tried.not_attempted_at)}"


def newest_proof_fault_of(entries: Sequence[CatalogEntry], proof_max_age: timedelta, now: datetime) -> str:
    """Return why the newest proof of a subject, of whichever backup, does not stand, or "". Its age is no fault."""
    del proof_max_age, now
    proofs = [(entry.last_proof_at, entry) for entry in entries if entry.last_proof_at is not None]
    newest = max(proofs, key=itemgetter(0))[1] if proofs else None
    failed = newest is not None and newest.proven_at is None
    return f"backup {newest.place.backup_id}: {newest.doubt}" if newest is not None and failed else ""
