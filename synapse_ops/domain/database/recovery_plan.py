"""Which base backup and which WAL bring a cluster to a moment; what cannot be reached is refused before all reading.

Times are compared with those that the server wrote: of base backups its clock at their end, of WAL the running maximum
of commit times. PostgreSQL recovers silently to the first commit where a time lies before the backup, and fails after
the last byte where one lies behind the last commit: both are refused here with the nearest moment that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.recovery_target import RecoveryTarget
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive, WalReach, first_after, reach, restore_points
from synapse_ops.errors import Refused

_HINT = "`synapse-ops info` shows what can be restored."


@dataclass(frozen=True, slots=True)
class BaseCandidate:
    """A base backup that exists."""

    place: BackupPlace
    record: BaseRecord

    @property
    def start(self) -> Lsn:
        return Lsn.parse(self.record.start_lsn)

    @property
    def stop(self) -> Lsn:
        return Lsn.parse(self.record.stop_lsn)


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What a recovery reads. until: the position up to which WAL may be needed; segments: names to offer, in order.

    end: of the WAL that is stored without a gap, along `history`.
    """

    base: BaseCandidate
    target: RecoveryTarget
    history: TimelineHistory
    until: Lsn
    end: Lsn
    segments: tuple[Segment, ...]

    @property
    def replays_all(self) -> bool:
        """Whether it ends where WAL ends. So does a recovery up to that position: to stop in front of it, the server
        would have to read a record behind it.
        """
        return self.target.kind == "latest" or self.target == RecoveryTarget("lsn", lsn=self.end)

    @property
    def wal_bytes(self) -> int:
        return max(0, self.until - self.base.start)


def plan_recovery(
    bases: Sequence[BaseCandidate], archive: WalArchive, target: RecoveryTarget, *, timeline: int | None = None
) -> RecoveryPlan:
    """Return how to reach the target: from the newest base backup before it, along a timeline (None: the newest).

    bases: of one identity, in any order. Raises Refused with the value asked for and the nearest one that exists, and
    ObjectMissing where less would be restored than was once stored.
    """
    archive.refuse_lost_documents(leads_to_newest=timeline is None)
    history = archive.history(timeline if timeline is not None else archive.newest.timeline)
    usable = [(base, reached) for base in _newest_first(bases, history) if (reached := _reach(archive, history, base))]
    if not usable:
        for one in _newest_first(bases, history)[:1]:
            archive.refuse_lost_wal(history, reach(archive, history, one.start))
        raise Refused(
            f"no base backup with its WAL is in the repository, along timeline {history.timeline}",
            detail=f"base backups: {len(bases)}",
            hint="`synapse-ops backup now cluster` takes one.",
        )
    base, reached, until = _choose(usable, archive, history, target)
    if target.kind == "latest":
        archive.refuse_lost_wal(history, reached)
    first = Segment.at(history.timeline, base.start, base.record.source.wal_segment_bytes)
    last = Segment.at(history.timeline, _last_byte(reached.stop), first.size_bytes)
    segments = tuple(
        Segment(history.timeline_at(_last_byte(piece.stop)), number, first.size_bytes)
        for number in range(first.number, last.number + 1)
        for piece in (Segment(history.timeline, number, first.size_bytes),)
    )
    return RecoveryPlan(base, target, history, until, reached.stop, segments)


def _last_byte(stop: Lsn) -> Lsn:
    return Lsn(max(0, stop.position - 1))


def _newest_first(bases: Sequence[BaseCandidate], history: TimelineHistory) -> list[BaseCandidate]:
    on_the_way = [base for base in bases if history.timeline_at(_last_byte(base.stop)) == base.record.timeline]
    return sorted(on_the_way, key=lambda base: base.stop, reverse=True)


def _reach(archive: WalArchive, history: TimelineHistory, base: BaseCandidate) -> WalReach | None:
    reached = reach(archive, history, base.start)
    return reached if reached.stop >= base.stop else None


_Usable = tuple[BaseCandidate, WalReach]


def _choose(
    usable: list[_Usable], archive: WalArchive, history: TimelineHistory, target: RecoveryTarget
) -> tuple[BaseCandidate, WalReach, Lsn]:
    newest, oldest = usable[0], usable[-1]
    if target.kind == "immediate":
        return (*newest, newest[0].stop)
    if target.kind == "time" and target.time is not None:
        return _choose_by_time(usable, archive, history, target.time)
    if target.kind == "lsn" and target.lsn is not None:
        for base, reached in usable:
            if base.stop <= target.lsn:
                if target.lsn > reached.stop:
                    archive.refuse_lost_wal(history, reached)
                    raise Refused(
                        f"cannot restore to {target.lsn}: WAL is stored up to {reached.stop}",
                        detail=_gap(reached),
                        hint=_HINT,
                    )
                return base, reached, target.lsn
        raise Refused(
            f"cannot restore to {target.lsn}: the oldest base backup is consistent from {oldest[0].stop} on", hint=_HINT
        )
    if target.kind == "name":
        return _choose_by_name(usable, archive, history, target.name)
    return (*newest, newest[1].stop)  # latest; and a transaction, of which only replay shows whether it is there


def _choose_by_time(
    usable: list[_Usable], archive: WalArchive, history: TimelineHistory, moment: datetime
) -> tuple[BaseCandidate, WalReach, Lsn]:
    last_commit_at = usable[0][1].last_commit_at
    for base, reached in usable:
        if base.record.stopped_time > moment:
            continue
        last_commit_at = reached.last_commit_at
        segment = first_after(archive, history, base.start, moment)
        if segment is None:
            break
        return base, reached, min(segment.stop, reached.stop)
    else:
        first = usable[-1][0].record.stopped_time
        raise Refused(
            f"cannot restore to {moment.isoformat()}: the oldest base backup ended at {first.isoformat()}",
            hint=f"The earliest moment is {first.isoformat()}. {_HINT}",
        )
    archive.refuse_lost_wal(history, usable[0][1])
    known = last_commit_at.isoformat() if last_commit_at else "none"
    raise Refused(
        f"cannot restore to {moment.isoformat()}: no later commit is stored, and recovery would not know where to stop",
        detail=f"last commit: {known}; {_gap(usable[0][1])}{_unread(archive)}",
        hint="`--until latest` restores everything that is stored.",
    )


def _choose_by_name(
    usable: list[_Usable], archive: WalArchive, history: TimelineHistory, name: str
) -> tuple[BaseCandidate, WalReach, Lsn]:
    points = restore_points(archive, history, usable[-1][0].start)
    found = [Lsn.parse(point.stop_lsn) for point in points if point.name == name]
    if len(found) > 1:
        raise Refused(
            f'restore point "{name}" is stored {len(found)} times, at {", ".join(map(str, found))}',
            hint=f"Restore to one of them by its position: --until lsn:{found[-1]}",
        )
    for base, reached in usable:
        if found and base.stop <= found[0] <= reached.stop:
            return base, reached, found[0]
    archive.refuse_lost_wal(history, usable[0][1])
    known = ", ".join(dict.fromkeys(point.name for point in points)) or "none"
    raise Refused(f'restore point "{name}" cannot be reached', detail=f"stored: {known}", hint=_HINT)


def _unread(archive: WalArchive) -> str:
    names = [row.segment(number).name for row in archive.timelines for number in sorted(row.unread)]
    return f"; facts are missing of {', '.join(names[:20])}" if names else ""


def _gap(reached: WalReach) -> str:
    return f"missing WAL: {reached.gap}" if reached.gap is not None else f"the archive ends at {reached.stop}"
