"""Connections: every error of psycopg becomes ours, and no message holds a secret."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from synapse_ops.errors import (
    ConfigError,
    DeadlineExceeded,
    IntegrityError,
    Refused,
    SynapseOpsError,
    Throttled,
    Unreachable,
)
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.postgres.connection import connect, describe, postgres_errors
from synapse_ops.systems.postgres.errors import PostgresRefused, program_error
from tests.servers import PostgresServer

SECRET = "hunter2-secret"


def every_error() -> Iterator[type[psycopg.Error]]:
    for module in (psycopg, errors):
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, psycopg.Error):
                yield found


def test_no_error_of_psycopg_leaks() -> None:
    """Every class that psycopg defines comes out as one of ours, new ones included."""
    for kind in every_error():
        with pytest.raises(SynapseOpsError), postgres_errors("x"):
            raise kind("as the server said")


@pytest.mark.parametrize(
    ("state", "expected", "words"),
    [
        ("28P01", ConfigError, "the password was not accepted"),
        ("28000", ConfigError, "may not log in"),
        ("3D000", ConfigError, "no such database"),
        ("42501", ConfigError, "lacks the privilege"),
        ("53100", PostgresRefused, "no disk space left"),
        ("53200", Throttled, "no memory left"),
        ("53300", Throttled, "no connection left"),
        ("53400", PostgresRefused, "a limit of its configuration"),
        ("57P01", Unreachable, "ended the session"),
        ("57P03", Unreachable, "takes no connections now"),
        ("57014", DeadlineExceeded, "in time"),
        ("55P03", DeadlineExceeded, "in time"),
        ("25P04", DeadlineExceeded, "in time"),
        ("40P01", Throttled, "because of other work"),
        ("25006", Refused, "takes no writes"),
        ("XX001", IntegrityError, "damaged data"),
        ("58030", PostgresRefused, "could not use its files"),
        ("08006", Unreachable, "could not reach"),
        ("42P01", PostgresRefused, "refused"),
    ],
)
def test_each_sqlstate_says_what_it_is(
    postgres_server: PostgresServer, state: str, expected: type[SynapseOpsError], words: str
) -> None:
    """What may pass by itself is Unreachable, what an operator must mend is not; only silence is "could not reach"."""
    statement = f"DO $$BEGIN RAISE EXCEPTION 'as the server said' USING ERRCODE = '{state}'; END$$"
    with (
        connect(postgres_server.conninfo()) as connection,
        pytest.raises(expected) as raised,
        postgres_errors("the test"),
    ):
        connection.execute(statement)

    assert type(raised.value) is expected
    assert words in raised.value.message
    assert "as the server said" in raised.value.detail


REFUSALS: dict[str, tuple[str, type[SynapseOpsError], str]] = {
    "missing role": ("", ConfigError, "may not log in"),
    "role without LOGIN": ("CREATE ROLE {name} NOLOGIN", ConfigError, "may not log in"),
    "role at its limit": ("CREATE ROLE {name} LOGIN CONNECTION LIMIT 0", Throttled, "no connection left"),
    "missing database": ("", ConfigError, "no such database"),
    "closed database": ("CREATE DATABASE {name} ALLOW_CONNECTIONS false", ConfigError, "takes no connections"),
    "role without CONNECT": (
        "CREATE ROLE {name} LOGIN; CREATE DATABASE {name}; REVOKE CONNECT ON DATABASE {name} FROM public",
        ConfigError,
        "lacks the privilege",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_connection_says_why(postgres_server: PostgresServer, case: str) -> None:
    """While connecting there is no SQLSTATE, only the server's words; none of these is "Is the server up?"."""
    statements, expected, words = REFUSALS[case]
    name = f"refused_{secrets.token_hex(4)}"
    for statement in filter(None, statements.format(name=name).split("; ")):
        postgres_server.execute(statement)
    user = name if "role" in case else "postgres"
    database = name if case not in {"missing role", "role without LOGIN", "role at its limit"} else "postgres"
    try:
        with pytest.raises(expected) as raised:
            connect(postgres_server.server.conninfo(database, user))
    finally:
        postgres_server.execute(f"DROP DATABASE IF EXISTS {name}")
        postgres_server.execute(f"DROP ROLE IF EXISTS {name}")

    assert type(raised.value) is expected
    assert words in raised.value.message
    assert name in raised.value.detail


@pytest.mark.parametrize(
    ("said", "expected", "words"),
    [
        ("the database system is starting up", Unreachable, "takes no connections now"),
        ("sorry, too many clients already", Throttled, "no connection left"),
        ("could not write init file: No space left on device", PostgresRefused, "no disk space left"),
        ("out of memory", Throttled, "no memory left"),
        ("die Datenbank hat keine Lust", Unreachable, "PostgreSQL refused"),
    ],
)
def test_a_program_is_told_why_as_our_own_connection_is(said: str, expected: type[SynapseOpsError], words: str) -> None:
    """pg_dump's own connection can be refused where ours was not; its words are libpq's, in another frame."""
    failed = f'connection to server at "db", port 5432 failed: FATAL:  {said}'
    with pytest.raises(expected) as raised, postgres_errors("pg_dump"):
        raise psycopg.OperationalError(f"connection failed: {failed}")
    of_program = program_error(f"pg_dump: error: {failed}", "pg_dump")

    assert of_program is not None
    assert (type(of_program), of_program.message) == (type(raised.value), raised.value.message)
    assert words in of_program.message


def test_what_people_wrote_does_not_decide_about_a_program() -> None:
    """An ERROR inside a session tells of a lack of resources, or nothing: its text can be a function's own."""
    full = program_error("pg_dump: error: query failed: ERROR:  out of shared memory", "pg_dump")

    assert type(full) is Throttled
    assert program_error('pg_restore: error: could not execute query: ERROR:  role "x" does not exist', "x") is None


def test_refused_connections_do_not_show_the_password(postgres_server: PostgresServer) -> None:
    """A wrong password, a closed port, a missing database and a mangled URL are told without the secret."""
    [port] = free_ports(1)
    for conninfo in (
        postgres_server.conninfo("postgres", password=SECRET),
        f"postgresql://postgres:{SECRET}@127.0.0.1:{port}/postgres",
        postgres_server.conninfo("no_such_database"),
        f"postgresql://postgres:{SECRET}@[::1",
    ):
        with pytest.raises((ConfigError, Unreachable)) as raised:
            connect(conninfo, timeout_s=5)
        assert SECRET not in raised.value.render()
        assert raised.value.__cause__ is None


def test_a_connection_is_described_by_its_address_only() -> None:
    """What is shown of a server is host, port and database."""
    assert describe(f"postgresql://ann:{SECRET}@db:5433/shop?sslmode=require") == "db:5433/shop"


@pytest.mark.parametrize(
    ("conninfo", "shown"),
    [
        ("host=db port=5433 dbname=synapse user=u password=hidden", "db:5433/synapse"),
        ("host=a,b port=5432,5433 dbname=synapse", "a:5432,b:5433/synapse"),
        ("host=a,b port=5433 dbname=synapse", "a:5433,b:5433/synapse"),
    ],
)
def test_a_server_is_shown_by_its_hosts_and_their_ports(conninfo: str, shown: str) -> None:
    """`a,b:5432,5433` reads as one strange host. libpq: one port is that of every host."""
    assert describe(conninfo) == shown
