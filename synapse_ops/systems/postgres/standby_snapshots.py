"""Snapshots of every database of a standby at one WAL position, taken while its replay stands still for a moment.

The position is exact: nothing that lies before it is missing in the snapshots, and nothing behind it is seen. Replay
goes on as soon as they are open. Should we be gone by then, it goes on by itself: before the pause a session of the
server is told to sleep and to resume replay after that, which it does whether or not its client still lives.
A snapshot keeps no table whole: TRUNCATE ignores snapshots, and a sequence has none. So the tables are locked and the
sequences read during the pause. Replay that waits for such a lock ends our session in the end, which is an error here.
Source: PostgreSQL documentation, "Recovery Control Functions", "Handling Query Conflicts".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from synapse_ops.domain.database.fingerprint import SequenceBracket
from synapse_ops.domain.database.lsn import Lsn
from synapse_ops.errors import DeadlineExceeded, Refused
from synapse_ops.systems.postgres.connection import begin_reading, connect, describe, postgres_errors, set_session
from synapse_ops.systems.postgres.fingerprint import READING_SETTINGS, lock_tables, read_logged_sequences
from synapse_ops.systems.postgres.identity import list_databases

APPLICATION = "synapse-ops standby"
PAUSE_LIMIT_S = 5.0  # for how long replay stands still at most, whatever becomes of us
CATCH_UP_S = 60.0
LOCK_WAIT = "500ms"  # a lock that replay holds is let go by replay alone, which stands still
POLL_S = 0.01

_STATE = "SELECT pg_is_in_recovery(), pg_get_wal_replay_pause_state(), pg_last_wal_replay_lsn()::text"
_MOMENT = "SELECT pg_last_xact_replay_timestamp(), clock_timestamp()"
_SLEEPS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep')"
_STANDS_GUARDED = f"{_SLEEPS} AND pg_get_wal_replay_pause_state() = 'paused'"
_RESUME = "SELECT pg_wal_replay_resume()"


@dataclass(frozen=True)
class DatabaseSnapshot:
    """One database. session: in a transaction on the snapshot, its tables locked. conninfo: a secret."""

    name: str
    conninfo: str
    session: psycopg.Connection[Any]
    sequences: Mapping[str, SequenceBracket]


@dataclass(frozen=True)
class StandbySnapshots:
    """lsn: where replay stood. last_commit_at: of the last transaction before it, by the primary's clock."""

    lsn: Lsn
    last_commit_at: datetime
    databases: tuple[DatabaseSnapshot, ...]


@contextmanager
def standby_snapshots(conninfo_of: Callable[[str], str], after: Lsn) -> Iterator[StandbySnapshots]:
    """Yield snapshots of all databases of a standby, at a position behind `after`, while the block lasts.

    conninfo_of: of a database of the standby, as superuser. Raises Refused where replay is paused by somebody else or
    the server is no standby, DeadlineExceeded where it does not come, PostgresRefused where a table is being changed.
    """
    where = conninfo_of("postgres")
    with ExitStack() as opened, postgres_errors(f"the snapshots of {describe(where)}"):
        control = opened.enter_context(connect(where, application_name=APPLICATION))
        _await_position(control, after)
        sessions = {}
        for name in list_databases(control):
            session = opened.enter_context(connect(conninfo_of(name), application_name=APPLICATION))
            set_session(session, {**READING_SETTINGS, "lock_timeout": LOCK_WAIT})
            sessions[name] = session
        with _paused(control, where) as lsn:
            [(last_commit_at, now)] = control.execute(_MOMENT).fetchall()
            databases = []
            for name, session in sessions.items():
                begin_reading(session)
                lock_tables(session)
                sequences = read_logged_sequences(session)
                databases.append(DatabaseSnapshot(name, conninfo_of(name), session, sequences))
            if list_databases(control) != tuple(sessions):
                raise Refused("a database was created or dropped while the standby was read")
            _require_still(control, lsn)
        yield StandbySnapshots(lsn, last_commit_at or now, tuple(databases))


def _state(control: psycopg.Connection[Any]) -> tuple[str, Lsn]:
    """Return the state of the pause, and where replay is."""
    [(is_standby, state, lsn)] = control.execute(_STATE).fetchall()
    if not is_standby or lsn is None:
        raise Refused("the server is no standby any more")
    return state, Lsn.parse(lsn)


def _await_position(control: psycopg.Connection[Any], after: Lsn) -> None:
    began = time.monotonic()
    while True:
        state, lsn = _state(control)
        if state == "not paused" and lsn >= after:
            return
        waited_s = time.monotonic() - began
        if state != "not paused" and waited_s > 2 * PAUSE_LIMIT_S:  # not one that ends by itself
            raise Refused(
                f"replay of the standby is paused by somebody else, at {lsn}",
                hint="Run `select pg_wal_replay_resume()` there, unless it is meant to stand still.",
            )
        if waited_s > CATCH_UP_S:
            raise DeadlineExceeded(f"the standby has replayed up to {lsn} and not to {after} within {CATCH_UP_S:g} s")
        time.sleep(POLL_S)


@contextmanager
def _paused(control: psycopg.Connection[Any], where: str) -> Iterator[Lsn]:
    """Yield the position at which replay stands while the block lasts, PAUSE_LIMIT_S at most."""
    deadline = time.monotonic() + PAUSE_LIMIT_S
    with closing(connect(where, application_name=APPLICATION)) as guard:
        _send_to_sleep(guard)
        _await(control, deadline, _SLEEPS, guard.info.backend_pid)
        control.execute("SELECT pg_wal_replay_pause()")
        try:
            _await(control, deadline, _STANDS_GUARDED, guard.info.backend_pid)
            yield _state(control)[1]
        finally:
            control.execute(_RESUME)
            with suppress(psycopg.Error):
                guard.cancel_safe(timeout=PAUSE_LIMIT_S)


def _send_to_sleep(guard: psycopg.Connection[Any]) -> None:
    """Have the server resume replay after a while.

    It is one message: its statements are all carried out before the server hears whether we are still there.
    """
    guard.pgconn.send_query(
        f"SET client_connection_check_interval = 0; SELECT pg_sleep({PAUSE_LIMIT_S}); {_RESUME}".encode()
    )
    guard.pgconn.flush()


def _await(control: psycopg.Connection[Any], deadline: float, query: str, pid: int) -> None:
    while control.execute(query, [pid]).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"replay of the standby did not stand still within {PAUSE_LIMIT_S:g} s")
        time.sleep(POLL_S)


def _require_still(control: psycopg.Connection[Any], lsn: Lsn) -> None:
    """Raise DeadlineExceeded unless replay stood still all the while."""
    if _state(control) != ("paused", lsn):
        raise DeadlineExceeded(
            f"the snapshots of the standby were not open within {PAUSE_LIMIT_S:g} s, and its replay went on"
        )
