"""One exported snapshot, and the sessions that read it beside pg_dump, with every table that it shows locked.

A snapshot keeps no table: one that another session drops before pg_dump has locked it ends pg_dump. And once a DROP or
an ALTER waits for pg_dump's lock, every later reader of that table waits behind it. So our sessions are open before
pg_dump starts, and lock the tables as soon as pg_dump has, the newest first: those are the ones that come and go.
What cannot be had in one snapshot is an error that `is_concurrent_ddl` knows; another snapshot may do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from synapse_ops.errors import SynapseOpsError
from synapse_ops.systems.postgres.connection import begin_reading, connect, describe, postgres_errors, set_session

APPLICATION = "synapse-ops snapshot"
SESSIONS = 3
LOCKED_BY_ALL = 2000  # of the newest tables; the server's room for locks is limited, and more are locked by one session
TABLES_PER_LOCK = 100
LOCK_WAIT = "2s"  # pg_dump has the tables by then: who waits, waits behind a DROP or an ALTER that waits for pg_dump
READING_LOCK_WAIT = "60s"
LOOK_S = 0.003  # pg_dump needs the processor more than we do

_VIRTUAL_TRANSACTION = """
SELECT virtualtransaction FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'virtualxid'"""
_IS_CONNECTED = (
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s AND datname = current_database())"
)
_TABLES = """
SELECT c.oid::int8, format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                                             AND d.deptype = 'e')
 ORDER BY c.oid DESC"""
_IS_LOCKED = """
SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                WHERE l.relation = %(oid)s AND l.granted AND a.application_name = %(application)s)"""
_REPLACED = """
SELECT listed.name FROM unnest(%s::oid[], %s::text[]) AS listed(oid, name)
 WHERE to_regclass(listed.name)::oid IS DISTINCT FROM listed.oid"""

_GONE = re.compile(
    r"^(40P01|42P01|42883|42704|42703|3F000) |cache lookup failed|could not open relation with OID|returned no data"
    r"|(relation|schema|type|function|column|index|constraint|snapshot) .* does not exist|invalid snapshot identifier",
    re.MULTILINE,
)


class TableGone(SynapseOpsError):
    """A table of the snapshot is gone, or another session waits to change it."""


class ReadingSessions:
    """Three sessions that will read one snapshot. It is taken by `export`, and lives as long as they do."""

    def __init__(self, sessions: Sequence[psycopg.Connection[Any]]) -> None:
        self._sessions = tuple(sessions)
        self._tables: Sequence[tuple[int, str]] = ()

    @property
    def control(self) -> psycopg.Connection[Any]:
        """The session that exports the snapshot."""
        return self._sessions[0]

    @property
    def of_rows(self) -> Sequence[psycopg.Connection[Any]]:
        return self._sessions[:-1]

    @property
    def of_catalogs(self) -> psycopg.Connection[Any]:
        return self._sessions[-1]

    def predict_name(self) -> str:
        """Return the name that the snapshot will have when the next statement of these sessions exports it.

        Source: ExportSnapshot in src/backend/utils/time/snapmgr.c: virtual transaction id, and a number.
        """
        [(text,)] = self.control.execute(_VIRTUAL_TRANSACTION).fetchall()
        process, _, transaction = text.partition("/")
        return f"{int(process):08X}-{int(transaction) + 1:08X}-1"

    def await_session(self, application_name: str, has_ended: Callable[[], bool]) -> None:
        """Return once a session of that name has connected, or its program has ended."""
        while not has_ended():
            time.sleep(LOOK_S / 3)
            if self._sessions[1].execute(_IS_CONNECTED, [application_name]).fetchone() == (True,):
                return

    def export(self) -> str:
        """Take the snapshot and return its name."""
        begin_reading(self.control)
        [(name,)] = self.control.execute("SELECT pg_export_snapshot()").fetchall()
        return str(name)

    def lock_tables(self, name: str, application_name: str, has_ended: Callable[[], bool]) -> None:
        """Lock the snapshot's tables once the session of that application, pg_dump's, has locked the newest of them.

        name: of the snapshot. has_ended: whether pg_dump has. Raises TableGone.
        """
        for session in self._sessions[1:]:
            begin_reading(session, name)
        self._tables = self.control.execute(_TABLES).fetchall()
        try:
            if self._tables:
                self._await_lock(application_name, has_ended)
            for start in range(0, len(self._tables), TABLES_PER_LOCK):
                batch = ", ".join(f"ONLY {table}" for _, table in self._tables[start : start + TABLES_PER_LOCK])
                for session in self._sessions if start < LOCKED_BY_ALL else self._sessions[:1]:
                    session.execute(f"LOCK TABLE {batch} IN ACCESS SHARE MODE")
        except psycopg.errors.LockNotAvailable:
            raise TableGone("another session waits to change or drop a table") from None
        self._raise_if_replaced()
        for session in self._sessions:
            session.execute(f"SET LOCAL lock_timeout = '{READING_LOCK_WAIT}'")

    def _await_lock(self, application_name: str, has_ended: Callable[[], bool]) -> None:
        parameters = {"oid": self._tables[0][0], "application": application_name}
        while not has_ended():
            time.sleep(LOOK_S)
            self.control.execute("SELECT pg_stat_clear_snapshot()")
            if self.control.execute(_IS_LOCKED, parameters).fetchone() == (True,):
                return
            self._raise_if_replaced(1)

    def _raise_if_replaced(self, newest: int | None = None) -> None:
        """Raise TableGone when one of the newest tables is no longer the one that the snapshot shows."""
        oids, names = [list(column) for column in zip(*self._tables[:newest], strict=True)] or ([], [])
        for (table,) in self.control.execute(_REPLACED, [oids, names]):
            raise TableGone(f"table {table} was dropped or replaced while the backup began")


@contextmanager
def reading_sessions(conninfo: str, settings: Mapping[str, str]) -> Iterator[ReadingSessions]:
    """Open the sessions while the block lasts; psycopg's errors inside become ours."""
    with ExitStack() as stack, postgres_errors(f"the snapshot of {describe(conninfo)}"):
        sessions = [stack.enter_context(connect(conninfo, application_name=APPLICATION)) for _ in range(SESSIONS)]
        for session in sessions:
            set_session(session, {**settings, "lock_timeout": LOCK_WAIT})
        yield ReadingSessions(sessions)


def is_concurrent_ddl(error: SynapseOpsError) -> bool:
    """Say whether an error may come of an object that another session dropped or changed while it was read.

    A deadlock is one: of our locks with those of its DROP or ALTER, of which the server ended ours.
    """
    return isinstance(error, TableGone) or bool(_GONE.search(error.detail))
