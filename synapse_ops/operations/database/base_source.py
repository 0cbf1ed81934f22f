"""Which server a base backup is copied from: the standby where the spec names one, so that the primary is spared.

A standby's copy begins at its last restartpoint, which may lie before all WAL that is stored. So the primary makes a
checkpoint, and the standby has replayed it before the copy is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import DeadlineExceeded, Refused, WrongIdentity
from synapse_ops.operations.database.wal_source import standby_conninfo
from synapse_ops.systems.postgres.connection import connect, conninfo_parts, describe, postgres_errors
from synapse_ops.systems.postgres.identity import read_identity

if TYPE_CHECKING:
    import psycopg

    from synapse_ops.domain.backup.layout import Identity
    from synapse_ops.operations.stack import Stack

CATCH_UP_S = 60.0
POLL_S = 0.1

_REDO = "SELECT redo_lsn::text, pg_current_wal_flush_lsn()::text FROM pg_control_checkpoint()"
_REPLAY = "SELECT pg_is_in_recovery(), pg_is_wal_replay_paused(), pg_last_wal_replay_lsn()::text"


@dataclass(frozen=True)
class BaseSource:
    """A server that is ready to be copied. earliest: before which the copy may not begin; None: wherever it does."""

    conninfo: str
    node: str
    is_standby: bool
    earliest: Lsn | None = None

    def require_start(self, start: Lsn) -> None:
        """Raise Refused where the copy begins at an older restartpoint, of which WAL may be stored nowhere."""
        if self.earliest is not None and start < self.earliest:
            raise Refused(f"the copy of {self.node} begins at {start}, before the checkpoint at {self.earliest}")


def primary_source(conninfo: str) -> BaseSource:
    """Return the server of `database.admin`."""
    return BaseSource(conninfo, describe(conninfo).rpartition("/")[0], is_standby=False)


@contextmanager
def standby_source(stack: Stack, primary: psycopg.Connection[Any], identity: Identity) -> Iterator[BaseSource]:
    """Yield the spec's standby once it has replayed a checkpoint that was made now.

    Raises Unreachable, WrongIdentity, Refused where it is no standby or stands still, DeadlineExceeded where it is too
    far behind.
    """
    from psycopg.conninfo import make_conninfo

    conninfo = standby_conninfo(stack, "postgres")
    with connect(conninfo) as control:
        node = f"{control.info.host}:{control.info.port}"
        if (found := read_identity(control)) != identity:
            raise WrongIdentity(f"the standby {node} is of another cluster: {found}, expected {identity}")
        with postgres_errors("a checkpoint of the primary"):
            primary.execute("CHECKPOINT")
            [(redo, end)] = primary.execute(_REDO).fetchall()
        _await_replay(control, node, Lsn.parse(end))
        own = {**conninfo_parts(conninfo), "host": control.info.host, "port": str(control.info.port)}
        yield BaseSource(make_conninfo("", **own), node, is_standby=True, earliest=Lsn.parse(redo))


def _await_replay(control: psycopg.Connection[Any], node: str, until: Lsn) -> None:
    deadline = time.monotonic() + CATCH_UP_S
    while True:
        with postgres_errors(f"the position of {node}"):
            [(is_standby, is_paused, lsn)] = control.execute(_REPLAY).fetchall()
        if not is_standby or lsn is None:
            raise Refused(f"{node} is no standby")
        if Lsn.parse(lsn) >= until:
            return
        if is_paused:
            raise Refused(f"replay of the standby {node} is paused at {lsn}")
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"the standby {node} has replayed to {lsn}, not to {until}, after {CATCH_UP_S:g} s")
        time.sleep(POLL_S)
