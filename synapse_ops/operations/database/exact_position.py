"""What a standby holds at one exact WAL position: the reference of a base backup, whose own files have none.

A base backup is copied while its source changes. But WAL makes the same of it everywhere: at position L the standby and
a copy recovered to exactly L hold the same rows. So the standby is read at L behind each base backup, and the proof of
that backup recovers to L first and compares. Without a standby in `database.nodes` nothing is compared, which the proof
says. What keeps the standby from being read spoils no backup: it is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from synapse_ops.domain.backup.base_record import ExactPosition
from synapse_ops.domain.database.cluster_fingerprint import ClusterFingerprint
from synapse_ops.domain.database.fingerprint import Fingerprint
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.domain.progress import ReportProgress
from synapse_ops.errors import SynapseOpsError, Unreachable, WrongIdentity
from synapse_ops.operations.database.wal_source import names_standby, standby_conninfo
from synapse_ops.systems.postgres.connection import connect
from synapse_ops.systems.postgres.fingerprint import read_fingerprint
from synapse_ops.systems.postgres.identity import read_identity
from synapse_ops.systems.postgres.standby_snapshots import standby_snapshots

if TYPE_CHECKING:
    from synapse_ops.domain.backup.layout import Identity
    from synapse_ops.operations.stack import Stack

FINGERPRINT = "fingerprint.json"
TRIES = 3  # a table that is being changed at the position keeps it from being read; another position may do
PAUSE_S = 1.0


@dataclass(frozen=True)
class StandbyReading:
    """exact: of what was read; document: its bytes, for `fingerprint.json`. Both None: nothing was. warning: why."""

    exact: ExactPosition | None = None
    document: bytes | None = None
    warning: str = ""


def read_standby(stack: Stack, identity: Identity, after: Lsn, progress: ReportProgress) -> StandbyReading:
    """Read every database of the spec's standby at one position behind `after`. Raises nothing of what it meets."""
    if not names_standby(stack):
        return StandbyReading()
    conninfo_of = partial(standby_conninfo, stack)
    for tries_left in reversed(range(TRIES)):
        try:
            return _read_once(conninfo_of, identity, after, progress)
        except SynapseOpsError as error:
            if not tries_left or type(error) is Unreachable:  # Throttled is one as well, and worth another try
                why = "; ".join(filter(None, [error.message, *error.detail.splitlines()[:1], error.hint]))
                return StandbyReading(warning=f"its proof will compare no rows: the standby could not be read: {why}")
        time.sleep(PAUSE_S)
    raise AssertionError("unreachable")


def _read_once(
    conninfo_of: Callable[[str], str], identity: Identity, after: Lsn, progress: ReportProgress
) -> StandbyReading:
    with connect(conninfo_of("postgres")) as connection:
        found = read_identity(connection)
        node = f"{connection.info.host}:{connection.info.port}"
    if found != identity:
        raise WrongIdentity(f"the standby {node} is of another cluster: {found}, expected {identity}")
    with standby_snapshots(conninfo_of, after) as snapshots:
        databases: dict[str, Fingerprint] = {}
        for one in snapshots.databases:
            found_rows = read_fingerprint(one.conninfo, sessions=[one.session], progress=progress)
            databases[one.name] = found_rows.with_sequences(one.sequences)
    content = ClusterFingerprint(snapshots.lsn, databases)
    exact = ExactPosition(
        lsn=str(content.lsn),
        node=node,
        last_commit_at=snapshots.last_commit_at,
        table_count=content.table_count,
        row_count=content.row_count,
        digest=content.digest(),
    )
    return StandbyReading(exact, content.to_json())
