"""The receiver's replication slot: made, made anew where it was lost, used only while it keeps what is not stored."""

from __future__ import annotations

import structlog

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.wal_source import SLOT, WalServer
from synapse_ops.systems.postgres.replication import ReplicationConnection

log = structlog.get_logger()


def ready_slot(server: WalServer, connection: ReplicationConnection) -> Lsn:
    """Make the slot, or make it anew where it was lost, and return from where it keeps WAL.

    We hold the lease: who streams from the slot is an earlier receiver, which may not know yet that it has ended.
    """
    lsn = keeping_slot(connection)
    server.end_stale_sender(SLOT)
    return lsn


def slot_to_stream_from(connection: ReplicationConnection, durable: Lsn) -> str | None:
    """Return the slot, if it keeps what is not stored; None: stream without it.

    One that was made anew keeps WAL from then on. What we acknowledge would move it back, to be lost again.
    """
    return SLOT if keeping_slot(connection) <= durable else None


def keeping_slot(connection: ReplicationConnection) -> Lsn:
    """Make the slot, or make it anew where it was lost; return from where it keeps WAL. Who streams from it is left."""
    found = connection.read_slot(SLOT)
    if found is not None and found.restart_lsn is None:
        log.error("the replication slot was lost: the server removed WAL that was not stored", slot=SLOT)
        connection.drop_slot(SLOT)
        found = None
    if found is None:
        connection.create_slot(SLOT)
        found = connection.read_slot(SLOT)
    if found is None or found.restart_lsn is None:
        raise SynapseOpsError(f'slot "{SLOT}" was made and keeps no WAL')
    return found.restart_lsn
