"""What is said of the WAL archive: how far it reaches, what is missing, and whether that is what was promised."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.ages import wal_promise
from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.layout import KIND_BASE, BackupPlace
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_space import say_time_left
from synapse_ops.domain.durations import format_age
from synapse_ops.errors import DocumentUnreadable, ObjectMissing, SynapseOpsError, counted
from synapse_ops.operations.backup.catalog import read_record
from synapse_ops.operations.database.base_backup import SUBJECT
from synapse_ops.operations.database.wal_archive import list_wal_identities, read_wal_archive
from synapse_ops.operations.database.wal_status import WalStatus, read_time_left, read_wal_status

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class WalReport:
    """The archive and the primary, compared. status: None where the primary could not be asked; `unknown` says why.

    most: the oldest that WAL may be which is not stored. base_start, base_timeline: where replay of the newest base
    backup begins; None: there is none. left_s: for how long the primary keeps what is not stored; None: not known.
    """

    archive: WalArchive | None
    status: WalStatus | None
    unknown: str
    most: timedelta
    base_start: Lsn | None = None
    left_s: float | None = None
    base_timeline: int | None = None

    @property
    def gaps(self) -> tuple[str, ...]:
        """The missing bytes that stop a recovery from the newest base backup; of any, where there is none.

        What is missing before it was lost once, or has expired: nothing mends it, and nobody need be woken.
        """
        rows = self.archive.timelines if self.archive is not None else ()
        gaps = (gap for row in rows for gap in row.gaps)
        return tuple(str(gap) for gap in gaps if self.base_start is None or gap.stop > self.base_start)

    @property
    def broken_at(self) -> str:
        """The first gap that only a new base backup leaves behind; empty: recovery is unbroken."""
        return self.gaps[0] if self.gaps and self.base_start is not None else ""

    @property
    def base_wanted(self) -> str:
        """Why a base backup should be taken now: a gap, or a promotion since the newest one; empty: none should."""
        if self.status is None or self.base_timeline is None:
            return ""
        if self.broken_at:
            return f"gap {self.broken_at}"
        return f"timeline {self.status.timeline}" if self.base_timeline < self.status.timeline else ""

    @property
    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong, in words; empty when WAL is stored as promised. What is not known is wrong."""
        if self.unknown or self.status is None:
            return (f"it is unknown whether WAL is stored: {self.unknown}{say_time_left(self.left_s)}",)
        found = [f"WAL is missing: {gap}" for gap in self.gaps]
        if self.status.unprotected:
            found.append(self.status.unprotected)
        if self.status.lag_s is None:
            return (*found, f"no WAL of timeline {self.status.timeline} is stored")
        if self.status.lag_s > self.most.total_seconds():
            lag = format_age(timedelta(seconds=self.status.lag_s))
            more = f"{self.status.lag_bytes} bytes more{say_time_left(self.left_s)}"
            found.append(f"the newest WAL was stored {lag} ago, and the server has {more}")
        return tuple(found)

    @property
    def sentence(self) -> str:
        """Return what a tired person needs, the fault first."""
        if faults := self.faults:
            waits = self.status is not None and faults[0] == self.status.unprotected
            asks = "" if waits else "; is the WAL receiver running?"
            return f"{faults[0][0].upper()}{faults[0][1:]}{asks}"
        lag_bytes = self.status.lag_bytes if self.status is not None else 0
        return f"WAL is stored up to the server's end, {counted(lag_bytes or 0, 'byte')} behind."

    def facts(self) -> dict[str, str | int | float]:
        """Return figures for the asset page, by names that keep their meaning: it plots them."""
        facts: dict[str, str | int | float] = {"summary": self.sentence, "gaps": len(self.gaps)}
        if self.gaps:
            facts["missing"] = "; ".join(self.gaps[:20])
        if self.archive is not None and self.archive.timelines:
            newest = self.archive.timelines[-1]
            covered = [one for row in self.archive.timelines for one in row.covered]
            facts["timeline"] = newest.timeline
            facts["stored_from_lsn"] = str(covered[0].start) if covered else "none"
            facts["stored_to_lsn"] = str(newest.last_lsn) if newest.last_lsn is not None else "none"
            facts["stored_wal_bytes"] = sum(one.size_bytes for one in covered)
            if newest.last_commit_at is not None:
                facts["last_commit_at"] = newest.last_commit_at.isoformat(timespec="milliseconds")
                behind = self.archive.read_at - newest.last_commit_at
                facts["rpo_observed_s"] = round(max(0.0, behind.total_seconds()), 1)
        if self.status is not None and self.status.lag_s is not None:
            facts["lag_s"] = round(self.status.lag_s, 3)
            facts["lag_bytes"] = self.status.lag_bytes or 0
        if self.left_s is not None and isfinite(self.left_s):
            facts["time_left_s"] = round(self.left_s)
        return facts


def read_wal_report(stack: Stack) -> WalReport:
    """Compare the primary with the archive. What cannot be asked is in the report, as unknown."""
    promise = wal_promise(stack.spec.backup.database.wal_archiving)
    most, left_s = stack.spec.objectives.rpo or promise, read_time_left(stack)
    try:
        status = read_wal_status(stack)
    except SynapseOpsError as fault:
        archive = _stored(stack)
        start, timeline = _base_start(stack, archive)
        return WalReport(archive, None, fault.message, most, start, left_s, timeline)
    try:
        start, timeline = _base_start(stack, status.archive)
        return WalReport(status.archive, status, "", most, start, left_s, timeline)
    except SynapseOpsError as fault:
        return WalReport(status.archive, None, fault.message, most, left_s=left_s)


def _base_start(stack: Stack, archive: WalArchive | None) -> tuple[Lsn | None, int | None]:
    """Return where replay of the newest base backup of a server begins, and on which timeline."""
    if archive is None:
        return None, None
    repository, identity = stack.database_repository(), archive.identity
    for backup_id in reversed(repository.store.list_prefixes(f"{identity}/{KIND_BASE}/{SUBJECT}/")):
        with suppress(ObjectMissing, DocumentUnreadable):  # one that is being taken, was not finished, or is damaged
            record = read_record(repository, BackupPlace(identity, KIND_BASE, SUBJECT, backup_id))
            if isinstance(record, BaseRecord):
                return Lsn.parse(record.start_lsn), record.timeline
    return None, None


def _stored(stack: Stack) -> WalArchive | None:
    """Return what the repository alone says, of the server whose WAL is newest."""
    try:
        repository = stack.database_repository()
        archives = [read_wal_archive(repository, identity) for identity in list_wal_identities(repository)]
    except SynapseOpsError:
        return None

    return max(archives, key=lambda archive: archive.stored_at or _NEVER, default=None)
