"""How much of a server's data volume WAL may take. What is full stops the server: PostgreSQL panics.

The limit on slots is judged at checkpoints, so that the WAL of one checkpoint comes on top of it. Both together take at
most three eighths of a small volume; on a large one as much as lets the outage of a night pass.
"""

from __future__ import annotations

from dataclasses import dataclass

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
