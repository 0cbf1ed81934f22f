"""Commits an empty transaction on the primary every few seconds, so that WAL of a quiet server tells the time as well.
At the same time it asks how fast WAL is written, and how long the slot keeps it.

Recovery knows moments by commits alone. Without one, a moment of a quiet hour cannot be restored to, and nobody can say
of a dead server's archive whether its last minutes were quiet or are lost. A commit of nothing leaves a record of some
hundred bytes and no table (adr/0006). What keeps it from being made is no fault of the receiver: the next may do.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from synapse_ops.domain.database.wal_space import WalPace
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.wal_source import SLOT
from synapse_ops.services.wal_receiver.session_thread import SessionThread
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.identity import commit_nothing
from synapse_ops.systems.postgres.wal_pace import read_wal_pace

INTERVAL_S = 10.0  # each makes a chunk: at one a second, a quiet server's would cost 13 USD a month in S3's requests

log = structlog.get_logger()


class EmptyCommits(SessionThread):
    """Makes them in a thread of its own while the block lasts. conninfo: of the primary; a secret.

    on_pace: called from that thread.
    """

    def __init__(self, conninfo: str, *, application_name: str, on_pace: Callable[[WalPace], None]) -> None:
        super().__init__("empty-commits")
        self._conninfo, self._application_name, self._on_pace = conninfo, application_name, on_pace

    def work(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                with connect(self._conninfo, application_name=self._application_name) as connection:
                    while not self._stop.is_set():
                        commit_nothing(connection)
                        self._on_pace(read_wal_pace(connection, SLOT))
                        self._stop.wait(INTERVAL_S)
            except SynapseOpsError as error:
                log.warning("the time could not be written into WAL", fault=error.message)
