"""What the WAL receiver stores next: the open segment in chunks, a finished one whole, many chunks as one.

A segment that fills within one interval gets no chunks. A segment that is open for hours would have 10,000 of them,
each a GET in a restore: so no more than 128 are left beside each other, by merging 64 adjacent ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import TimelineHistory, WalRange

MOST_CHUNKS = 128
MERGED_CHUNKS = 64
MOST_CHUNK_BYTES = 16 * 1024 * 1024  # of WAL: what one put holds in memory


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """Stored bytes of a segment, as offsets in it: [start, stop)."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes of the open segment to store as an object. is_segment: the whole of it, under the segment's own key."""

    start: int
    stop: int
    is_segment: bool = False


def plan_upload(stored: int, received: int, segment_bytes: int) -> Upload | None:
    """Return what to store of the open segment; None: nothing is new.

    stored, received: offsets in the segment up to which its bytes are durable in the store, and are here.
    """
    if received == segment_bytes:
        return Upload(0, segment_bytes, is_segment=True)
    if received > stored:
        return Upload(stored, min(received, stored + MOST_CHUNK_BYTES))
    return None


def plan_merge(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """Return the adjacent chunks to store as one; empty while there are few enough.

    Those whose largest is the smallest: so 64 merged ones are merged with each other, and not with each new handful.
    """
    if len(chunks) < MOST_CHUNKS:
        return ()
    ordered = sorted(chunks)
    windows = [tuple(ordered[n : n + MERGED_CHUNKS]) for n in range(len(ordered) - MERGED_CHUNKS + 1)]
    adjacent = [one for one in windows if not gaps_between(one)]
    return min(adjacent, key=lambda one: max(chunk.stop - chunk.start for chunk in one), default=())


def contiguous_stop(chunks: Iterable[Chunk], start: int = 0) -> int:
    """Return up to where chunks, which may overlap, cover a segment without a gap from `start` on."""
    for chunk in sorted(chunks):
        if chunk.start > start:
            break
        start = max(start, chunk.stop)
    return start


def gaps_between(chunks: Iterable[Chunk]) -> bool:
    ordered = sorted(chunks)
    return contiguous_stop(ordered, ordered[0].start) < max(chunk.stop for chunk in ordered) if ordered else False


def may_publish_history(history: TimelineHistory, covered: Iterable[WalRange], segment_bytes: int) -> bool:
    """Return whether a timeline's history may be stored: a reader that sees it takes that timeline for the newest.

    Without the new timeline's own copy of the segment with the fork, recovery would take the ancestor's: it replays
    past the fork what was lost there. So that segment comes first, from its first byte; or no ancestor's WAL is there.
    """
    covered = list(covered)
    fork = history.begins_at
    needed = Lsn(fork.position // segment_bytes * segment_bytes)
    own = any(one.timeline == history.timeline and one.start <= needed and one.stop >= fork for one in covered)
    ancestors = {fork.timeline for fork in history.forks}
    return own or not any(one.timeline in ancestors and one.stop > needed for one in covered)
