"""Which WAL may expire after base backups did, and which base backup carries the window. Pure: clocks are arguments.

"30 days" means that every second of the last 30 days is restorable. For a cluster that is: base backups of the window,
and the newest proven one before it whose WAL is unbroken up to the window, with all WAL from its start on. WAL goes in
groups of 256 segments, those of one index, so that no index names a segment that is gone. Positions alone decide, on
every timeline alike: what lies before the start of each base backup that stays can be replayed onto none of them.
Source of the rules: docs/repository-format.md, "Retention".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from synapse_ops.domain.backup.catalog import CatalogEntry
from synapse_ops.domain.backup.layout import KIND_BASE, BackupPlace
from synapse_ops.domain.backup.retention import Clocks, Decision, Rule, is_held, taken_at
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import WalArchive, reach
from synapse_ops.domain.database.wal_keys import GROUP
from synapse_ops.errors import Refused


@dataclass(frozen=True, slots=True)
class BaseSpan:
    """Where the WAL of a base backup lies: from where its replay begins to where the copy is consistent."""

    timeline: int
    start: Lsn
    stop: Lsn


@dataclass(frozen=True, slots=True)
class KeptWal:
    """WAL that a base backup needs: [start, stop), or everything from start on where stop is None."""

    start: Lsn
    stop: Lsn | None
    why: str

    def needs(self, group: WalGroup) -> bool:
        return group.stop > self.start and (self.stop is None or group.start < self.stop)


@dataclass(frozen=True, slots=True, order=True)
class WalGroup:
    """256 segments of a timeline, those that share an index. number: of its first segment, divided by 256."""

    timeline: int
    number: int
    segment_bytes: int

    @classmethod
    def of(cls, segment: Segment) -> WalGroup:
        return cls(segment.timeline, segment.number // GROUP, segment.size_bytes)

    @property
    def first(self) -> Segment:
        return Segment(self.timeline, self.number * GROUP, self.segment_bytes)

    @property
    def start(self) -> Lsn:
        return self.first.start

    @property
    def stop(self) -> Lsn:
        return Lsn(self.start.position + GROUP * self.segment_bytes)


def carries(archive: WalArchive, span: BaseSpan, since: datetime) -> bool:
    """Return whether recovery from a base backup, along the newest timeline, is unbroken up to a moment.

    The moment counts as reached where a later commit is, or where nothing is missing up to the end of the archive.
    """
    try:
        history = archive.history(archive.newest.timeline)
    except Refused:
        return False
    if history.timeline_at(Lsn(max(0, span.stop.position - 1))) != span.timeline:
        return False  # of a branch that a promotion left behind
    reached = reach(archive, history, span.start)
    if reached.stop < span.stop:
        return False
    return reached.gap is None or (reached.last_commit_at is not None and reached.last_commit_at >= since)


def kept_wal(
    decisions: Iterable[Decision],
    unfinished: Sequence[BackupPlace],
    span_of: Callable[[BackupPlace], BaseSpan | None],
    is_carrier: Callable[[CatalogEntry], bool],
    clocks: Clocks,
) -> tuple[KeptWal, ...]:
    """Return the WAL that base backups of one identity need, each with its reason.

    decisions: about every base backup. unfinished: prefixes without `backup.json`, in which work may go on. span_of:
    None for one that could not be read: unknown is never removed, so then everything stays. is_carrier: whether one is
    past the window, proven, and carries it.
    A pinned base backup that is older than a carrier keeps what makes it consistent, and no more.
    """
    kept = [row for row in decisions if row.entry.place.kind == KIND_BASE and not row.expires]
    found = [KeptWal(Lsn(0), None, f"base backup {one.backup_id} may be under way") for one in unfinished]
    if not kept:
        found.append(KeptWal(Lsn(0), None, "no base backup is there yet"))
    standing = [row.entry for row in kept if row.rule in {Rule.REACHES_BACK, Rule.LAST_PROVEN}]
    carriers = [taken_at(entry) for entry in standing if is_carrier(entry)]
    for row in kept:
        entry = row.entry
        if row.rule is Rule.NEEDED:
            continue  # what rests on it begins its replay at its own start
        why = f"base backup {entry.place.backup_id}"
        span = span_of(entry.place)
        if span is None:
            found.append(KeptWal(Lsn(0), None, f"{why}, which cannot be read"))
            continue
        is_read = is_held(entry.held_at, clocks)
        is_alone = row.rule is Rule.PINNED and not is_read and any(one > taken_at(entry) for one in carriers)
        found.append(KeptWal(span.start, span.stop if is_alone else None, why))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class WalDecision:
    """One group of segments, whether it expires, and the reason in one line that holds no clock reading."""

    group: WalGroup
    expires: bool
    reason: str


def plan_wal_retention(groups: Iterable[WalGroup], kept: Sequence[KeptWal]) -> Iterator[WalDecision]:
    """Yield a decision for every group, in order. kept: of all base backups of the same identity."""
    for group in sorted(groups):
        need = next((one for one in kept if one.needs(group)), None)
        if need is not None:
            yield WalDecision(group, False, f"needed by {need.why}")
        else:
            yield WalDecision(group, True, "WAL before every base backup that stays")
