"""What was set for the application's sessions does not reach ours, on every server that is served."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from synapse_ops.systems.postgres import session
from synapse_ops.systems.postgres.connection import connect, program_parts
from synapse_ops.systems.postgres.session import SessionStart
from tests.servers import PASSWORD, PostgresServer

# Each is applied to a session that is opened without more ado, and makes it read or write something else, or nothing.
HOSTILE = {
    "client_encoding": "SQL_ASCII",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Europe/Berlin",
    "search_path": "nowhere",
    "row_security": "on",
    "session_preload_libraries": "auto_explain",
    "session_replication_role": "replica",
    "default_tablespace": "pg_global",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "lc_monetary": "C.UTF-8",
    "bytea_output": "escape",
    "quote_all_identifiers": "on",
    "zero_damaged_pages": "on",
    "temp_file_limit": "64kB",
    "event_triggers": "on",
    "statement_timeout": "1ms",
    "transaction_timeout": "1ms",
    "idle_session_timeout": "1ms",
}
OURS = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "search_path": "",
    "row_security": "off",
    "session_preload_libraries": "",
    "session_replication_role": "origin",
    "default_tablespace": "",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "lc_monetary": "C",
    "bytea_output": "hex",
    "quote_all_identifiers": "off",
    "zero_damaged_pages": "off",
    "temp_file_limit": "-1",
    "event_triggers": "off",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "role": "none",
}


@pytest.fixture
def other_role(postgres_server: PostgresServer) -> Iterator[str]:
    """A superuser to connect as."""
    name = f"other_{secrets.token_hex(4)}"
    postgres_server.execute(f"create role {name} superuser login password '{PASSWORD}'")
    yield name
    postgres_server.execute(f"drop role {name}")


def settings_of(conninfo: str) -> dict[str, str]:
    with connect(conninfo) as connection:
        rows = connection.execute("select name, current_setting(name, true) from unnest(%s::text[]) name", [list(OURS)])
        return dict(rows.fetchall())


def test_no_setting_of_database_role_or_environment_reaches_a_session(
    postgres_server: PostgresServer,
    fresh_database: Callable[..., str],
    other_role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a startup packet says outranks what ALTER DATABASE, ALTER ROLE and ALTER ROLE ALL say."""
    parts = conninfo_to_dict(fresh_database())
    conninfo = make_conninfo("", **{**parts, "user": other_role})
    holders = ("role all", f"role {other_role} in database {parts['dbname']}")
    for name, value in {"PGDATESTYLE": "SQL", "PGTZ": "Asia/Tokyo", "PGCLIENTENCODING": "LATIN1"}.items():
        monkeypatch.setenv(name, value)
    try:
        for number, (name, value) in enumerate({**HOSTILE, "role": "pg_monitor"}.items()):
            with connect(postgres_server.conninfo()) as connection:
                connection.execute(f"alter {holders[number % 2]} set {name} = '{value}'")  # type: ignore[arg-type]

        found = settings_of(conninfo)
    finally:
        with connect(postgres_server.conninfo()) as connection:
            connection.execute("alter role all reset all")

    assert found == OURS


def test_a_login_event_trigger_does_not_fire(fresh_database: Callable[..., str]) -> None:
    """Not even one that is enabled always: a session that changes what it reads is no reading."""
    conninfo = fresh_database()
    with connect(conninfo) as connection:
        connection.execute(
            "create table public.logins (n int); create function public.note() returns event_trigger language plpgsql"
            " as 'begin insert into public.logins values (1); end';"
            " create event trigger on_login on login execute function public.note();"
            " alter event trigger on_login enable always"
        )

    with connect(conninfo) as connection:
        assert connection.execute("select count(*) from public.logins").fetchone() == (0,)


def test_a_server_that_does_not_know_a_setting_is_served_without_it(
    fresh_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server refuses a connection that names such a setting; programs are not given it either."""
    monkeypatch.setattr(session, "_accepted", {})
    monkeypatch.setattr(session, "_SINCE_17", 990000)
    monkeypatch.setattr(session, "_SUPERUSER_SINCE_17", {"setting_of_the_future": "off"})
    conninfo = fresh_database()

    assert settings_of(conninfo)["session_replication_role"] == "origin"
    options = program_parts(conninfo)["options"]
    assert "setting_of_the_future" not in options
    assert "session_replication_role" in options


def test_a_role_without_rights_gets_what_it_may_set_and_the_rest_once_it_is_a_superuser(
    postgres_server: PostgresServer, other_role: str
) -> None:
    """Whether it is a superuser is for the caller to judge; it can be made one while this process lives."""
    conninfo = postgres_server.conninfo(user=other_role)
    postgres_server.execute(f"alter role {other_role} nosuperuser")
    postgres_server.execute(f"grant pg_read_all_settings to {other_role}")

    assert settings_of(conninfo)["statement_timeout"] == "0"
    assert "session_preload_libraries" not in program_parts(conninfo)["options"]

    postgres_server.execute(f"alter role {other_role} superuser")

    assert settings_of(conninfo)["event_triggers"] == "off"
    assert "session_preload_libraries" in program_parts(conninfo)["options"]


def test_a_server_that_was_replaced_by_a_newer_one_gets_the_newer_settings(postgres_server: PostgresServer) -> None:
    """What an address refused once is forgotten when another server answers there."""
    parts = conninfo_to_dict(postgres_server.conninfo())
    start = SessionStart({name: str(value) for name, value in parts.items()})
    assert start.has_learned('FATAL:  unrecognized configuration parameter "event_triggers"')

    assert settings_of(postgres_server.conninfo())["event_triggers"] == "off"
