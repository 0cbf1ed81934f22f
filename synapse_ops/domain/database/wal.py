"""WAL as PostgreSQL names it: segments, ranges of positions, and the history of timelines.

A segment's size is read from the server and never assumed. A file name alone does not tell a position: it needs that
size. Source: PostgreSQL documentation, "WAL Internals"; xlog_internal.h, timeline.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import DocumentUnreadable

_SEGMENT_NAME = re.compile(r"[0-9A-F]{24}", re.ASCII)
_FORK = re.compile(r"\s*(\d{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s+(.*))?", re.ASCII)
_LOG_BYTES = 1 << 32  # the two halves of a segment's name count within this


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One WAL file. number: from the beginning of the log; size_bytes: wal_segment_size, a power of two."""

    timeline: int
    number: int
    size_bytes: int

    @classmethod
    def at(cls, timeline: int, lsn: Lsn, size_bytes: int) -> Segment:
        """Return the segment that holds the byte at `lsn`."""
        return cls(timeline, lsn.position // size_bytes, size_bytes)

    @classmethod
    def parse(cls, name: str, size_bytes: int) -> Segment:
        """Return the segment of a file name; the inverse of `name`. Raises ValueError for what is none of this size."""
        per_log = _LOG_BYTES // size_bytes
        if _SEGMENT_NAME.fullmatch(name) is None or int(name[16:], 16) >= per_log:
            raise ValueError(f'"{name}" is not the name of a WAL segment of {size_bytes} bytes')
        return cls(int(name[:8], 16), int(name[8:16], 16) * per_log + int(name[16:], 16), size_bytes)

    @property
    def name(self) -> str:
        per_log = _LOG_BYTES // self.size_bytes
        return f"{self.timeline:08X}{self.number // per_log:08X}{self.number % per_log:08X}"

    @property
    def start(self) -> Lsn:
        return Lsn(self.number * self.size_bytes)

    @property
    def stop(self) -> Lsn:
        """The first position after it."""
        return Lsn((self.number + 1) * self.size_bytes)

    def next(self) -> Segment:
        return Segment(self.timeline, self.number + 1, self.size_bytes)


@dataclass(frozen=True, slots=True, order=True)
class WalRange:
    """Bytes of one timeline in the half-open range [start, stop)."""

    timeline: int
    start: Lsn
    stop: Lsn

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start} to {self.stop} of timeline {self.timeline}"


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a history leaves a timeline: `at` is the first position that is not part of it any more."""

    timeline: int
    at: Lsn
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """The way to a timeline. forks: its ancestors, oldest first; empty for one that has none."""

    timeline: int
    forks: tuple[Fork, ...] = ()

    @classmethod
    def parse(cls, timeline: int, data: bytes) -> TimelineHistory:
        """Return the history in a `.history` file. Raises DocumentUnreadable unless it is one, in ascending order.

        A recovery that ended before a fork which it was to follow leaves a timeline that ends before it begins: nothing
        is part of it, and the one before it ends earlier. PostgreSQL reads such a file the same way.
        """
        forks: list[Fork] = []
        for line in data.decode("utf-8", errors="replace").splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _FORK.fullmatch(line)
            if match is None:
                raise DocumentUnreadable(f'the history of timeline {timeline} holds the line "{line[:80]}"')
            forks.append(Fork(int(match[1]), Lsn.parse(match[2]), (match[3] or "").strip()))
        order = [fork.timeline for fork in forks] + [timeline]
        if order != sorted(set(order)):
            raise DocumentUnreadable(f"the history of timeline {timeline} is not in ascending order: {order}")
        way: list[Fork] = []
        for fork in forks:
            end = fork
            while way and way[-1].at > end.at:
                end = Fork(way.pop().timeline, end.at, end.reason)
            way.append(end)
        return cls(timeline, tuple(way))

    def timeline_at(self, lsn: Lsn) -> int:
        """Return the timeline that the byte at `lsn` is part of."""
        return next((fork.timeline for fork in self.forks if lsn < fork.at), self.timeline)

    @property
    def begins_at(self) -> Lsn:
        """Where the timeline itself begins."""
        return self.forks[-1].at if self.forks else Lsn(0)

    def end_of(self, timeline: int) -> Lsn | None:
        """Return the first position that is not on `timeline` any more; None for the last one, which has no end.

        Raises ValueError for a timeline that is not on this way.
        """
        if timeline == self.timeline:
            return None
        for fork in self.forks:
            if fork.timeline == timeline:
                return fork.at
        raise ValueError(f"timeline {timeline} is not an ancestor of timeline {self.timeline}")

    def ranges(self, start: Lsn, stop: Lsn) -> Iterator[WalRange]:
        """Yield [start, stop) cut at the forks, in order."""
        for timeline, end in [*((fork.timeline, fork.at) for fork in self.forks), (self.timeline, stop)]:
            cut = min(end, stop)
            if start < cut:
                yield WalRange(timeline, start, cut)
                start = cut
