"""Which backup each store is restored from: none is newer than the moment to which PostgreSQL goes back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta

from synapse_ops.domain.backup.ages import data_time
from synapse_ops.domain.backup.catalog import DAMAGED, CatalogEntry
from synapse_ops.domain.backup.proof_record import Verdict
from synapse_ops.domain.backup.retention import counts_as_proven


def usable_bases(
    entries: Iterable[CatalogEntry], avoid: Collection[str]
) -> tuple[tuple[CatalogEntry, ...], tuple[str, ...]]:
    """Return the base backups that a recovery may begin with, and a note about each that it must not.

    entries: newest first. avoid: ids of those that a restore has found to be bad. One whose proof failed is used only
    where there is no other.
    """
    good, failed, notes = [], [], []
    for entry in entries:
        name = entry.place.backup_id
        if name in avoid:
            notes.append(f"base backup {name} could not be restored just now")
        elif entry.unreadable_reason or entry.doubt.startswith(DAMAGED):
            notes.append(f"base backup {name} is not used: {entry.unreadable_reason or entry.doubt}")
        elif entry.last_verdict not in {None, Verdict.PROVEN}:
            failed.append(entry)
        else:
            good.append(entry)
    if good:
        notes += [f"base backup {one.place.backup_id} is not used: {one.doubt}" for one in failed]
        return tuple(good), tuple(notes)
    notes += [f"only base backup {one.place.backup_id} is there, and its proof failed: {one.doubt}" for one in failed]
    return tuple(failed), tuple(notes)


def choose_proven(entries: Sequence[CatalogEntry], until: datetime | None, now: datetime) -> CatalogEntry | None:
    """Return the newest proven backup whose data is not newer than the moment; None: there is none."""
    proven = [entry for entry in entries if counts_as_proven(entry, now)]
    return max((one for one in proven if until is None or data_time(one) <= until), key=data_time, default=None)


def still_backed_up(newest: Sequence[datetime], one: datetime, promised: timedelta) -> bool:
    """Return whether a subject's newest backup belongs to the last round; one that is no longer made is left out.

    newest: of all subjects of the kind. promised: longest time between two rounds.
    """
    return max(newest) - one <= promised
