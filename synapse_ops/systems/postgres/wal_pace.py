"""How fast a server writes WAL, and how much more it may write until it drops a slot that nobody reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal_space import WalPace
from synapse_ops.systems.postgres.connection import postgres_errors

if TYPE_CHECKING:
    import psycopg

_PACE = """
SELECT pg_current_wal_flush_lsn()::text,
  (pg_current_wal_flush_lsn() - redo_lsn)::float8
    / greatest(extract(epoch FROM clock_timestamp() - checkpoint_time), 1)::float8,
  CASE WHEN current_setting('max_slot_wal_keep_size') <> '-1' THEN
    coalesce((SELECT safe_wal_size FROM pg_replication_slots WHERE slot_name = %s), 0) END
FROM pg_control_checkpoint()"""


def read_wal_pace(connection: psycopg.Connection[Any], slot: str) -> WalPace:
    """Ask a primary. The pace is that since the beginning of its last checkpoint: of minutes, on a busy server."""
    with postgres_errors("the pace of WAL"):
        [(flushed, bytes_per_s, slot_bytes)] = connection.execute(_PACE, [slot]).fetchall()
    return WalPace(Lsn.parse(flushed), bytes_per_s, None if slot_bytes is None else max(0, int(slot_bytes)))
