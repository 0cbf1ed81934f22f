"""PostgreSQL through psycopg 3: connections, their settings, and the block in which its errors become ours.

Invariant: a connection string never reaches a message, a log line or a repr; what is shown of a server is
`host:port/database` (`describe`). Every connection has a time limit to open and a name in pg_stat_activity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from synapse_ops.errors import ConfigError
from synapse_ops.systems.postgres.errors import CONNINFO_HINT, postgres_error

if TYPE_CHECKING:
    import psycopg

APPLICATION_NAME = "synapse-ops"
CONNECT_TIMEOUT_S = 10.0

# Text output that does not depend on the client's settings: comparisons between two servers rest on it.
STABLE_OUTPUT = {
    "search_path": "",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "xmloption": "content",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_messages": "C",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "client_encoding": "UTF8",
}
# A long read must not be ended by limits meant for the application's own sessions.
UNLIMITED = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "row_security": "off",
    "jit": "off",
}
# Given with the connection itself, these outrank ALTER DATABASE SET and ALTER ROLE SET from the first statement on: a
# statement_timeout of some milliseconds would end the very statement that lifts it.
OUTRANKING_OPTIONS = (
    "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0"
    " -c default_transaction_read_only=off -c default_transaction_deferrable=off"
)
TRANSACTION_TIMEOUT_SINCE = 170000  # an older server refuses a connection that names the setting


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
    """Return an open connection without time limits of its database or role; `autocommit=False` as psycopg has it.

    timeout_s: of connecting, at least 2 (libpq's own least). Raises Unreachable, or ConfigError when it is refused.
    """
    import psycopg

    options = unlimited_parts(conninfo)["options"]
    with postgres_errors(f"a connection to {describe(conninfo)}"):
        connection = psycopg.connect(
            conninfo,
            autocommit=True,
            connect_timeout=max(2, round(timeout_s)),
            application_name=application_name,
            options=options,
        )
        if connection.info.server_version >= TRANSACTION_TIMEOUT_SINCE:
            connection.execute("SET transaction_timeout = 0")
        connection.autocommit = autocommit
        return connection


def unlimited_parts(conninfo: str, *, server_version_num: int = 0) -> dict[str, str]:
    """Return libpq's keywords of a connection string, its options followed by those that lift every time limit.

    server_version_num: such as 170004, where it is known; the limits that only newer servers have are lifted too.
    """
    parts = conninfo_parts(conninfo)
    newer = " -c transaction_timeout=0" if server_version_num >= TRANSACTION_TIMEOUT_SINCE else ""
    return {**parts, "options": f"{parts.get('options', '')} {OUTRANKING_OPTIONS}{newer}".strip()}


def describe(conninfo: str) -> str:
    """Return `host:port/database` of a connection string, without user and password."""
    parts = conninfo_parts(conninfo)
    host, port = parts.get("host") or "localhost", parts.get("port") or "5432"
    return f"{host}:{port}/{parts.get('dbname') or parts.get('user') or ''}"


def conninfo_parts(conninfo: str) -> dict[str, str]:
    """Return a connection string as libpq's keywords; raises ConfigError (without quoting it) when it has no form."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        return {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    except psycopg.ProgrammingError:
        raise ConfigError("cannot read a PostgreSQL connection string", hint=CONNINFO_HINT) from None


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
    """Yield a connection inside one read-only transaction with stable output and no time limits.

    snapshot: as pg_export_snapshot named it, in a transaction that stays open; None takes a new one.
    """
    with connect(conninfo, application_name=application_name) as connection:
        set_session(connection, {**STABLE_OUTPUT, **UNLIMITED, **(settings or {})})
        with postgres_errors(f"a snapshot of {describe(conninfo)}"):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if snapshot is not None:
                connection.execute("SET TRANSACTION SNAPSHOT '" + snapshot.replace("'", "''") + "'")
        yield connection
