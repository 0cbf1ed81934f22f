"""Keeps a slot on every standby, behind what the repository holds: a promotion then loses no WAL to the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.wal_source import SLOT
from synapse_ops.services.wal_receiver.session_thread import SessionThread
from synapse_ops.systems.postgres.standby_slot import keep_standby_slot

INTERVAL_S = 10.0

log = structlog.get_logger()


class StandbySlots(SessionThread):
    """Moves them in a thread of its own while the block lasts. conninfos: of all nodes; secrets.

    stored: returns up to where the repository holds WAL. A standby that does not answer keeps its slot where it was.
    """

    def __init__(self, conninfos: Sequence[str], stored: Callable[[], Lsn], *, application_name: str) -> None:
        super().__init__("standby-slots")
        self._conninfos, self._stored, self._application_name = conninfos, stored, application_name

    def work(self) -> None:
        if len(self._conninfos) < 2:
            return  # there is no standby
        while True:
            for conninfo in self._conninfos:
                try:
                    keep_standby_slot(conninfo, SLOT, self._stored(), application_name=self._application_name)
                except SynapseOpsError as error:
                    log.warning("the slot of a node could not be moved", fault=error.message)
            if self._stop.wait(INTERVAL_S):
                return
