"""Between which times every moment of a cluster can be restored, by base backups and the WAL behind each. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from synapse_ops.domain.backup.base_record import BaseRecord
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_chain import WalArchive, WalReach, reach
from synapse_ops.domain.recovery.window_picture import Span


def restorable_spans(bases: Iterable[BaseRecord], archive: WalArchive, to_at: datetime) -> tuple[Span, ...]:
    """Return the spans in order, apart from one another. bases: of the archive's server, in any order.

    to_at: the last moment, where WAL is unbroken up to its end. A base backup on a branch that a promotion left behind
    is in none: only `--timeline` leads there.
    """
    history = archive.history(archive.newest.timeline)
    spans: list[Span] = []
    reached: WalReach | None = None
    for base in sorted(bases, key=lambda one: Lsn.parse(one.start_lsn)):
        start, stop = Lsn.parse(base.start_lsn), Lsn.parse(base.stop_lsn)
        if history.timeline_at(Lsn(max(0, stop.position - 1))) != base.timeline:
            continue
        if reached is None or start >= reached.stop:  # else WAL is unbroken from the one before on
            reached = reach(archive, history, start)
        if reached.stop < stop:
            continue
        last = to_at if reached.gap is None else reached.last_commit_at
        span = (base.stopped_time, max(base.stopped_time, last or base.stopped_time))
        if spans and span[0] <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], span[1]))
        else:
            spans.append(span)
    return tuple(spans)
