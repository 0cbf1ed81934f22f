"""What is said of the WAL archive: how far it reaches, what is missing, and whether that is what was promised."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.ages import WAL_PROMISE
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.durations import format_age
from synapse_ops.errors import SynapseOpsError, counted
from synapse_ops.operations.database.wal_archive import list_wal_identities, read_wal_archive
from synapse_ops.operations.database.wal_status import WalStatus, read_wal_status

if TYPE_CHECKING:
    from synapse_ops.operations.stack import Stack

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class WalReport:
    """The archive and the primary, compared. status: None where the primary could not be asked; `unknown` says why.

    most: the oldest that WAL may be which is not stored.
    """

    archive: WalArchive | None
    status: WalStatus | None
    unknown: str
    most: timedelta

    @property
    def gaps(self) -> tuple[str, ...]:
        rows = self.archive.timelines if self.archive is not None else ()
        return tuple(str(gap) for row in rows for gap in row.gaps)

    @property
    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong, in words; empty when WAL is stored as promised. What is not known is wrong."""
        if self.unknown or self.status is None:
            return (f"nobody knows whether WAL is stored: {self.unknown}",)
        found = [f"WAL is missing: {gap}" for gap in self.gaps]
        if self.status.lag_s is None:
            return (*found, f"no WAL of timeline {self.status.timeline} is stored")
        if self.status.lag_s > self.most.total_seconds():
            lag = format_age(timedelta(seconds=self.status.lag_s))
            found.append(f"the newest WAL was stored {lag} ago, and the server has {self.status.lag_bytes} bytes more")
        return tuple(found)

    @property
    def sentence(self) -> str:
        """Return what a tired person needs, the fault first."""
        if self.faults:
            return f"{self.faults[0][0].upper()}{self.faults[0][1:]}; is the WAL receiver running?"
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
        return facts


def read_wal_report(stack: Stack) -> WalReport:
    """Compare the primary with the archive. What cannot be asked is in the report, as unknown."""
    most = stack.spec.objectives.rpo or WAL_PROMISE
    try:
        status = read_wal_status(stack)
    except SynapseOpsError as fault:
        return WalReport(_stored(stack), None, fault.message, most)
    return WalReport(status.archive, status, "", most)


def _stored(stack: Stack) -> WalArchive | None:
    """Return what the repository alone says, of the server whose WAL is newest."""
    try:
        repository = stack.database_repository()
        archives = [read_wal_archive(repository, identity) for identity in list_wal_identities(repository)]
    except SynapseOpsError:
        return None

    return max(archives, key=lambda archive: archive.stored_at or _NEVER, default=None)
