"""From where WAL is received on a connection: what the repository holds is continued, or the server is refused.

The open segment is received again from its first byte, so that what is stored of it can be compared before anything is
added: a clone has the same system identifier, generation and timeline, and only its bytes tell it apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, TimelineHistory, WalRange
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.errors import Refused, WrongIdentity


@dataclass(frozen=True, slots=True)
class StreamStart:
    """segment: received from its first byte on. gap: what no server holds any more, and the repository never will."""

    segment: Segment
    gap: WalRange | None = None


def candidates(archive: WalArchive, history: TimelineHistory, slot_lsn: Lsn, segment_bytes: int) -> list[Segment]:
    """Return the segments to begin with, best first: only the first that the server still has can be received.

    history: of the server's timeline. Raises Refused for a server that was promoted away from what is stored.
    """
    from_slot = Segment.at(history.timeline_at(slot_lsn), slot_lsn, segment_bytes)
    stored = [row for row in archive.timelines if row.last_lsn is not None]
    if not stored:
        return [from_slot]
    newest = stored[-1]
    last = newest.last_lsn or Lsn(0)
    if newest.timeline > history.timeline:
        raise Refused(
            f"the repository holds WAL of timeline {newest.timeline}, this server writes timeline {history.timeline}",
            detail="it was promoted away, or restored from an older copy: nothing of it is stored",
            hint="Rejoin it as a standby. A copy that is to go live needs a generation of its own.",
        )
    try:
        end = history.end_of(newest.timeline)
    except ValueError:
        raise Refused(
            f"this server's timeline {history.timeline} does not descend from the stored timeline {newest.timeline}"
        ) from None
    if end is not None and last >= end:
        after = [fork.timeline for fork in history.forks if fork.timeline > newest.timeline] + [history.timeline]
        return [Segment.at(after[0], end, segment_bytes), from_slot]
    open_segment = Segment.at(newest.timeline, Lsn(last.position - 1), segment_bytes)
    following = Segment.at(newest.timeline, last, segment_bytes)
    return [open_segment, *([following] if following != open_segment else []), from_slot]


def plan_start(
    archive: WalArchive,
    history: TimelineHistory,
    *,
    flush_lsn: Lsn,
    slot_lsn: Lsn,
    segment_bytes: int,
    available: Collection[str],
) -> StreamStart:
    """Return where to begin. flush_lsn: the end of WAL on the server; available: the segments that it has, by name.

    Raises Refused as `candidates`, WrongIdentity for a server that ends before what is stored of its own timeline.
    """
    row = next((one for one in archive.timelines if one.timeline == history.timeline), None)
    last = row.last_lsn if row is not None else None
    if last is not None and flush_lsn < last:
        raise WrongIdentity(
            f"this server's WAL ends at {flush_lsn}, the repository holds timeline {history.timeline} up to {last}",
            detail="it is an older copy, or lost what it had written: nothing of it is stored",
            hint="A copy that is to go live needs a generation of its own.",
        )
    wanted = candidates(archive, history, slot_lsn, segment_bytes)
    chosen = next((one for one in wanted if one.name in available), wanted[-1])
    return StreamStart(chosen, gap_before(archive, history, chosen))


def left_over(archive: WalArchive, gap: WalRange, spooled: Mapping[Segment, int]) -> tuple[Segment, ...]:
    """Return the segments of a spool that go on where the store ends, in order: only they hold what a gap begins with.

    spooled: how many bytes of each are here, from its first on.
    """
    newest = [row for row in archive.timelines if row.last_lsn is not None][-1]
    segment = Segment.at(newest.timeline, gap.start, newest.segment_bytes)
    found: list[Segment] = []
    while segment in spooled and segment.start + spooled[segment] > gap.start:
        found.append(segment)
        if spooled[segment] < segment.size_bytes:
            break
        segment = segment.next()
    return tuple(found)


def gap_before(archive: WalArchive, history: TimelineHistory, chosen: Segment) -> WalRange | None:
    """Return what lies between the end of what is stored and the beginning of what can be received."""
    stored = [row for row in archive.timelines if row.last_lsn is not None and row.timeline <= chosen.timeline]
    if not stored:
        return None
    newest = stored[-1]
    end = history.end_of(newest.timeline) or chosen.start
    reached = min(newest.last_lsn or Lsn(0), end)
    return WalRange(chosen.timeline, reached, chosen.start) if reached < chosen.start else None
