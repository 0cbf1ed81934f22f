"""Has commits wait as the spec says, on whichever node takes writes, and lets a person turn that off.

That it is off lies in the database cluster itself, as a setting of the database `postgres`: it follows a failover, and
everyone who looks sees it. Whoever works with a server in this mode must not wait for what it is about to change:
each session here commits with `synchronous_commit = local`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from synapse_ops.domain.database.synchronous import Synchronous, plan_synchronous
from synapse_ops.errors import Refused
from synapse_ops.operations.database.wal_source import primary_conninfo
from synapse_ops.operations.stack import Stack
from synapse_ops.spec import Spec
from synapse_ops.systems.postgres.connection import connect, postgres_errors
from synapse_ops.systems.postgres.synchronous_names import set_awaited

if TYPE_CHECKING:
    import psycopg

SETTING_LIMIT_S = 10.0  # for a reload
OFF = "synapse_ops.sync_off"
_READ = """
SELECT current_setting('synchronous_standby_names'),
       (SELECT coalesce(array_agg(application_name), '{}') FROM pg_stat_replication WHERE state = 'streaming'),
       (SELECT substr(one, length('synapse_ops.sync_off=') + 1)
        FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase, unnest(setconfig) AS one
        WHERE datname = 'postgres' AND setrole = 0 AND starts_with(one, 'synapse_ops.sync_off='))"""
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
# what makes a session's commits wait for less than another server's disk
_ESCAPING = """
SELECT concat_ws(' in ', coalesce(rolname, 'everybody'), datname), substr(one, length('synchronous_commit=') + 1)
FROM pg_db_role_setting LEFT JOIN pg_roles ON pg_roles.oid = setrole
     LEFT JOIN pg_database ON pg_database.oid = setdatabase, unnest(setconfig) AS one
WHERE one IN ('synchronous_commit=off', 'synchronous_commit=local', 'synchronous_commit=remote_write')
UNION ALL SELECT 'the server', setting FROM pg_settings
WHERE name = 'synchronous_commit' AND setting IN ('off', 'local', 'remote_write') AND source <> 'session'
ORDER BY 1"""


def read_synchronous(connection: psycopg.Connection[Any], spec: Spec) -> Synchronous:
    """Return what the spec wants of a primary, and what is so."""
    with postgres_errors("for whom commits wait"):
        [(setting, streaming, off)] = connection.execute(_READ).fetchall()
    return Synchronous(
        nodes=tuple(dict.fromkeys((*spec.failover.nodes, *spec.database.nodes))),
        standby=spec.failover.synchronous == "standby",
        receiver=spec.backup.database.wal.synchronous,
        streaming=frozenset(streaming),
        setting=setting,
        off=off or "",
        is_external=spec.failover.manager == "external",
    )


def keep_synchronous(connection: psycopg.Connection[Any], spec: Spec) -> Synchronous:
    """Set what should be; return what is so then. Needs autocommit; raises DeadlineExceeded, PostgresRefused."""
    found = read_synchronous(connection, spec)
    wanted = plan_synchronous(found)
    if wanted == found.setting:
        return found
    set_awaited(connection, wanted, SETTING_LIMIT_S)
    return read_synchronous(connection, spec)


@dataclass(frozen=True, slots=True)
class SynchronousReport:
    """How it stands. waiting: sessions whose commit waits. escaping: whose commits do not, and their setting."""

    found: Synchronous
    waiting: int
    escaping: tuple[tuple[str, str], ...]


@contextmanager
def _primary(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with connect(primary_conninfo(stack, "postgres")) as connection:
        with postgres_errors("the session"):
            connection.execute("SET synchronous_commit = local")
        yield connection


def read_report(stack: Stack) -> SynchronousReport:
    with _primary(stack) as connection:
        return _report(connection, stack.spec)


def _report(connection: psycopg.Connection[Any], spec: Spec) -> SynchronousReport:
    found = read_synchronous(connection, spec)
    with postgres_errors("sessions that wait"):
        [(waiting,)] = connection.execute(_WAITING).fetchall()
    return SynchronousReport(found, waiting, read_escaping(connection))


def read_escaping(connection: psycopg.Connection[Any]) -> tuple[tuple[str, str], ...]:
    """Return whose commits wait for less than another server's disk, and their `synchronous_commit`."""
    with postgres_errors("the settings of roles and databases"):
        return tuple((str(who), str(value)) for who, value in connection.execute(_ESCAPING).fetchall())


def _refuse_other_manager(stack: Stack) -> None:
    if stack.spec.failover.manager == "external":
        raise Refused(
            "for whom commits wait is decided by another manager: failover.manager is external",
            hint="Tell that manager. What is set here would override its setting for ever.",
        )


def turn_off(stack: Stack, now: datetime) -> SynchronousReport:
    """Have no commit wait for anything but the primary's disk, whatever the spec says; return what waited before."""
    from psycopg import sql

    _refuse_other_manager(stack)
    with _primary(stack) as connection:
        before = _report(connection, stack.spec)
        with postgres_errors("the switch of synchronous commits"):
            words = sql.Literal(f"turned off at {now:%Y-%m-%d %H:%M:%S %Z}")
            statement = sql.SQL("ALTER DATABASE postgres SET {} = {}").format(sql.Identifier(*OFF.split(".")), words)
            connection.execute(statement)
        set_awaited(connection, "", SETTING_LIMIT_S)
    return before


def turn_on(stack: Stack) -> SynchronousReport:
    """Take `turn_off` back: commits wait for each one that streams. Return how it stands then."""
    from psycopg import sql

    _refuse_other_manager(stack)
    with _primary(stack) as connection:
        with postgres_errors("the switch of synchronous commits"):
            statement = sql.SQL("ALTER DATABASE postgres RESET {}").format(sql.Identifier(*OFF.split(".")))
            connection.execute(statement)
        keep_synchronous(connection, stack.spec)
        return _report(connection, stack.spec)
