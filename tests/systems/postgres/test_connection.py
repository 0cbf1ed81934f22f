"""Connections: every error of psycopg becomes ours, and no message holds a secret."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors

from synapse_ops.errors import ConfigError, DeadlineExceeded, SynapseOpsError, Unreachable
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.postgres.connection import connect, describe, postgres_errors
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
    ("kind", "expected"),
    [
        (errors.InvalidPassword, ConfigError),
        (errors.InsufficientPrivilege, ConfigError),
        (errors.QueryCanceled, DeadlineExceeded),
        (errors.LockNotAvailable, DeadlineExceeded),
        (errors.AdminShutdown, Unreachable),
        (errors.TooManyConnections, Unreachable),
        (psycopg.InterfaceError, Unreachable),
    ],
)
def test_causes_keep_their_family(kind: type[psycopg.Error], expected: type[SynapseOpsError]) -> None:
    """What may pass by itself is Unreachable, what an operator must mend is ConfigError."""
    with pytest.raises(expected), postgres_errors("x"):
        raise kind("as the server said")


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
