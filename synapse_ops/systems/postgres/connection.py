"""PostgreSQL through psycopg 3: connections, their settings, and the block in which its errors become ours.

Invariant: a connection string never reaches a message, a log line or a repr; what is shown of a server is
`host:port/database` (`describe`). Every connection has a time limit to open, a name in pg_stat_activity, and the
settings of `session.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import ConfigError
from synapse_ops.systems.postgres.errors import CONNINFO_HINT, postgres_error
from synapse_ops.systems.postgres.session import OWN_ENCODING, SessionStart, set_aside_by_environment

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

APPLICATION_NAME = "synapse-ops"
CONNECT_TIMEOUT_S = 10.0

TRIES_TO_CONNECT = 6  # each leaves out what the server has refused; a server that keeps changing gets no more


@contextmanager
def postgres_errors(what: str) -> Iterator[None]:
    """Turn every psycopg error inside into one of ours that names `what`; secrets are never part of the message."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise postgres_error(error, what) from None


def connect(
    conninfo: str,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    autocommit: bool = True,
    application_name: str = APPLICATION_NAME,
) -> psycopg.Connection[Any]:
    """Return an open connection that no setting of its database or role reaches; `autocommit=False` as psycopg has it.

    timeout_s: of connecting, at least 2 (libpq's own least). Raises Unreachable, or ConfigError when it is refused.
    """
    import psycopg

    parts = conninfo_parts(conninfo)
    start = SessionStart(parts)
    with postgres_errors(f"a connection to {describe(conninfo)}"):
        for tries_left in reversed(range(TRIES_TO_CONNECT)):
            try:
                connection = psycopg.connect(
                    conninfo,
                    autocommit=True,
                    connect_timeout=max(2, round(timeout_s)),
                    application_name=application_name,
                    options=start.own_options(),
                    client_encoding=OWN_ENCODING,
                )
            except psycopg.OperationalError as error:
                if tries_left and start.has_learned(str(error)):
                    continue
                raise
            if tries_left and lacks_settings(start, connection):
                connection.close()
                continue
            break
        for statement in finishing_statements(connection):
            connection.execute(statement)
        connection.autocommit = autocommit
        return connection


def lacks_settings(start: SessionStart, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Say whether an open session should have begun with more settings than it did."""
    is_superuser = connection.info.parameter_status("is_superuser") == "on"
    return start.lacks_settings(connection.info.server_version, is_superuser=is_superuser)


def finishing_statements(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> list[sql.Composed | sql.SQL]:
    """Return what an open session executes before all else; prepares how its answers are read.

    A database of encoding SQL_ASCII holds any bytes: LATIN1 gives each a letter of its own, and the same byte back.
    """
    from psycopg import sql
    from psycopg.types.json import set_json_loads

    statements: list[sql.Composed | sql.SQL] = [
        sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in set_aside_by_environment().items()
    ]
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        statements.append(sql.SQL("SET client_encoding = LATIN1"))
        set_json_loads(_loads_latin1, connection)
    return statements


def _loads_latin1(data: str | bytes) -> Any:
    return json.loads(data.decode("latin-1") if isinstance(data, bytes) else data)


def program_parts(conninfo: str) -> dict[str, str]:
    """Return libpq's keywords for a program of PostgreSQL; a server that was not met before is met first."""
    parts = conninfo_parts(conninfo)
    if not SessionStart(parts).is_known:
        connect(conninfo).close()
    return {**parts, "options": SessionStart(parts).program_options()}


def describe(conninfo: str) -> str:
    """Return `host:port/database` of a connection string, without user and password; of several hosts each."""
    parts = conninfo_parts(conninfo)
    hosts, ports = (parts.get("host") or "localhost").split(","), (parts.get("port") or "5432").split(",")
    if len(ports) < len(hosts):
        ports = ports[:1] * len(hosts)  # one port is that of every host
    places = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=False))
    return f"{places}/{parts.get('dbname') or parts.get('user') or ''}"


def at_its_server(connection: psycopg.Connection[Any], conninfo: str) -> str:
    """Return the connection string of the one server that a session is with, of those that it names."""
    from psycopg.conninfo import make_conninfo

    parts = conninfo_parts(conninfo)
    if "," not in parts.get("host", ""):
        return conninfo
    parts.pop("hostaddr", None)
    return make_conninfo("", **{**parts, "host": connection.info.host, "port": str(connection.info.port)})


def conninfo_parts(conninfo: str) -> dict[str, str]:
    """Return a connection string as libpq's keywords; raises ConfigError (without quoting it) when it has no form."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    except (psycopg.ProgrammingError, ValueError):  # ValueError: a sign that is no text
        raise ConfigError("cannot use the connection string of PostgreSQL", hint=CONNINFO_HINT) from None
    if "://" in conninfo and "@" in parts.get("host", "") + parts.get("dbname", ""):
        # a bare @ or / ends the password early: the rest of it would be shown as the host or the database
        raise ConfigError("cannot use the connection string of PostgreSQL", hint=CONNINFO_HINT)
    return parts


def set_session(connection: psycopg.Connection[Any], settings: Mapping[str, str]) -> None:
    """Apply settings for the life of the session; a setting that this server does not have is skipped."""
    with postgres_errors("the settings of a session"):
        connection.execute(
            "SELECT set_config(name, given.value, false) FROM pg_settings"
            " JOIN json_each_text(%s::json) AS given(key, value) ON lower(name) = lower(given.key)",
            [json.dumps(dict(settings))],
        )


@contextmanager
def reading(
    conninfo: str,
    *,
    snapshot: str | None = None,
    settings: Mapping[str, str] | None = None,
    application_name: str = APPLICATION_NAME,
) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection inside one read-only transaction.

    snapshot: as pg_export_snapshot named it, in a transaction that stays open; None takes a new one.
    """
    with connect(conninfo, application_name=application_name) as connection:
        if settings:
            set_session(connection, settings)
        with postgres_errors(f"a snapshot of {describe(conninfo)}"):
            begin_reading(connection, snapshot)
        yield connection


def begin_reading(connection: psycopg.Connection[Any], snapshot: str | None = None) -> None:
    """Begin a read-only transaction on one snapshot; None takes a new one with the first statement."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    if snapshot is not None:
        connection.execute("SET TRANSACTION SNAPSHOT '" + snapshot.replace("'", "''") + "'")
