"""Has the primary's commits wait as the spec says, while we receive from it: a look a second, in a thread of its own.

It is the receiver's work because the receiver follows every promotion, runs wherever WAL is archived, and is one of
those that are waited for. Where the spec wants nothing, it looks once: what an earlier spec had set is taken back.
"""

from __future__ import annotations

import structlog

from synapse_ops.domain.database.synchronous import RECEIVER, unprotected
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.synchronous import keep_synchronous
from synapse_ops.services.wal_receiver.session_thread import SessionThread
from synapse_ops.services.wal_receiver.standing import Standing
from synapse_ops.spec import Spec
from synapse_ops.systems.postgres.connection import connect

INTERVAL_S = 1.0

log = structlog.get_logger()


class SynchronousCommits(SessionThread):
    """Works while the block lasts. conninfo: of the primary; a secret. What is wrong is in `standing.unprotected`."""

    def __init__(self, conninfo: str, spec: Spec, standing: Standing) -> None:
        super().__init__("synchronous-commits")
        self._conninfo, self._spec, self._standing = conninfo, spec, standing

    def work(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self._conninfo, application_name=RECEIVER) as connection:
                    while not self._stop.is_set():
                        found = keep_synchronous(connection, self._spec)
                        self._say(unprotected(found))
                        if not found.is_wanted:
                            return
                        self._stop.wait(INTERVAL_S)
            except SynapseOpsError as error:
                self._say(f"for whom commits wait is not known: {error.message}")
                self._stop.wait(INTERVAL_S)

    def _say(self, fault: str) -> None:
        if self._stop.is_set():
            return  # the next session's word counts
        if fault != self._standing.unprotected:
            log.warning("synchronous commits", fault=fault or "none any more")
        self._standing.unprotected = fault
