"""One rich database per module, and what it looks like before anything is lost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.servers import PostgresServer
from tests.systems.rich_database import CONTENT, ROLES


@pytest.fixture(scope="session")
def rich_roles(postgres_server: PostgresServer) -> None:
    """The roles that the rich database's objects belong to."""
    for role in ROLES:
        postgres_server.execute(f"CREATE ROLE {role}")


@pytest.fixture(scope="module")
def rich_name(postgres_server: PostgresServer, rich_roles: None) -> Iterator[str]:
    """The name of a database that holds an object of every kind."""
    name = f"rich_{secrets.token_hex(4)}"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    postgres_server.execute(CONTENT, name)
    yield name
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
