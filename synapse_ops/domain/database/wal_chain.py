"""What an archive of WAL holds: which bytes, which of them are missing, and how far recovery can go from a position.

Bytes count however they are stored, as whole segments or as chunks of one. All questions are asked along the history
of one timeline: bytes of an ancestor count up to the fork, and never behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from operator import itemgetter

from synapse_ops.domain.backup.layout import Identity
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, TimelineHistory, WalRange
from synapse_ops.domain.database.wal_facts import ParameterChange, RestorePoint, SegmentFacts, TimelineClaim
from synapse_ops.domain.database.wal_keys import claim_key, history_key, segment_key
from synapse_ops.domain.database.wal_plan import Chunk
from synapse_ops.errors import ObjectMissing, Refused


@dataclass(frozen=True)
class ArchivedTimeline:
    """One timeline as it is stored.

    segments: whole ones with their facts, by number; unindexed: those of them that are in no index yet. indexed:
    numbers of all segments, whole or not, that are in one. unread: numbers of whole segments without facts. chunks: of
    each segment that has some, by number. open_facts: of the newest segment, which is not whole: None where its bytes
    could not be read. stored_at: when its newest bytes were stored, by the store's clock.
    """

    timeline: int
    segment_bytes: int
    claim: TimelineClaim | None = None
    history: TimelineHistory | None = None
    segments: Mapping[int, SegmentFacts] = field(default_factory=dict)
    unread: frozenset[int] = frozenset()
    chunks: Mapping[int, tuple[Chunk, ...]] = field(default_factory=dict)
    unindexed: Mapping[int, SegmentFacts] = field(default_factory=dict)
    indexed: frozenset[int] = frozenset()
    open_facts: SegmentFacts | None = None
    stored_at: datetime | None = None

    def segment(self, number: int) -> Segment:
        return Segment(self.timeline, number, self.segment_bytes)

    @cached_property
    def covered(self) -> tuple[WalRange, ...]:
        """The stored bytes, merged, in order."""
        size = self.segment_bytes
        pieces = [(number * size, (number + 1) * size) for number in {*self.segments, *self.unread}]
        for number, chunks in self.chunks.items():
            pieces += [(number * size + chunk.start, number * size + chunk.stop) for chunk in chunks]
        merged: list[list[int]] = []
        for start, stop in sorted(pieces):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], stop)
            else:
                merged.append([start, stop])
        return tuple(WalRange(self.timeline, Lsn(start), Lsn(stop)) for start, stop in merged)

    @property
    def gaps(self) -> tuple[WalRange, ...]:
        """The bytes that are missing between stored ones."""
        return tuple(WalRange(self.timeline, one.stop, other.start) for one, other in pairwise(self.covered))

    @property
    def last_lsn(self) -> Lsn | None:
        return self.covered[-1].stop if self.covered else None

    @cached_property
    def facts(self) -> tuple[tuple[int, SegmentFacts], ...]:
        """Facts by number of the segment, in order, with those of the open one."""
        rows = dict(self.segments)
        if self.open_facts is not None:
            rows.setdefault(Segment.parse(self.open_facts.segment, self.segment_bytes).number, self.open_facts)
        return tuple(sorted(rows.items()))

    @cached_property
    def last_commit_at(self) -> datetime | None:
        return max((facts.max_commit_at for _, facts in self.facts if facts.max_commit_at is not None), default=None)


@dataclass(frozen=True)
class WalArchive:
    """All timelines of one server, ascending. read_at: the store's clock when the reading began.

    acknowledged: a timeline and up to where its receiver has told the server that it is stored; None: not known.
    """

    identity: Identity
    timelines: tuple[ArchivedTimeline, ...]
    read_at: datetime
    acknowledged: tuple[int, Lsn] | None = None

    def find(self, number: int) -> ArchivedTimeline | None:
        """Return a timeline; None: nothing of it is stored."""
        return next((one for one in self.timelines if one.timeline == number), None)

    @property
    def stored_at(self) -> datetime | None:
        """When the newest bytes were stored, by the store's clock; None: nothing is."""
        return max((one.stored_at for one in self.timelines if one.stored_at is not None), default=None)

    def timeline(self, number: int) -> ArchivedTimeline:
        """Raises Refused for one of which nothing is stored."""
        found = self.find(number)
        if found is not None:
            return found
        known = ", ".join(str(one.timeline) for one in self.timelines) or "none"
        raise Refused(f"no WAL of timeline {number} is in the repository", detail=f"stored: {known}")

    @property
    def newest(self) -> ArchivedTimeline:
        """The highest timeline that recovery may follow: one whose history is stored, or one without ancestors."""
        for one in reversed(self.timelines):
            if one.timeline == 1 or one.history is not None:
                return one
        raise Refused(f"no WAL of server {self.identity} is in the repository")

    def history(self, timeline: int) -> TimelineHistory:
        """Return the way to a timeline. Raises Refused while its history is not stored."""
        found = self.timeline(timeline).history
        if found is None and timeline > 1:
            raise Refused(
                f"the history of timeline {timeline} is not in the repository: its WAL cannot be followed yet"
            )
        return found or TimelineHistory(timeline)

    def refuse_lost_documents(self, *, leads_to_newest: bool) -> None:
        """Raise ObjectMissing where WAL is stored and what leads to it is not: recovery would end in an older history.

        leads_to_newest: histories are asked for as well; one is stored as soon as its timeline's segment with the fork
        is, so that without it an ancestor would be taken for the newest.
        """
        for row in self.timelines:
            claim = row.claim
            if claim is None:
                raise _lost(claim_key(self.identity, row.timeline), f"WAL of timeline {row.timeline} is stored")
            if claim.forked_at is None or row.history is not None or not leads_to_newest:
                continue
            fork = Lsn.parse(claim.forked_at)
            first = Segment.at(row.timeline, fork, row.segment_bytes).start
            if any(one.start <= first and fork <= one.stop for one in row.covered):
                raise _lost(
                    history_key(self.identity, row.timeline),
                    f"WAL of timeline {row.timeline} is stored from its fork at {fork} on",
                    hint=f"`--timeline` follows another one: {row.timeline - 1}, say.",
                )

    def refuse_lost_wal(self, history: TimelineHistory, reached: WalReach) -> None:
        """Raise ObjectMissing where WAL was stored behind what recovery reaches: its end would be silently earlier."""
        lost = reached.gap
        if lost is None and self.acknowledged is not None:
            timeline, lsn = self.acknowledged
            if timeline == history.timeline and reached.stop < lsn:
                lost = WalRange(timeline, reached.stop, lsn)
        if lost is not None:
            row = self.timeline(lost.timeline)
            key = segment_key(self.identity, Segment.at(row.timeline, lost.start, row.segment_bytes), encrypted=False)
            raise _lost(
                key,
                f"or chunks of it: WAL was stored behind {lost.start}, and is missing up to {lost.stop}",
                hint=f"`--until lsn:{lost.start}` restores what lies before it.",
            )


def _lost(key: str, why: str, hint: str = "") -> ObjectMissing:
    cause = "Was WAL lost by the server (docs/wal.md), or does a lifecycle rule or a person remove objects?"
    return ObjectMissing(f"{key} is missing, {why}", hint=f"{hint} {cause}".strip())


@dataclass(frozen=True)
class WalReach:
    """How far recovery can go from `start`: every byte of [start, stop) is stored.

    gap: the missing bytes at `stop`, where more is stored behind them; None: the archive ends at `stop`.
    """

    start: Lsn
    stop: Lsn
    gap: WalRange | None
    _archive: WalArchive = field(repr=False, compare=False)
    _history: TimelineHistory = field(repr=False, compare=False)

    @cached_property
    def last_commit_at(self) -> datetime | None:
        """The running maximum of commit times; only an earlier moment can be a target. None: not one commit.

        Read when it is asked for: it looks at every segment, and a plan compares many base backups by `stop` alone.
        """
        facts = facts_between(self._archive, self._history, self.start, self.stop)
        return max((one.max_commit_at for _, one in facts if one.max_commit_at is not None), default=None)


def missing(archive: WalArchive, history: TimelineHistory, start: Lsn, stop: Lsn) -> tuple[WalRange, ...]:
    """Return the bytes of [start, stop) that are not stored, in order; empty means that all are."""
    return tuple(gap for wanted in history.ranges(start, stop) for gap in _missing(_covered(archive, wanted), wanted))


def _covered(archive: WalArchive, wanted: WalRange) -> Iterable[WalRange]:
    row = archive.find(wanted.timeline)
    return row.covered if row is not None else ()


def _missing(covered: Iterable[WalRange], wanted: WalRange) -> Iterator[WalRange]:
    start = wanted.start
    for one in covered:
        if one.stop <= start:
            continue
        if one.start >= wanted.stop:
            break
        if one.start > start:
            yield WalRange(wanted.timeline, start, one.start)
        start = one.stop
    if start < wanted.stop:
        yield WalRange(wanted.timeline, start, wanted.stop)


def reach(archive: WalArchive, history: TimelineHistory, start: Lsn) -> WalReach:
    """Return how far recovery that begins at `start` can follow this history."""
    end = max((one.stop for row in archive.timelines for one in row.covered), default=start)
    end = max(end, start, history.begins_at)
    gaps = missing(archive, history, start, end)
    stop = gaps[0].start if gaps else end
    behind = [one for wanted in history.ranges(stop, end) for one in _covered(archive, wanted)]
    has_more = any(one.stop > stop and one.start < (history.end_of(one.timeline) or one.stop) for one in behind)
    return WalReach(start, stop, gaps[0] if gaps and has_more else None, archive, history)


def facts_between(
    archive: WalArchive, history: TimelineHistory, start: Lsn, stop: Lsn
) -> Iterator[tuple[Segment, SegmentFacts]]:
    """Yield the facts of the segments that hold bytes of [start, stop), in the order of replay.

    Of a segment with a fork only the newer timeline's copy: the ancestor's also holds what was lost behind the fork.
    """
    for wanted in history.ranges(start, stop):
        row = archive.find(wanted.timeline)
        if row is None:
            continue
        size, end = row.segment_bytes, history.end_of(wanted.timeline)
        behind = -(-wanted.stop.position // size)
        if end is not None:
            behind = min(behind, end.position // size)
        first = bisect_left(row.facts, wanted.start.position // size, key=itemgetter(0))
        for number, facts in row.facts[first : bisect_left(row.facts, behind, key=itemgetter(0))]:
            yield row.segment(number), facts


def first_after(archive: WalArchive, history: TimelineHistory, start: Lsn, moment: datetime) -> Segment | None:
    """Return the segment in which the first commit later than `moment` ends, where recovery to that time ends.

    None: there is none as far as WAL is unbroken, so that time cannot be reached.
    """
    stop = reach(archive, history, start).stop
    for segment, facts in facts_between(archive, history, start, stop):
        if facts.max_commit_at is not None and facts.max_commit_at > moment:
            return segment
    return None


def restore_points(archive: WalArchive, history: TimelineHistory, start: Lsn) -> tuple[RestorePoint, ...]:
    """Return the named restore points that recovery from `start` meets, in order; a name may be there twice."""
    stop = reach(archive, history, start).stop
    rows = facts_between(archive, history, start, stop)
    points = (point for _, facts in rows for point in facts.restore_points)
    return tuple(point for point in points if start < Lsn.parse(point.stop_lsn) <= stop)


def parameters(archive: WalArchive, history: TimelineHistory, start: Lsn) -> tuple[ParameterChange, ...]:
    """Return the changes of settings that recovery from `start` meets, in order."""
    stop = reach(archive, history, start).stop
    rows = facts_between(archive, history, start, stop)
    changes = (change for _, facts in rows for change in facts.parameters)
    return tuple(change for change in changes if start <= Lsn.parse(change.lsn) < stop)
