"""Dagster's PostgreSQL storage with connections that stay open: `storage.custom` of dagster.yaml names it.

Shipped, only the webserver keeps connections: the daemon, the code server and each run connect anew for every query,
with TLS and authentication, which is two thirds of what an idle daemon does. Run, event and schedule storage lie in one
database, so one pool of a process serves all three. A connection is asked before its use: one that a restart of the
server ended is replaced, not found out by a query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config, set_pg_statement_timeout

if TYPE_CHECKING:
    from dagster import DagsterInstance

POOL_SIZE = 2  # daemon, code server, webserver and a dozen runs fit into a server of 60 connections
MAX_OVERFLOW = 20  # what threads need at once is opened, and closed after use
RECYCLE_S = 1800


class PooledPostgresStorage(DagsterPostgresStorage):
    """The same tables and queries over one pool. Safe in threads; a new process makes its own."""

    def __init__(self, *args: Any, **more: Any) -> None:
        from sqlalchemy import create_engine

        super().__init__(*args, **more)
        engine = create_engine(
            self.postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            pool_recycle=RECYCLE_S,
            pool_pre_ping=True,
        )
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine  # noqa: SLF001 - what optimize_for_webserver of each does too

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> PooledPostgresStorage:
        return cls(pg_url_from_config(config_value), config_value.get("should_autocreate_tables", True), inst_data)


def limit_statements(instance: DagsterInstance, timeout_ms: int) -> None:
    """End statements of this process that take longer: a page that asks for too much must not keep the database busy.

    Dagster's own `optimize_for_webserver` also makes three new pools that do not ask a connection before its use: after
    a restart of the server each of their connections fails a page once.
    """
    from sqlalchemy import event

    engine = instance.run_storage._engine  # type: ignore[attr-defined]  # noqa: SLF001 - of all three, see above
    event.listen(engine, "connect", lambda connection, _: set_pg_statement_timeout(connection, timeout_ms))
    engine.dispose()  # what was opened before has no limit
