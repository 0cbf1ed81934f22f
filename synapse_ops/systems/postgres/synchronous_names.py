"""`synchronous_standby_names` of a running server: for whom its commits wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import DeadlineExceeded
from synapse_ops.systems.postgres.connection import postgres_errors

if TYPE_CHECKING:
    import psycopg

POLL_S = 0.02


def set_awaited(connection: psycopg.Connection[Any], setting: str, timeout_s: float) -> None:
    """Set it, on a standby too, and wait until the server has read it. Needs autocommit; raises DeadlineExceeded."""
    from psycopg import sql

    with postgres_errors("synchronous_standby_names"):
        connection.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(setting)))
        connection.execute("SELECT pg_reload_conf()")
        deadline_s = time.monotonic() + timeout_s
        while connection.execute("SELECT current_setting('synchronous_standby_names')").fetchone() != (setting,):
            if time.monotonic() > deadline_s:
                raise DeadlineExceeded(f"the server did not take synchronous_standby_names within {timeout_s:g} s")
            time.sleep(POLL_S)
