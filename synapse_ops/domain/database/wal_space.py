"""How much of a server's data volume WAL may take, and for how long that is enough. What is full stops the server.

The limit on slots is judged at checkpoints, so that the WAL of one checkpoint comes on top of it. Both together take at
most three eighths of a small volume; on a large one as much as lets the outage of a night pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.durations import format_age

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class WalSpace:
    """slot_bytes: max_slot_wal_keep_size. keep_bytes: wal_keep_size. checkpoint_bytes: max_wal_size. Whole MiB each."""

    slot_bytes: int
    keep_bytes: int
    checkpoint_bytes: int


def wal_space(volume_bytes: int) -> WalSpace:
    """Return what fits a data volume. The least values are those with which a server of 16 MiB segments starts."""
    return WalSpace(
        slot_bytes=_between(128 * _MIB, volume_bytes // 4, 10 * _GIB),
        keep_bytes=_between(0, volume_bytes // 16, _GIB),
        checkpoint_bytes=_between(80 * _MIB, volume_bytes // 8, 4 * _GIB),
    )


def _between(least: int, wanted: int, most: int) -> int:
    return max(least, min(wanted // _MIB * _MIB, most))


@dataclass(frozen=True, slots=True)
class WalPace:
    """How a server writes WAL. flushed: its end. slot_bytes: how much more until the slot is lost; None: no limit."""

    flushed: Lsn
    bytes_per_s: float
    slot_bytes: int | None


def time_left_s(pace: WalPace, spool_bytes: int = 0) -> float | None:
    """Return for how long the store may be away before WAL is lost, at this pace; None: the server's disk decides.

    spool_bytes: how much more the receiver takes. What the slot does not keep, the spool does: both have to be full.
    """
    if pace.slot_bytes is None:
        return None
    room = max(pace.slot_bytes, spool_bytes)
    return room / pace.bytes_per_s if pace.bytes_per_s > 0 else float("inf")


def say_time_left(left_s: float | None, words: str = "at the present pace some is lost in") -> str:
    """Return a clause behind a sentence on WAL that waits; empty where nothing is known, or it is far away."""
    if left_s is None or left_s > timedelta(days=30).total_seconds():
        return ""
    return f"; {words} {format_age(timedelta(seconds=left_s))}"
