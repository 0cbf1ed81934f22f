"""How old the newest backup of each subject may be, and how long it may wait for its proof.

Dagster's freshness is of a whole asset: of two databases one good dump keeps the other green. Here each subject is
judged by itself, by what lies in the repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.durations import format_age, format_when
from synapse_ops.domain.first_of_many import first_of_many

SLACK = timedelta(hours=2)  # a change of clock moves a schedule by an hour; taking and proving take their time
WAL_PROMISE = timedelta(minutes=1)  # it is stored each second; a slow store and a restarted receiver are not a fault
SEGMENT_PROMISE = timedelta(minutes=5)  # archive_timeout is a minute, as `synapse-ops check` has it at most

Entries = Mapping[str, Sequence[CatalogEntry]]  # by subject, newest first


def wal_promise(wal_archiving: str) -> timedelta:
    """Return how old WAL may be that is not stored, by how it gets into the repository."""
    return SEGMENT_PROMISE if wal_archiving == "command" else WAL_PROMISE


@dataclass(frozen=True, slots=True)
class AgeVerdict:
    """late: what each late subject lacks, in words. said: what is there of the others, the same until it changes."""

    late: tuple[str, ...]
    said: tuple[str, ...]
    promise: str

    @property
    def passed(self) -> bool:
        return not self.late and not self.is_empty

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to judge, which is not a pass."""
        return not self.late and not self.said

    @property
    def sentence(self) -> str:
        """The verdict; it holds moments and no ages, so that it stays the same until something happens."""
        if self.late:
            return f"{first_of_many(self.late, '; ')}. {self.promise}"
        return f"{self.promise} " + (
            f"Newest: {first_of_many(self.said)}." if self.said else "There is nothing to judge."
        )


def backup_ages(entries: Entries, longest_gap: timedelta, now: datetime, time_zone: str) -> AgeVerdict:
    """Return which subjects have no backup as young as their schedule promises. longest_gap: of the schedule."""
    limit, late, said = longest_gap + SLACK, [], []
    for subject, backups in sorted(entries.items()):
        newest = max((data_time(entry) for entry in backups), default=None)
        if newest is None:
            late.append(f"{subject} has no backup at all")
        elif now - newest > limit:
            late.append(f"{subject} has no backup since {format_when(newest, now, time_zone)}")
        else:
            said.append(f"{subject} {format_when(newest, now, time_zone)}")
    return AgeVerdict(tuple(late), tuple(said), f"One is promised at least every {format_age(limit)}.")


def proof_ages(entries: Entries, longest_gap: timedelta, now: datetime, time_zone: str) -> AgeVerdict:
    """Return which subjects have waited too long for a proof. longest_gap: of the proofs' schedule, and their timeout.

    A backup that a younger proven one has overtaken waits no more, and neither does one that a proof has judged:
    `restore_proven` is red then. No backup at all is not late here.
    """
    limit, late, said = longest_gap + SLACK, [], []
    for subject, backups in sorted(entries.items()):
        proven = max((data_time(entry) for entry in backups if entry.proven_at is not None), default=None)
        waiting = [entry for entry in backups if not entry.was_tried and not entry.unreadable_reason]
        waits_since = [at for at in map(data_time, waiting) if proven is None or at > proven]
        overdue = [at for at in waits_since if now - at > limit]
        if overdue:
            late.append(f"a backup of {subject} waits for its proof since {format_when(min(overdue), now, time_zone)}")
        elif backups:
            said.append(subject if proven is None else f"{subject} {format_when(proven, now, time_zone)}")
    return AgeVerdict(tuple(late), tuple(said), f"A backup is proven within {format_age(limit)}.")


def data_time(entry: CatalogEntry) -> datetime:
    """Return the moment that a backup restores: by the server's own clock where that was asked."""
    return entry.database_time or entry.started_at
