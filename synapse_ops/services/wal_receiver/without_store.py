"""What a session does while the store, which it begins with, gives no answer: it takes WAL into the spool.

Nothing is stored and nothing is acknowledged, so nothing has to be known of the repository. The next session decides
whether what is here is needed: only where the server has dropped its slot meanwhile. Who streams already is left alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.wal import Segment, TimelineHistory
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_start import StreamStart
from synapse_ops.errors import Refused, Unreachable
from synapse_ops.operations.database.wal_source import WalServer
from synapse_ops.services.wal_receiver.lease import HeldLease
from synapse_ops.services.wal_receiver.session import Session
from synapse_ops.services.wal_receiver.slot import keeping_slot
from synapse_ops.systems.postgres.replication import ReplicationConnection

PATIENCE_S = 5.0
RETRY_S = 1.0


class LeaseTaking(threading.Thread):
    """Takes the lease as soon as the store answers. fault: why it does not; error: what is no matter of waiting."""

    def __init__(self, lease: HeldLease) -> None:
        super().__init__(name="wal-lease-taking", daemon=True)
        self._lease = lease
        self.fault = ""
        self.error: BaseException | None = None

    def run(self) -> None:
        while True:
            try:
                self._lease.take()
            except Unreachable as away:
                self.fault = away.message
                time.sleep(RETRY_S)
            except BaseException as error:  # noqa: BLE001 - the session raises it
                self.error = error
                return
            else:
                return

    def arrived(self) -> None:
        """As the uploader is told: nobody waits for WAL."""


def session_without_store(
    server: WalServer, connection: ReplicationConnection, spooled: Sequence[Segment]
) -> tuple[Session, Lsn]:
    """Return a session that only spools, and from where the slot keeps WAL.

    spooled: with which the spool can go on, the best first; empty: there is nothing in it. Only the timeline that the
    server writes is taken: of its ancestors it keeps what the slot needs. Raises Refused where nothing follows on.
    """
    system = connection.identify()
    data = connection.timeline_history(system.timeline) if system.timeline > 1 else b""
    history = TimelineHistory.parse(system.timeline, data)
    slot_lsn = keeping_slot(connection)
    first = Segment.at(system.timeline, max(slot_lsn, history.begins_at), server.segment_bytes)
    wanted = [one for one in spooled if one.timeline == system.timeline]
    wanted += [first] if not spooled or first > spooled[0] else []
    available = server.stored_segments([one.name for one in wanted])
    segment = next((one for one in wanted if one.name in available), None)
    if segment is None:
        raise Refused("the server has nothing that follows on what is in the spool")
    archive = WalArchive(server.identity, (), datetime.now(UTC))
    return Session(server, archive, StreamStart(segment), history, data), slot_lsn
