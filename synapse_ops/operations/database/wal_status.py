"""Whether WAL arrives: what the receiver of a state directory says, and how the archive stands to the server."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.database.synchronous import unprotected
from synapse_ops.domain.database.wal import Segment
from synapse_ops.domain.database.wal_chain import WalArchive
from synapse_ops.domain.database.wal_space import time_left_s
from synapse_ops.errors import SynapseOpsError
from synapse_ops.operations.database.synchronous import read_synchronous
from synapse_ops.operations.database.wal_archive import read_wal_archive
from synapse_ops.operations.database.wal_source import open_wal_server, wal_conninfo
from synapse_ops.operations.stack import Stack

FOLDER = "wal"  # of the receiver, in a state directory


def is_receiving(state_dir: Path) -> bool:
    """Say whether a receiver holds the state directory's lock and serves its metrics."""
    folder = state_dir / FOLDER
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (folder / "address.json").exists()
    except OSError:
        return False
    return False


@dataclass(frozen=True)
class WalStatus:
    """How the archive stands. server_lsn: end of WAL on the primary, read before the archive; timeline: its own.

    last_lsn, last_commit_at: of what is stored of that timeline; None: nothing. lag_s: how old the newest stored bytes
    are while the server has more (by archive_command: one more finished segment), 0 when it has not; None: nothing is
    stored. unprotected: why commits do not wait as the spec wants; empty: they do.
    """

    archive: WalArchive
    server: str
    timeline: int
    server_lsn: Lsn
    last_lsn: Lsn | None
    last_commit_at: datetime | None
    lag_s: float | None
    unprotected: str = ""

    @property
    def lag_bytes(self) -> int | None:
        return None if self.last_lsn is None else max(0, self.server_lsn - self.last_lsn)


def read_wal_status(stack: Stack) -> WalStatus:
    """Compare the primary with what the repository holds of its WAL. Raises what either of them does."""
    with open_wal_server(wal_conninfo(stack)) as server:
        timeline, lsn = server.position()
        by_segment = stack.spec.backup.database.wal_archiving == "command"
        due = Segment.at(timeline, lsn, server.segment_bytes).start if by_segment else lsn
        waiting = unprotected(read_synchronous(server.connection, stack.spec))
    repository = stack.database_repository()
    archive = read_wal_archive(repository, server.identity, age_identities=stack.age_identities())
    row = archive.find(timeline)
    last = row.last_lsn if row is not None else None
    lag_s: float | None = None
    if row is not None and last is not None:
        stored_at = row.stored_at or archive.read_at
        lag_s = max(0.0, (archive.read_at - stored_at).total_seconds()) if last < due else 0.0
    return WalStatus(
        archive,
        server.address,
        timeline,
        lsn,
        last,
        row.last_commit_at if row is not None else None,
        lag_s,
        waiting,
    )


def read_time_left(stack: Stack) -> float | None:
    """Return for how many seconds the primary's slot keeps what is written at the present pace. The receiver's spool,
    which is known to its /health alone, may add to it. None: not known, as while the primary does not answer; or there
    is no slot, and its disk is the limit.
    """
    if stack.spec.backup.database.wal_archiving == "command":
        return None
    try:
        with open_wal_server(wal_conninfo(stack)) as server:
            return time_left_s(server.pace())
    except SynapseOpsError:
        return None
