"""A physical slot on a standby, moved by us: so the server keeps WAL that the repository lacks when it is promoted.

A primary's slots are not its standby's. Nobody reads from this one before a promotion, so it stays where it was put.
Source: PostgreSQL documentation, pg_replication_slot_advance; it goes no further than replay has come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.systems.postgres.connection import connect, postgres_errors

if TYPE_CHECKING:
    import psycopg

_DROP_LOST = """
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
WHERE slot_name = %s AND NOT active AND restart_lsn IS NULL"""
_MAKE = """
SELECT pg_create_physical_replication_slot(%s, true)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)"""
_ADVANCE = """
SELECT pg_replication_slot_advance(slot_name, %s::pg_lsn) FROM pg_replication_slots
WHERE slot_name = %s AND NOT active AND restart_lsn < %s::pg_lsn AND pg_last_wal_replay_lsn() > restart_lsn"""
_SLOT = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s"


@dataclass(frozen=True, slots=True)
class StandbySlot:
    """Of one node. keeps_from: None where it has no such slot, or one that was lost."""

    is_standby: bool
    keeps_from: Lsn | None


def read_standby_slot(connection: psycopg.Connection[Any], name: str) -> StandbySlot:
    with postgres_errors("the replication slots of a standby"):
        [(is_standby,)] = connection.execute("SELECT pg_is_in_recovery()").fetchall()
        row = connection.execute(_SLOT, [name]).fetchone()
    return StandbySlot(is_standby, Lsn.parse(row[0]) if row is not None and row[0] is not None else None)


def keep_standby_slot(conninfo: str, name: str, stored: Lsn, *, application_name: str) -> None:
    """Make the slot if the node is a standby without it, and move it up to `stored`: what lies before is not needed."""
    with connect(conninfo, application_name=application_name) as connection:
        if not read_standby_slot(connection, name).is_standby:
            return
        with postgres_errors("the replication slot of a standby"):
            connection.execute(_DROP_LOST, [name])
            connection.execute(_MAKE, [name, name])
            connection.execute(_ADVANCE, [str(stored), name, str(stored)])
